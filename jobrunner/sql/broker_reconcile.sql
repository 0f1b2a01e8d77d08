-- broker_reconcile: gives back what a consumer was given without learning of it: the connection was lost before the answer came.
-- Parameters: consumer_id; known bigint[] (the ids of the messages that it has).
-- Locks: the rows given back. Index: broker_messages_of_consumer, all that the consumer holds. Returns the queues.
UPDATE jobrunner.broker_messages m
SET consumer_id = NULL, claimed_at = NULL
WHERE m.consumer_id = :'consumer_id'::bigint AND m.id <> ALL (:'known'::bigint[])
RETURNING m.queue
