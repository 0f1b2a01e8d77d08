-- broker_bindings: the bindings of an exchange, or of all of them. Writes nothing.
-- Parameters: exchange (or NULL: all). Index: broker_bindings_pkey.
SELECT b.exchange, b.routing_key, b.pattern, b.queue FROM jobrunner.broker_bindings b
WHERE :'exchange'::text IS NULL OR b.exchange = :'exchange'::text
ORDER BY b.exchange, b.routing_key, b.queue
