-- broker_size: how many messages wait in a queue, those for later too and without those that consumers hold; and whether it is known.
-- Writes nothing.
-- Parameters: queue; most (where the counting stops). Index: broker_messages_claim, broker_queues_pkey.
SELECT (SELECT count(*) FROM (
            SELECT FROM jobrunner.broker_messages m WHERE m.queue = :'queue'::text AND m.consumer_id IS NULL LIMIT :'most'::bigint
        ) AS waiting),
       EXISTS (SELECT FROM jobrunner.broker_queues q WHERE q.name = :'queue'::text)
