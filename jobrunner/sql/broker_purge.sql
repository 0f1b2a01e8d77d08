-- broker_purge: removes the messages that wait in a queue, those for later too; what consumers hold stays. Returns how many.
-- Parameters: queue. Locks: the rows. Index: broker_messages_claim.
WITH gone AS (
    DELETE FROM jobrunner.broker_messages m WHERE m.queue = :'queue'::text AND m.consumer_id IS NULL
    RETURNING m.id
)
SELECT count(*) FROM gone
