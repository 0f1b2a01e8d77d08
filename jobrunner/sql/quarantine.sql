-- quarantine: running -> quarantined; the process of the attempt died once too often.
-- Parameters, arrays of one length: ids, leases; error_types, messages, tracebacks, fingerprints, exit_causes text[]; run_ms, cpu_ms,
--   peak_memory (bytes), age_ms (since the attempt ended), delay_ms (pause asked for, or NULL) bigint[].
-- Guard: (id, lease) and running. Returns the ids that were accepted. Locks: none that hold.sql, before it in
--   the same transaction, has not taken. Index: jobs_pkey.
-- Trap avoided: the guesses built into `state || ''` and into the bounds of f.lease (no lease is outside them) keep the planner on
--   jobs_pkey, one probe an id, whatever the statistics say; else it may walk a whole partial index, dead entries included, or the
--   whole table.
WITH f AS MATERIALIZED (
    SELECT * FROM unnest(:'ids'::bigint[], :'leases'::bigint[], :'error_types'::text[], :'messages'::text[], :'tracebacks'::text[], :'fingerprints'::text[],
                :'exit_causes'::text[], :'run_ms'::bigint[], :'cpu_ms'::bigint[], :'peak_memory'::bigint[], :'age_ms'::bigint[], :'delay_ms'::bigint[])
        AS f (id, lease, error_type, message, traceback, fingerprint, exit_cause, run_ms, cpu_ms, peak_memory, age_ms, delay_ms)
    WHERE f.lease BETWEEN 1 AND 9223372036854775806
), done AS (
    DELETE FROM jobrunner.jobs j USING f
    WHERE j.id = f.id AND j.lease = f.lease AND j.state || '' = 'running'
      AND j.cancel_requested_at IS NULL
    RETURNING j.*, f.error_type, f.message, f.traceback, f.fingerprint, f.exit_cause, f.run_ms, f.cpu_ms, f.peak_memory,
              now() - (f.run_ms + f.age_ms) * interval '1 millisecond' AS began_at
), recorded AS (
    INSERT INTO jobrunner.job_attempts (job_id, attempt, lease, worker_id, task, queue, started_at, outcome, error_type, message, traceback, fingerprint, exit_cause, run_ms, cpu_ms, peak_memory)
    SELECT id, attempt, lease, worker_id, task, queue, began_at, 'quarantined', error_type, message, traceback, fingerprint, exit_cause, run_ms, cpu_ms, peak_memory
    FROM done
)
INSERT INTO jobrunner.job_history (
    id, task, args, queue, priority, tags, meta, parent_id, unique_key, created_at, run_at, state, lease, attempt, max_attempts,
    backoff, backoff_base, backoff_cap, backoff_jitter, crash_count, max_crashes, time_limit, soft_time_limit, cpu_limit,
    memory_limit, memory_limit_on_retry, output_limit, max_processes, ordering_key, expires_at, progress, progress_text, checkpoint, last_error_type, last_error, last_error_at,
    worker_id, started_at, finished_at, result, wait_ms, run_ms, cpu_ms, peak_memory)
SELECT id, task, args, queue, priority, tags, meta, parent_id, unique_key, created_at, run_at, 'quarantined', lease, attempt, max_attempts,
    backoff, backoff_base, backoff_cap, backoff_jitter, least(crash_count + 1, 32767)::smallint, max_crashes, time_limit, soft_time_limit, cpu_limit,
    memory_limit, memory_limit_on_retry, output_limit, max_processes, ordering_key, expires_at, progress, progress_text, checkpoint,
    error_type, message, now(),
    worker_id, began_at, now(), NULL, greatest(0, extract(epoch FROM began_at - run_at) * 1000)::bigint, run_ms, cpu_ms, peak_memory
FROM done
RETURNING id
