-- start: running -> running; records that the attempts have begun to execute, and since when.
-- Parameters: ids bigint[], leases bigint[], age_ms bigint[] (how long each has been running).
-- Guard: (id, lease) and running. Written at once for a job that crashed before, and with a heartbeat for one that runs for long;
--   a rescue counts a crash against a job only when it is known to have started (or might be the first time).
-- Locks: the rows, in id order. Index: jobs_pkey.
-- Trap avoided: the guesses built into `state || ''` and into the bounds of f.lease (no lease is outside them) keep the planner on
--   jobs_pkey, one probe an id, whatever the statistics say; else it may walk a whole partial index, dead entries included, or the
--   whole table.
--   Another: a small table is read in the order of its pages, whatever order the ids come in; so the rows are locked first, in id order.
WITH old AS MATERIALIZED (
    SELECT j.id, f.lease, f.age_ms
    FROM jobrunner.jobs j JOIN unnest(:'ids'::bigint[], :'leases'::bigint[], :'age_ms'::bigint[]) AS f (id, lease, age_ms)
         ON j.id = f.id AND j.lease = f.lease
    WHERE j.state || '' = 'running' AND f.lease BETWEEN 1 AND 9223372036854775806
    ORDER BY j.id
    FOR UPDATE OF j
)
UPDATE jobrunner.jobs j
SET started_at = now() - old.age_ms * interval '1 millisecond'
FROM old
WHERE j.id = old.id AND j.lease = old.lease AND j.state || '' = 'running'
RETURNING j.id
