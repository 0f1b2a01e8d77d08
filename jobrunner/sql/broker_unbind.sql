-- broker_unbind: ends bindings of an exchange: one, or all of them.
-- Parameters: exchange; routing_key, queue (or NULL, both: all).
-- Locks: the rows. Index: broker_bindings_pkey.
DELETE FROM jobrunner.broker_bindings b
WHERE b.exchange = :'exchange'::text
  AND (:'queue'::text IS NULL OR (b.queue = :'queue'::text AND b.routing_key = :'routing_key'::text))
RETURNING b.queue
