-- broker_leave: a consumer ends, and what it holds goes back to the queues.
-- Parameters: consumer_id.
-- Returns the queues. Locks: the consumer's row and those of its messages. Index: broker_consumers_pkey, broker_messages_of_consumer.
WITH gone AS (
    DELETE FROM jobrunner.broker_consumers c WHERE c.id = :'consumer_id'::bigint
), freed AS (
    UPDATE jobrunner.broker_messages m SET consumer_id = NULL, claimed_at = NULL
    WHERE m.consumer_id = :'consumer_id'::bigint
    RETURNING m.queue
)
SELECT DISTINCT freed.queue FROM freed
