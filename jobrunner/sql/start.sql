-- start: running -> running; records that the attempts have begun to execute, and since when.
-- Parameters: ids bigint[], leases bigint[], age_ms bigint[] (how long each has been running).
-- Guard: (id, lease) and running. Written at once for a job that crashed before, and with a heartbeat for one that runs for long;
--   a rescue counts a crash against a job only when it is known to have started (or might be the first time).
-- Locks: the rows, in the order given (callers sort by id). Index: jobs_pkey.
-- Trap avoided: the guesses built into `state || ''` and into the bounds of f.lease (no lease is outside them) keep the planner on
--   jobs_pkey, one probe an id in the order given, whatever the statistics say; else it may walk a whole partial index, dead entries
--   included, or the whole table.
UPDATE jobrunner.jobs j
SET started_at = now() - f.age_ms * interval '1 millisecond'
FROM unnest(:'ids'::bigint[], :'leases'::bigint[], :'age_ms'::bigint[]) AS f (id, lease, age_ms)
WHERE j.id = f.id AND j.lease = f.lease AND j.state || '' = 'running' AND f.lease BETWEEN 1 AND 9223372036854775806
RETURNING j.id
