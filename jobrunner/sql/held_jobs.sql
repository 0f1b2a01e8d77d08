-- held_jobs: what the database thinks a worker is running, and whether somebody asked to cancel it. Writes nothing.
-- Parameters: worker_id. Index: jobs_running.
-- After a lost connection the worker compares this with what it knows: a claim whose answer never arrived is released.
SELECT j.id, j.lease, j.cancel_requested_at IS NOT NULL AS cancel_requested
FROM jobrunner.jobs j
WHERE j.state = 'running' AND j.worker_id = :'worker_id'::bigint
