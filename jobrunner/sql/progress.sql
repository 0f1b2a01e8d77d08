-- progress: running -> running; what the attempts say of themselves: how far they are, and a value to go on from after a retry.
-- Parameters, arrays of one length: ids, leases bigint[]; fractions float8[] (0 to 1), texts text[], checkpoints text[] (JSON); a NULL
--   leaves what is there.
-- Guard: (id, lease) and running. Returns id and lease of those that were accepted. Locks: the rows, in the order given (callers sort by id).
-- Index: jobs_pkey. No indexed column changes, so that the new row version stays in its page where there is room.
-- Trap avoided: the guesses built into `state || ''` and into the bounds of f.lease (no lease is outside them) keep the planner on
--   jobs_pkey, one probe an id in the order given, whatever the statistics say; else it may walk a whole partial index, dead entries
--   included, or the whole table.
UPDATE jobrunner.jobs j
SET progress = coalesce(f.fraction, j.progress), progress_text = coalesce(f.said, j.progress_text),
    checkpoint = coalesce(f.checkpoint::jsonb, j.checkpoint)
FROM unnest(:'ids'::bigint[], :'leases'::bigint[], :'fractions'::float8[], :'texts'::text[], :'checkpoints'::text[])
     AS f (id, lease, fraction, said, checkpoint)
WHERE j.id = f.id AND j.lease = f.lease AND j.state || '' = 'running' AND f.lease BETWEEN 1 AND 9223372036854775806
RETURNING j.id, j.lease
