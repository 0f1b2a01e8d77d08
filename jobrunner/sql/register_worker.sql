-- register_worker: a worker process announces itself; its jobs are safe while it renews the lease.
-- Parameters: name, host, pid, kind, version; queues, tasks text[]; slots; lease_ms. Returns the id.
-- Locks: none but its own new row.
INSERT INTO jobrunner.workers (name, host, pid, kind, version, queues, tasks, slots, lease_expires_at)
VALUES (:'name'::text, :'host'::text, :'pid'::integer, :'kind'::text, :'version'::text, :'queues'::text[], :'tasks'::text[], :'slots'::integer,
        now() + :'lease_ms'::bigint * interval '1 millisecond')
RETURNING id
