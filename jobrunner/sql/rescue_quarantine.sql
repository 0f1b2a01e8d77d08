-- rescue_quarantine: running -> quarantined; the worker was lost, and the job was running when that happened once too often.
-- Parameters: worker_ids bigint[] (from lost_workers.sql, same transaction). Run after rescue.sql.
-- Guard: running under a lost worker, no cancel asked for, known to have begun, and no crash left. Locks: the rows, SKIP LOCKED; see
--   rescue.sql. Index: jobs_running; then jobs_pkey.
WITH old AS MATERIALIZED (
    SELECT j.id FROM jobrunner.jobs j
    WHERE j.state = 'running' AND j.worker_id = ANY (:'worker_ids'::bigint[])
      AND j.cancel_requested_at IS NULL AND j.started_at IS NOT NULL AND j.crash_count + 1 >= j.max_crashes
    ORDER BY j.id
    FOR UPDATE OF j SKIP LOCKED
), done AS (
    DELETE FROM jobrunner.jobs j
    WHERE j.id = ANY (ARRAY(SELECT old.id FROM old)) AND j.state || '' = 'running'
    RETURNING j.*
), recorded AS (
    INSERT INTO jobrunner.job_attempts (job_id, attempt, lease, worker_id, task, queue, started_at, outcome, error_type, message, exit_cause)
    SELECT id, attempt, lease, worker_id, task, queue, started_at, 'quarantined', 'jobrunner.errors.WorkerProcessDied', 'the worker was lost while it held this job', 'lost worker'
    FROM done
)
INSERT INTO jobrunner.job_history (
    id, task, args, queue, priority, tags, meta, parent_id, unique_key, created_at, run_at, state, lease, attempt, max_attempts,
    backoff, backoff_base, backoff_cap, backoff_jitter, crash_count, max_crashes, time_limit, soft_time_limit, cpu_limit,
    memory_limit, memory_limit_on_retry, output_limit, max_processes, ordering_key, expires_at, progress, progress_text, checkpoint, last_error_type, last_error, last_error_at,
    worker_id, started_at, finished_at)
SELECT id, task, args, queue, priority, tags, meta, parent_id, unique_key, created_at, run_at, 'quarantined', lease, attempt, max_attempts,
    backoff, backoff_base, backoff_cap, backoff_jitter, least(crash_count + 1, 32767)::smallint, max_crashes, time_limit, soft_time_limit, cpu_limit,
    memory_limit, memory_limit_on_retry, output_limit, max_processes, ordering_key, expires_at, progress, progress_text, checkpoint,
    'jobrunner.errors.WorkerProcessDied', 'the worker was lost while it held this job', now(), worker_id, started_at, now()
FROM done
RETURNING id
