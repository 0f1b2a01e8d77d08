-- prune_workers: forgets workers that stopped long ago. Changes no job; what they did stays in worker_runs.
-- Parameters: keep_ms; most (rows at once). Guard: stopped, and no job runs under it. Returns the ids.
-- Locks: the rows, SKIP LOCKED. Index: workers_stopped, the oldest first; jobs_running; workers_pkey.
-- Trap avoided: a row whose job was never rescued is the only trace of whose it is.
WITH old AS MATERIALIZED (
    SELECT w.id FROM jobrunner.workers w
    WHERE w.stopped_at < now() - :'keep_ms'::bigint * interval '1 millisecond'
      AND NOT EXISTS (SELECT FROM jobrunner.jobs j WHERE j.worker_id = w.id AND j.state = 'running')
    ORDER BY w.stopped_at LIMIT :'most'::integer
    FOR UPDATE OF w SKIP LOCKED
)
DELETE FROM jobrunner.workers w
WHERE w.id = ANY (ARRAY(SELECT id FROM old))
RETURNING w.id
