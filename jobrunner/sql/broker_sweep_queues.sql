-- broker_sweep_queues: removes queues that nobody used for their time, with their bindings and messages. Returns their names.
-- Parameters: most (queues at once).
-- Guard: the time is up by the database's clock; looked at again under the lock, because a consumer may just have pushed it on.
-- Locks: the rows, those of queues SKIP LOCKED. Index: broker_queues_expiring, broker_queues_pkey, broker_bindings_of_queue,
--   broker_messages_claim.
WITH unused AS MATERIALIZED (
    SELECT q.name FROM jobrunner.broker_queues q
    WHERE q.expires_at IS NOT NULL AND q.expires_at <= now()
    ORDER BY q.expires_at LIMIT :'most'::integer
    FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM jobrunner.broker_queues q WHERE q.name = ANY (ARRAY(SELECT unused.name FROM unused))
    RETURNING q.name
), unbound AS (
    DELETE FROM jobrunner.broker_bindings b WHERE b.queue = ANY (ARRAY(SELECT gone.name FROM gone))
), emptied AS (
    DELETE FROM jobrunner.broker_messages m WHERE m.queue = ANY (ARRAY(SELECT gone.name FROM gone)) AND m.consumer_id IS NULL
)
SELECT gone.name FROM gone
