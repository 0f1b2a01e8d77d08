-- hold: locks the rows that the statements after it in the same transaction will end. Changes nothing.
-- Parameters: ids, leases bigint[]. Guard: (id, lease) and running. Locks: the rows, in id order. Index: jobs_pkey.
--   A batch of several endings goes through several statements, and each takes what the one before it left: only when all rows are
--   locked beforehand, in one order, can it not deadlock with another bulk change of the same jobs. Those of one statement do so themselves.
-- Trap avoided: the guesses built into `state || ''` and into the bounds of f.lease (no lease is outside them) keep the planner on
--   jobs_pkey, one probe an id, whatever the statistics say; else it may walk a whole partial index, dead entries included, or the
--   whole table.
SELECT j.id
FROM jobrunner.jobs j JOIN unnest(:'ids'::bigint[], :'leases'::bigint[]) AS f (id, lease) ON j.id = f.id AND j.lease = f.lease
WHERE j.state || '' = 'running' AND f.lease BETWEEN 1 AND 9223372036854775806
ORDER BY j.id
FOR UPDATE OF j
