-- heartbeat: renews the lease of one worker, and with it of every job it runs; one row however many jobs.
-- Parameters: worker_id; lease_ms; rss_bytes; succeeded, failed, crashed (counts since the worker started).
-- Guard: the lease has not expired by the database's clock and nobody gave the worker up. No row back means: the lease is lost.
-- Locks: the worker's row; waits for a rescuer that holds it, and then finds the lease lost. Index: workers_pkey.
UPDATE jobrunner.workers w
SET heartbeat_at = now(), lease_expires_at = now() + :'lease_ms'::bigint * interval '1 millisecond', rss_bytes = :'rss_bytes'::bigint,
    succeeded_count = :'succeeded'::bigint, failed_count = :'failed'::bigint, crashed_count = :'crashed'::bigint
WHERE w.id = :'worker_id'::bigint AND w.stopped_at IS NULL AND w.lease_expires_at > now()
RETURNING w.id
