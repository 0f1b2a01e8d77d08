-- run_now: queued -> queued; makes scheduled and retrying jobs due at once.
-- Parameters: ids bigint[]. Guard: queued. Locks: the rows, in id order. Index: jobs_pkey.
-- Trap avoided: `state || ''` and an array that the planner cannot count keep it on jobs_pkey; else it may walk a whole partial index.
WITH old AS MATERIALIZED (
    SELECT j.id FROM jobrunner.jobs j WHERE j.id = ANY (ARRAY(SELECT unnest(:'ids'::bigint[]))) AND j.state || '' = 'queued' ORDER BY j.id FOR UPDATE
)
UPDATE jobrunner.jobs j
SET run_at = least(j.run_at, now())
FROM old
WHERE j.id = old.id AND j.state || '' = 'queued'
RETURNING j.id, j.queue
