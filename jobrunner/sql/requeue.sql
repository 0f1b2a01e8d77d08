-- requeue: failed, cancelled or quarantined -> queued; brings finished jobs back with their id, lease and attempts record.
-- Parameters: ids bigint[]. The crash count starts again at 0 and one more attempt is allowed when none is left. A job that has expired does
--   not expire again; one with an ordering key has its old place, before those that came after it.
-- Guard: finished without success; succeeded jobs stay (a rerun is a new job). Raises 23505 when a live job holds the unique key.
-- Locks: the history rows, in id order. Index: job_history_pkey of each partition.
-- Trap avoided: `state || ''` and an array that the planner cannot count keep it on job_history_pkey; else it may walk a whole partial index.
WITH held AS MATERIALIZED (
    SELECT h.id FROM jobrunner.job_history h
    WHERE h.id = ANY (ARRAY(SELECT unnest(:'ids'::bigint[]))) AND h.state || '' IN ('failed', 'cancelled', 'quarantined')
    ORDER BY h.id
    FOR UPDATE
), old AS (
    DELETE FROM jobrunner.job_history h
    WHERE h.id = ANY (ARRAY(SELECT id FROM held)) AND h.state || '' IN ('failed', 'cancelled', 'quarantined')
    RETURNING h.*
)
INSERT INTO jobrunner.jobs (
    id, task, args, queue, priority, tags, meta, parent_id, unique_key, created_at, run_at, state, lease, attempt, max_attempts,
    backoff, backoff_base, backoff_cap, backoff_jitter, crash_count, max_crashes, time_limit, soft_time_limit, cpu_limit,
    memory_limit, memory_limit_on_retry, output_limit, max_processes, ordering_key, expires_at, progress, progress_text, checkpoint, last_error_type, last_error, last_error_at)
SELECT id, task, args, queue, priority, tags, meta, parent_id, unique_key, created_at, now(), 'queued', lease, least(attempt, 32766)::smallint,
    greatest(max_attempts, least(attempt, 32766) + 1)::smallint,
    backoff, backoff_base, backoff_cap, backoff_jitter, 0, max_crashes, time_limit, soft_time_limit, cpu_limit,
    memory_limit, memory_limit_on_retry, output_limit, max_processes, ordering_key,
    CASE WHEN expires_at > now() THEN expires_at END, progress, progress_text, checkpoint, last_error_type, last_error, last_error_at
FROM old
RETURNING id, queue
