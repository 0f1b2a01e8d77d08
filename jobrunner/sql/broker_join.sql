-- broker_join: a new consumer with a lease.
-- Parameters: host; pid; queues text[] (for people to read); lease_ms.
-- Returns its id, which is never given twice. Locks: none.
INSERT INTO jobrunner.broker_consumers (host, pid, queues, lease, lease_expires_at)
VALUES (:'host'::text, :'pid'::integer, :'queues'::text[], :'lease_ms'::bigint * interval '1 millisecond',
        now() + :'lease_ms'::bigint * interval '1 millisecond')
RETURNING id
