-- hold_lost: locks the running jobs of lost workers, for rescue*.sql in the same transaction, which end them one kind after the other.
-- Parameters: worker_ids bigint[] (from lost_workers.sql, same transaction). Guard: running under one of them. Changes nothing.
-- Locks: the rows, in id order (see hold.sql). Index: jobs_running.
SELECT j.id FROM jobrunner.jobs j
WHERE j.state = 'running' AND j.worker_id = ANY (:'worker_ids'::bigint[])
ORDER BY j.id
FOR UPDATE
