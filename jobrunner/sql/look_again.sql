-- look_again: has lost workers that hold a job still looked at in 5 seconds, and not in a minute. Changes no job.
-- Parameters: worker_ids bigint[] (from lost_workers.sql, same transaction). Run after rescue*.sql, which go past what somebody has locked: the end
--   of such an attempt may be written in a transaction that is open for as long as the application likes, and may then be rolled back.
-- Guard: a job runs under it. Locks: none that lost_workers.sql has not taken. Index: workers_pkey; jobs_running.
-- Trap avoided: lost_workers looks a quarter of an hour back. While something is held, the worker counts as one that has just stopped.
--   And not at once: every worker and consumer asks once a second, and would write here each time for as long as such a transaction is open.
UPDATE jobrunner.workers w
SET rescued_at = now() - interval '55 seconds', stopped_at = CASE WHEN w.stopped_at > now() - interval '10 minutes' THEN w.stopped_at ELSE now() END
WHERE w.id = ANY (:'worker_ids'::bigint[])
  AND (SELECT j.id FROM jobrunner.jobs j WHERE j.worker_id = w.id AND j.state = 'running' LIMIT 1) IS NOT NULL
RETURNING w.id
