-- retry: running -> queued; an attempt that raised goes back after its backoff (computed here, from the row's own columns).
--   One that ran out of memory gets memory_limit_on_retry times as much, when that is set.
-- Parameters, arrays of one length: ids, leases; error_types, messages, tracebacks, fingerprints, exit_causes text[]; run_ms, cpu_ms,
--   peak_memory (bytes), age_ms (since the attempt ended), delay_ms (pause asked for, or NULL) bigint[].
-- Guard: (id, lease) and running and attempts left (fail.sql takes the rest of the same batch). Returns the ids that were accepted. Locks: the rows, in id order. Index: jobs_pkey.
-- Trap avoided: the guesses built into `state || ''` and into the bounds of f.lease (no lease is outside them) keep the planner on
--   jobs_pkey, one probe an id, whatever the statistics say; else it may walk a whole partial index, dead entries included, or the
--   whole table.
WITH f AS MATERIALIZED (
    SELECT * FROM unnest(:'ids'::bigint[], :'leases'::bigint[], :'error_types'::text[], :'messages'::text[], :'tracebacks'::text[], :'fingerprints'::text[],
                :'exit_causes'::text[], :'run_ms'::bigint[], :'cpu_ms'::bigint[], :'peak_memory'::bigint[], :'age_ms'::bigint[], :'delay_ms'::bigint[])
        AS f (id, lease, error_type, message, traceback, fingerprint, exit_cause, run_ms, cpu_ms, peak_memory, age_ms, delay_ms)
    WHERE f.lease BETWEEN 1 AND 9223372036854775806
), old AS MATERIALIZED (
    SELECT j.id, j.attempt, j.lease, j.worker_id, j.task, j.queue,
           now() - (f.run_ms + f.age_ms) * interval '1 millisecond' AS began_at,
           f.error_type, f.message, f.traceback, f.fingerprint, f.exit_cause, f.run_ms, f.cpu_ms, f.peak_memory, f.delay_ms
    FROM jobrunner.jobs j JOIN f ON j.id = f.id AND j.lease = f.lease
    WHERE j.state || '' = 'running'
      AND j.attempt < j.max_attempts AND j.cancel_requested_at IS NULL
    ORDER BY j.id
    FOR UPDATE OF j
), moved AS (
    UPDATE jobrunner.jobs j
    SET state = 'queued', worker_id = NULL, claimed_at = NULL, started_at = NULL, cancel_requested_at = NULL,
        memory_limit = CASE WHEN old.exit_cause = 'memory' AND j.memory_limit IS NOT NULL AND j.memory_limit_on_retry IS NOT NULL
                            THEN least(j.memory_limit * j.memory_limit_on_retry::float8, 9223372036854774784)::bigint  -- the last float8 that a bigint holds
                            ELSE j.memory_limit END,
        crash_count = 0, last_error_type = old.error_type, last_error = old.message, last_error_at = now(),
        run_at = now() + CASE WHEN old.delay_ms IS NULL THEN jobrunner.backoff_delay(j.backoff, j.backoff_base, j.backoff_cap, j.backoff_jitter, j.attempt)
                      ELSE least(greatest(old.delay_ms, 0), 3155760000000) * interval '1 millisecond' END  -- a century at most: no pause asked for can overflow run_at and so wedge the batch
    FROM old
    WHERE j.id = old.id AND j.lease = old.lease AND j.state || '' = 'running'
    RETURNING j.id
), recorded AS (
    INSERT INTO jobrunner.job_attempts (job_id, attempt, lease, worker_id, task, queue, started_at, outcome, error_type, message, traceback, fingerprint, exit_cause, run_ms, cpu_ms, peak_memory)
    SELECT old.id, old.attempt, old.lease, old.worker_id, old.task, old.queue, old.began_at, 'retried', old.error_type, old.message,
           old.traceback, old.fingerprint, old.exit_cause, old.run_ms, old.cpu_ms, old.peak_memory
    FROM old JOIN moved USING (id)
)
SELECT id FROM moved
