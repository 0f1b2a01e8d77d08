-- stop_worker: the worker leaves in order, after it released what it held; what it did goes on record in worker_runs.
-- Parameters: worker_id; last_exit (why it leaves); exit_code; error (text or NULL); succeeded, failed, crashed, claimed; left_count (jobs
--   still due in its queues, or NULL), next_due_at (of the next one by left_due.sql, or NULL).
-- Guard: not given up already. Locks: the worker's row. Index: workers_pkey.
WITH stopped AS (
    UPDATE jobrunner.workers w
    SET stopped_at = now(), lease_expires_at = now(), heartbeat_at = now(), last_exit = :'last_exit'::text, running = NULL,
        succeeded_count = :'succeeded'::bigint, failed_count = :'failed'::bigint, crashed_count = :'crashed'::bigint,
        claimed_count = :'claimed'::bigint
    WHERE w.id = :'worker_id'::bigint AND w.stopped_at IS NULL
    RETURNING w.*
)
INSERT INTO jobrunner.worker_runs (worker_id, name, host, pid, kind, pool, pool_slot, version, started_at, reason, exit_code, error,
                                   claimed_count, succeeded_count, failed_count, crashed_count, left_count, next_due_at)
SELECT id, name, host, pid, kind, pool, pool_slot, version, started_at, last_exit, :'exit_code'::smallint, :'error'::text,
       claimed_count, succeeded_count, failed_count, crashed_count, :'left_count'::bigint, :'next_due_at'::timestamptz
FROM stopped
RETURNING worker_id
