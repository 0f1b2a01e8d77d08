-- drop_consumer: forgets the consumer that a pull was given to, once nothing of it is held any more. Changes no job.
-- Parameters: worker_id. Guard: a consumer, and no message is held under it: its row is the only trace of whose one is.
-- Locks: the consumer's row. Index: workers_pkey; jobs_running.
DELETE FROM jobrunner.workers w
WHERE w.id = :'worker_id'::bigint AND w.kind = 'consumer'
  AND (SELECT j.id FROM jobrunner.jobs j WHERE j.worker_id = w.id AND j.state = 'running' LIMIT 1) IS NULL
RETURNING w.id
