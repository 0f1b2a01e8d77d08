-- broker_delete_queue: removes a queue with its bindings and the messages that wait in it. Returns whether there is no such queue now, removed
--   or not there before.
-- Parameters: queue; if_empty (only when none waits); if_unused (only when no living consumer began with it).
-- Locks: the rows of the queue, of its bindings and messages. Index: broker_queues_pkey, broker_bindings_of_queue, broker_messages_claim.
-- Consumers are few, and read one after the other.
WITH gone AS (
    DELETE FROM jobrunner.broker_queues q
    WHERE q.name = :'queue'::text AND NOT (:'if_empty'::boolean AND EXISTS (
        SELECT FROM jobrunner.broker_messages m WHERE m.queue = :'queue'::text AND m.consumer_id IS NULL))
      AND NOT (:'if_unused'::boolean AND EXISTS (
        SELECT FROM jobrunner.broker_consumers c WHERE :'queue'::text = ANY (c.queues) AND c.lease_expires_at > now()))
    RETURNING q.name
), unbound AS (
    DELETE FROM jobrunner.broker_bindings b WHERE b.queue = :'queue'::text AND EXISTS (SELECT FROM gone)
), emptied AS (
    DELETE FROM jobrunner.broker_messages m
    WHERE m.queue = :'queue'::text AND m.consumer_id IS NULL AND EXISTS (SELECT FROM gone)
)
SELECT EXISTS (SELECT FROM gone) OR NOT EXISTS (SELECT FROM jobrunner.broker_queues q WHERE q.name = :'queue'::text) AS is_gone
