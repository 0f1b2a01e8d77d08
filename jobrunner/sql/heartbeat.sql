-- heartbeat: renews the lease of one worker, and with it of every job it runs; one row however many jobs.
-- Parameters: worker_id; lease_ms; rss_bytes (the supervising process), memory_bytes (with its children); succeeded, failed, crashed,
--   claimed (counts since the worker started); running (JSON text: what each slot runs, or NULL).
-- Guard: the lease has not expired by the database's clock and nobody gave the worker up. No row back means: the lease is lost.
-- Locks: the worker's row; waits for a rescuer that holds it, and then finds the lease lost. Index: workers_pkey.
UPDATE jobrunner.workers w
SET heartbeat_at = now(), lease_expires_at = now() + :'lease_ms'::bigint * interval '1 millisecond', rss_bytes = :'rss_bytes'::bigint,
    memory_bytes = :'memory_bytes'::bigint, succeeded_count = :'succeeded'::bigint, failed_count = :'failed'::bigint,
    crashed_count = :'crashed'::bigint, claimed_count = :'claimed'::bigint, running = :'running'::jsonb
WHERE w.id = :'worker_id'::bigint AND w.stopped_at IS NULL AND w.lease_expires_at > now()
RETURNING w.id
