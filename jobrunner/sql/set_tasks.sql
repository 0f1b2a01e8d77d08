-- set_tasks: a worker that took its slot before it imported the application says which tasks it can run.
-- Parameters: worker_id; tasks text[]. Guard: the lease holds. No row back means: it was lost meanwhile.
-- Locks: the worker's row. Index: workers_pkey.
UPDATE jobrunner.workers w
SET tasks = :'tasks'::text[]
WHERE w.id = :'worker_id'::bigint AND w.stopped_at IS NULL AND w.lease_expires_at > now()
RETURNING w.id
