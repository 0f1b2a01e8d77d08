-- expire: queued -> cancelled; a job that was not begun before it expired moves to job_history, which says so.
-- Parameters: most (rows at once). Guard: queued and expired, by the database's clock. Locks: the rows, SKIP LOCKED: one that is being claimed or
--   cancelled is theirs. Index: jobs_expiring, from its start; then jobs_pkey.
-- Trap avoided: `state || ''` and an array that the planner cannot count keep the DELETE on jobs_pkey; else it may walk a whole partial index.
WITH old AS MATERIALIZED (
    SELECT j.id FROM jobrunner.jobs j
    WHERE j.state = 'queued' AND j.expires_at <= now()
    ORDER BY j.expires_at LIMIT :'most'::integer
    FOR UPDATE OF j SKIP LOCKED
), done AS (
    DELETE FROM jobrunner.jobs j WHERE j.id = ANY (ARRAY(SELECT old.id FROM old)) AND j.state || '' = 'queued' RETURNING j.*
)
INSERT INTO jobrunner.job_history (
    id, task, args, queue, priority, tags, meta, parent_id, unique_key, created_at, run_at, state, lease, attempt, max_attempts,
    backoff, backoff_base, backoff_cap, backoff_jitter, crash_count, max_crashes, time_limit, soft_time_limit, cpu_limit,
    memory_limit, memory_limit_on_retry, output_limit, max_processes, ordering_key, expires_at, progress, progress_text, checkpoint, last_error_type, last_error, last_error_at,
    worker_id, started_at, finished_at)
SELECT id, task, args, queue, priority, tags, meta, parent_id, unique_key, created_at, run_at, 'cancelled', lease, attempt, max_attempts,
    backoff, backoff_base, backoff_cap, backoff_jitter, crash_count, max_crashes, time_limit, soft_time_limit, cpu_limit,
    memory_limit, memory_limit_on_retry, output_limit, max_processes, ordering_key, expires_at, progress, progress_text, checkpoint,
    'jobrunner.errors.JobExpired', 'the job expired before it was begun', now(),
    NULL, NULL, now()
FROM done
RETURNING id
