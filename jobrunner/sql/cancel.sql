-- cancel: queued -> cancelled; a waiting job is called off and moves to job_history. Running jobs: request_cancel.sql.
-- Parameters: ids bigint[]. Guard: queued. Locks: the rows, in id order. Index: jobs_pkey.
-- Trap avoided: `state || ''` and an array that the planner cannot count keep it on jobs_pkey; else it may walk a whole partial index.
WITH old AS MATERIALIZED (
    SELECT j.id FROM jobrunner.jobs j
    WHERE j.id = ANY (ARRAY(SELECT unnest(:'ids'::bigint[]))) AND j.state || '' = 'queued'
    ORDER BY j.id
    FOR UPDATE
), done AS (
    DELETE FROM jobrunner.jobs j USING old WHERE j.id = old.id AND j.state || '' = 'queued' RETURNING j.*
)
INSERT INTO jobrunner.job_history (
    id, task, args, queue, priority, tags, meta, parent_id, unique_key, created_at, run_at, state, lease, attempt, max_attempts,
    backoff, backoff_base, backoff_cap, backoff_jitter, crash_count, max_crashes, time_limit, soft_time_limit, cpu_limit,
    memory_limit, memory_limit_on_retry, output_limit, max_processes, ordering_key, expires_at, progress, progress_text, checkpoint, last_error_type, last_error, last_error_at,
    worker_id, started_at, finished_at)
SELECT id, task, args, queue, priority, tags, meta, parent_id, unique_key, created_at, run_at, 'cancelled', lease, attempt, max_attempts,
    backoff, backoff_base, backoff_cap, backoff_jitter, crash_count, max_crashes, time_limit, soft_time_limit, cpu_limit,
    memory_limit, memory_limit_on_retry, output_limit, max_processes, ordering_key, expires_at, progress, progress_text, checkpoint, last_error_type, last_error, last_error_at,
    NULL, NULL, now()
FROM done
RETURNING id
