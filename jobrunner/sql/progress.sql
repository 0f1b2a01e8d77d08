-- progress: running -> running; what the attempts say of themselves: how far they are, and a value to go on from after a retry.
-- Parameters, arrays of one length: ids, leases bigint[]; fractions float8[] (0 to 1), texts text[], checkpoints text[] (JSON); a NULL
--   leaves what is there.
-- Guard: (id, lease) and running. Returns id and lease of those that were accepted. Locks: the rows, in id order.
-- Index: jobs_pkey. No indexed column changes, so that the new row version stays in its page where there is room.
-- Trap avoided: the guesses built into `state || ''` and into the bounds of f.lease (no lease is outside them) keep the planner on
--   jobs_pkey, one probe an id, whatever the statistics say; else it may walk a whole partial index, dead entries included, or the
--   whole table.
--   Another: a small table is read in the order of its pages, whatever order the ids come in; so the rows are locked first, in id order.
WITH old AS MATERIALIZED (
    SELECT j.id, f.lease, f.fraction, f.said, f.checkpoint
    FROM jobrunner.jobs j
    JOIN unnest(:'ids'::bigint[], :'leases'::bigint[], :'fractions'::float8[], :'texts'::text[], :'checkpoints'::text[])
         AS f (id, lease, fraction, said, checkpoint) ON j.id = f.id AND j.lease = f.lease
    WHERE j.state || '' = 'running' AND f.lease BETWEEN 1 AND 9223372036854775806
    ORDER BY j.id
    FOR UPDATE OF j
)
UPDATE jobrunner.jobs j
SET progress = coalesce(old.fraction, j.progress), progress_text = coalesce(old.said, j.progress_text),
    checkpoint = coalesce(old.checkpoint::jsonb, j.checkpoint)
FROM old
WHERE j.id = old.id AND j.lease = old.lease AND j.state || '' = 'running'
RETURNING j.id, j.lease
