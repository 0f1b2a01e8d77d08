-- register_worker: a worker process announces itself; its jobs are safe while it renews the lease.
-- Parameters: name, host, pid, kind, version; queues, tasks text[]; slots; lease_ms; pool and pool_slot (NULL but for a worker that
--   must be the only one of its pool and slot). Returns the id, or no row when another worker holds that slot.
-- Locks: none but its own new row.
-- Index: workers_pool_slot, unique among workers that have not stopped; it holds through poolers and over hosts.
-- Trap avoided: a statement does not see its own changes, so the slot must be free before the INSERT: give_up_slot.sql comes first.
INSERT INTO jobrunner.workers (name, host, pid, kind, version, queues, tasks, slots, lease_expires_at, pool, pool_slot)
VALUES (:'name'::text, :'host'::text, :'pid'::integer, :'kind'::text, :'version'::text, :'queues'::text[], :'tasks'::text[], :'slots'::integer,
        now() + :'lease_ms'::bigint * interval '1 millisecond', :'pool'::text, :'pool_slot'::integer)
ON CONFLICT (pool, pool_slot) WHERE pool IS NOT NULL AND stopped_at IS NULL DO NOTHING
RETURNING id
