-- stop_worker: the worker leaves in order, after it released what it held.
-- Parameters: worker_id; last_exit; succeeded, failed, crashed.
-- Guard: not given up already. Locks: the worker's row. Index: workers_pkey.
UPDATE jobrunner.workers w
SET stopped_at = now(), lease_expires_at = now(), heartbeat_at = now(), last_exit = :'last_exit'::text,
    succeeded_count = :'succeeded'::bigint, failed_count = :'failed'::bigint, crashed_count = :'crashed'::bigint
WHERE w.id = :'worker_id'::bigint AND w.stopped_at IS NULL
RETURNING w.id
