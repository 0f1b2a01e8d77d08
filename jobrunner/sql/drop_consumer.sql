-- drop_consumer: forgets the consumer that a pull was given to, once nothing of it is held any more. Changes no job.
-- Parameters: worker_id. Guard: the row of a pull, and no message is held under it: its row is the only trace of whose one is. A process that
--   takes messages keeps its row, whoever settles them: it may be claiming the next one under it, which nobody could rescue without it.
-- Locks: the consumer's row. Index: workers_pkey; jobs_running.
DELETE FROM jobrunner.workers w
WHERE w.id = :'worker_id'::bigint AND w.kind = 'consumer' AND starts_with(w.name, 'pull via ')
  AND (SELECT j.id FROM jobrunner.jobs j WHERE j.worker_id = w.id AND j.state = 'running' LIMIT 1) IS NULL
RETURNING w.id
