-- lost_workers: marks workers whose lease has expired and returns their ids; rescue*.sql in the same transaction take their jobs.
--   What a lost one did goes on record in worker_runs. newly_lost is false for a worker that is only looked at again, be it one that left in order.
-- Parameters: none. Guard: the database's clock. Locks: the worker rows, SKIP LOCKED: one rescuer each, nobody waits.
-- Index: workers_alive, workers_stopped; workers_pkey. A worker that stopped lately is looked at again once a minute: a claim of its
--   own that committed just after it was given up would otherwise hold its jobs for ever.
-- Trap avoided: every worker runs this every few seconds, over all worker rows there ever were. Two ranges, each with its own index,
--   and an array of ids in place of a join: the planner takes the indexes whatever the statistics say. The upper bound on
--   stopped_at changes nothing; without it the planner expects a third of the table.
WITH expired AS MATERIALIZED (
    SELECT c.id FROM jobrunner.workers c
    WHERE c.stopped_at IS NULL AND c.lease_expires_at <= now()
    ORDER BY c.lease_expires_at
    FOR UPDATE SKIP LOCKED
), stopped AS MATERIALIZED (
    SELECT c.id FROM jobrunner.workers c
    WHERE c.stopped_at > now() - interval '15 minutes' AND c.stopped_at < now() + interval '15 minutes'
      AND (c.rescued_at IS NULL OR c.rescued_at < now() - interval '1 minute')
    ORDER BY c.stopped_at
    FOR UPDATE SKIP LOCKED
), given_up AS (
    UPDATE jobrunner.workers w
    SET stopped_at = coalesce(w.stopped_at, now()), last_exit = coalesce(w.last_exit, 'lost'), rescued_at = now()
    WHERE w.id = ANY (ARRAY(SELECT id FROM expired UNION ALL SELECT id FROM stopped))
    RETURNING w.*, w.stopped_at = now() AS newly_lost
), recorded AS (
    INSERT INTO jobrunner.worker_runs (worker_id, name, host, pid, kind, pool, pool_slot, version, started_at, reason, claimed_count,
                                       succeeded_count, failed_count, crashed_count)
    SELECT id, name, host, pid, kind, pool, pool_slot, version, started_at, 'lost', claimed_count, succeeded_count, failed_count, crashed_count
    FROM given_up WHERE newly_lost
)
SELECT id, name, newly_lost FROM given_up
