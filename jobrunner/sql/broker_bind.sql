-- broker_bind: messages of an exchange go to a queue, which is made when it is not there.
-- Parameters: exchange; routing_key; queue; kind (direct, topic or fanout); pattern (of a topic, as a regular expression on
--   '.' || routing key; else NULL); unclaimed_ms (as in broker_put).
-- Locks: the new rows. Index: broker_queues_pkey, broker_bindings_pkey.
-- Trap avoided: an expiring queue may be swept between its declaration and this.
WITH made AS (
    INSERT INTO jobrunner.broker_queues (name, expires, expires_at)
    VALUES (:'queue'::text, :'unclaimed_ms'::bigint * interval '1 millisecond', now() + :'unclaimed_ms'::bigint * interval '1 millisecond')
    ON CONFLICT (name) DO NOTHING
)
INSERT INTO jobrunner.broker_bindings AS b (exchange, routing_key, queue, kind, pattern)
VALUES (:'exchange'::text, :'routing_key'::text, :'queue'::text, :'kind'::text, :'pattern'::text)
ON CONFLICT (exchange, routing_key, queue) DO UPDATE SET kind = EXCLUDED.kind, pattern = EXCLUDED.pattern
WHERE (b.kind, b.pattern) IS DISTINCT FROM (EXCLUDED.kind, EXCLUDED.pattern)
RETURNING b.queue
