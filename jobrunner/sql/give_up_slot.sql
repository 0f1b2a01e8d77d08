-- give_up_slot: a worker whose lease is over no longer holds its pool's slot; its jobs are rescued as those of any lost worker.
-- Parameters: pool, pool_slot. Guard: the lease has expired by the database's clock. Locks: the worker's row.
-- Index: workers_pool_slot. Run before register_worker.sql, in the same transaction.
WITH lost AS (
    UPDATE jobrunner.workers w
    SET stopped_at = now(), last_exit = 'lost'
    WHERE w.pool = :'pool'::text AND w.pool_slot = :'pool_slot'::integer AND w.stopped_at IS NULL AND w.lease_expires_at <= now()
    RETURNING w.*
)
INSERT INTO jobrunner.worker_runs (worker_id, name, host, pid, kind, pool, pool_slot, version, started_at, reason, claimed_count,
                                   succeeded_count, failed_count, crashed_count)
SELECT id, name, host, pid, kind, pool, pool_slot, version, started_at, 'lost', claimed_count, succeeded_count, failed_count, crashed_count
FROM lost
RETURNING worker_id
