-- request_cancel: running -> running; asks the worker to end the attempts. It looks for this once a second.
-- Parameters: ids bigint[]. Guard: running. Locks: the rows, in id order. Index: jobs_pkey.
-- Trap avoided: `state || ''` and an array that the planner cannot count keep it on jobs_pkey; else it may walk a whole partial index.
WITH old AS MATERIALIZED (
    SELECT j.id FROM jobrunner.jobs j WHERE j.id = ANY (ARRAY(SELECT unnest(:'ids'::bigint[]))) AND j.state || '' = 'running' ORDER BY j.id FOR UPDATE
)
UPDATE jobrunner.jobs j
SET cancel_requested_at = coalesce(j.cancel_requested_at, now())
FROM old
WHERE j.id = old.id AND j.state || '' = 'running'
RETURNING j.id
