-- crash: running -> queued; the process of the attempt died; counts a crash and gives the attempt back. At once the first time, then with backoff.
-- Parameters, arrays of one length: ids, leases; error_types, messages, tracebacks, fingerprints, exit_causes text[]; run_ms, cpu_ms,
--   peak_memory (bytes), age_ms (since the attempt ended), delay_ms (pause asked for, or NULL) bigint[].
-- Guard: (id, lease) and running and crashes left (quarantine.sql takes the rest of the same batch). Returns the ids that were accepted. Locks: the rows, in id order. Index: jobs_pkey.
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
      AND j.crash_count + 1 < j.max_crashes AND j.cancel_requested_at IS NULL
    ORDER BY j.id
    FOR UPDATE OF j
), moved AS (
    UPDATE jobrunner.jobs j
    SET state = 'queued', worker_id = NULL, claimed_at = NULL, started_at = NULL, cancel_requested_at = NULL,
        attempt = greatest(j.attempt - 1, 0), crash_count = j.crash_count + 1, last_error_type = old.error_type, last_error = old.message, last_error_at = now(),
        run_at = CASE WHEN j.crash_count = 0 THEN j.run_at ELSE
                 now() + jobrunner.backoff_delay(j.backoff, j.backoff_base, j.backoff_cap, j.backoff_jitter, j.crash_count) END
    FROM old
    WHERE j.id = old.id AND j.lease = old.lease AND j.state || '' = 'running'
    RETURNING j.id
), recorded AS (
    INSERT INTO jobrunner.job_attempts (job_id, attempt, lease, worker_id, task, queue, started_at, outcome, error_type, message, traceback, fingerprint, exit_cause, run_ms, cpu_ms, peak_memory)
    SELECT old.id, old.attempt, old.lease, old.worker_id, old.task, old.queue, old.began_at, 'crashed', old.error_type, old.message,
           old.traceback, old.fingerprint, old.exit_cause, old.run_ms, old.cpu_ms, old.peak_memory
    FROM old JOIN moved USING (id)
)
SELECT id FROM moved
