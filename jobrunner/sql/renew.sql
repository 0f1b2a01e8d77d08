-- renew: holds the messages of one pull for longer, by the receipt of one of them. Changes no job.
-- Parameters: id, lease (of the message); lease_ms (from now on). A row back means: it is held. A lease never becomes shorter by this.
-- Guard: (id, lease) and running, under the row of a pull whose lease holds by the database's clock. A process renews its own row: with a longer
--   lease its death would be noticed later. Locks: the consumer's row.
-- Index: jobs_pkey; workers_pkey.
-- Trap avoided: `state || ''` keeps the planner on jobs_pkey.
UPDATE jobrunner.workers w
SET heartbeat_at = now(), lease_expires_at = greatest(w.lease_expires_at, now() + :'lease_ms'::bigint * interval '1 millisecond')
WHERE w.id = (SELECT j.worker_id FROM jobrunner.jobs j WHERE j.id = :'id'::bigint AND j.lease = :'lease'::bigint AND j.state || '' = 'running')
  AND w.kind = 'consumer' AND starts_with(w.name, 'pull via ') AND w.stopped_at IS NULL AND w.lease_expires_at > now()
RETURNING w.id
