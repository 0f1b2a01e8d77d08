-- prune_worker_runs: forgets runs of workers that ended long ago. Changes no job.
-- Parameters: keep_ms; most (rows at once). Guard: none but its age. Returns the ids.
-- Locks: the rows, SKIP LOCKED. Index: worker_runs_recent, from its end; worker_runs_pkey.
WITH old AS MATERIALIZED (
    SELECT r.id FROM jobrunner.worker_runs r
    WHERE r.finished_at < now() - :'keep_ms'::bigint * interval '1 millisecond'
    ORDER BY r.finished_at, r.id LIMIT :'most'::integer
    FOR UPDATE OF r SKIP LOCKED
)
DELETE FROM jobrunner.worker_runs r
WHERE r.id = ANY (ARRAY(SELECT id FROM old))
RETURNING r.id
