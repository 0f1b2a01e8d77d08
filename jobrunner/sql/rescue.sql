-- rescue: running -> queued; the worker was lost and its jobs go back. Counts a crash when the attempt is known to have begun, or might have the
--   first time; a job that crashed before is only begun after start.sql said so, so a neighbour is never blamed twice. Gives the attempt back.
-- Parameters: worker_ids bigint[] (from lost_workers.sql, same transaction, whose row locks keep the fence: their leases are over).
-- Guard: running under a lost worker, crashes left or none counted, no cancel asked. Locks: the rows, SKIP LOCKED: an end of the attempt that
--   is being written may be part of the application's transaction, and nobody may wait for that. Index: jobs_running; then jobs_pkey.
--   Between them rescue, rescue_quarantine and rescue_abort leave no job behind but those; look_again.sql has them looked at soon.
WITH old AS MATERIALIZED (
    SELECT j.id, j.attempt, j.lease, j.worker_id, j.task, j.queue, j.started_at,
           j.started_at IS NOT NULL OR (j.crash_count = 0 AND j.max_crashes > 1) AS counted
    FROM jobrunner.jobs j
    WHERE j.state = 'running' AND j.worker_id = ANY (:'worker_ids'::bigint[])
      AND j.cancel_requested_at IS NULL
      AND (j.crash_count + 1 < j.max_crashes OR NOT (j.started_at IS NOT NULL OR (j.crash_count = 0 AND j.max_crashes > 1)))
    ORDER BY j.id
    FOR UPDATE OF j SKIP LOCKED
), moved AS (
    UPDATE jobrunner.jobs j
    SET state = 'queued', worker_id = NULL, claimed_at = NULL, started_at = NULL, cancel_requested_at = NULL,
        attempt = greatest(j.attempt - 1, 0), crash_count = j.crash_count + old.counted::int,
        last_error_type = CASE WHEN old.counted THEN 'jobrunner.errors.WorkerProcessDied' ELSE j.last_error_type END,
        last_error = CASE WHEN old.counted THEN 'the worker was lost while it held this job' ELSE j.last_error END,
        last_error_at = CASE WHEN old.counted THEN now() ELSE j.last_error_at END,
        run_at = CASE WHEN j.crash_count = 0 OR NOT old.counted THEN j.run_at ELSE
                 now() + jobrunner.backoff_delay(j.backoff, j.backoff_base, j.backoff_cap, j.backoff_jitter, j.crash_count) END
    FROM old
    WHERE j.id = old.id AND j.lease = old.lease AND j.state || '' = 'running'
    RETURNING j.id
), recorded AS (
    INSERT INTO jobrunner.job_attempts (job_id, attempt, lease, worker_id, task, queue, started_at, outcome, error_type, message, exit_cause)
    SELECT old.id, old.attempt, old.lease, old.worker_id, old.task, old.queue, old.started_at,
           CASE WHEN old.counted THEN 'crashed' ELSE 'released' END, CASE WHEN old.counted THEN 'jobrunner.errors.WorkerProcessDied' END,
           'the worker was lost while it held this job', 'lost worker'
    FROM old JOIN moved USING (id)
)
SELECT id FROM moved
