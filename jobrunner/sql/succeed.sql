-- succeed: running -> succeeded; the task returned; moves the rows from jobs to job_history in one statement.
-- Parameters: ids, leases bigint[]; results text[] (JSON text or NULL); run_ms, cpu_ms, age_ms bigint[] (durations measured by the worker;
--   age_ms is how long ago the attempt ended, for the start time by the database's clock); peak_memory bigint[] (bytes).
--   The checkpoint goes: nobody continues what has succeeded.
-- By statement_timestamp(), not now(): a transactional task runs this at the end of its own transaction, which began when it began.
-- Guard: (id, lease) and running; a superseded attempt deletes nothing and so inserts nothing. Returns the ids that were accepted.
-- Locks: the rows, in id order. Index: jobs_pkey.
-- Trap avoided: the guesses built into `state || ''` and into the bounds of f.lease (no lease is outside them) keep the planner on
--   jobs_pkey, one probe an id, whatever the statistics say; else it may walk a whole partial index, dead entries included, or the
--   whole table.
--   Another: a small table is read in the order of its pages, whatever order the ids come in; so the rows are locked first, in id order.
WITH old AS MATERIALIZED (
    SELECT j.id, f.lease, f.result, f.run_ms, f.cpu_ms, f.peak_memory, f.age_ms
    FROM jobrunner.jobs j
    JOIN unnest(:'ids'::bigint[], :'leases'::bigint[], :'results'::text[], :'run_ms'::bigint[], :'cpu_ms'::bigint[], :'peak_memory'::bigint[], :'age_ms'::bigint[])
         AS f (id, lease, result, run_ms, cpu_ms, peak_memory, age_ms) ON j.id = f.id AND j.lease = f.lease
    WHERE j.state || '' = 'running' AND f.lease BETWEEN 1 AND 9223372036854775806
    ORDER BY j.id
    FOR UPDATE OF j
), done AS (
    DELETE FROM jobrunner.jobs j USING old
    WHERE j.id = old.id AND j.lease = old.lease AND j.state || '' = 'running'
    RETURNING j.*, old.result, old.run_ms, old.cpu_ms, old.peak_memory,
              statement_timestamp() - (old.run_ms + old.age_ms) * interval '1 millisecond' AS began_at
)
INSERT INTO jobrunner.job_history (
    id, task, args, queue, priority, tags, meta, parent_id, unique_key, created_at, run_at, state, lease, attempt, max_attempts,
    backoff, backoff_base, backoff_cap, backoff_jitter, crash_count, max_crashes, time_limit, soft_time_limit, cpu_limit,
    memory_limit, memory_limit_on_retry, output_limit, max_processes, ordering_key, expires_at, progress, progress_text, checkpoint, last_error_type, last_error, last_error_at,
    worker_id, started_at, finished_at, result, wait_ms, run_ms, cpu_ms, peak_memory)
SELECT id, task, args, queue, priority, tags, meta, parent_id, unique_key, created_at, run_at, 'succeeded', lease, attempt, max_attempts,
    backoff, backoff_base, backoff_cap, backoff_jitter, 0, max_crashes, time_limit, soft_time_limit, cpu_limit,
    memory_limit, memory_limit_on_retry, output_limit, max_processes, ordering_key, expires_at, progress, progress_text, NULL, last_error_type, last_error, last_error_at,
    worker_id, began_at, statement_timestamp(), result::jsonb, greatest(0, extract(epoch FROM began_at - run_at) * 1000)::bigint, run_ms, cpu_ms, peak_memory
FROM done
RETURNING id
