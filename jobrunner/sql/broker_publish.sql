-- broker_publish: puts a message into every queue that is bound to its exchange and fits its routing key, once each.
-- Parameters: exchange; routing_key; priority; available_at (or NULL: at once); ttl_ms (after which nobody wants it any more, or NULL);
--   task, task_id (of a Celery message, else NULL); message (JSON text).
-- Returns the queues. Locks: none. Index: broker_bindings_pkey, the bindings of one exchange; broker_queues_pkey.
-- Trap avoided: a binding counts only with its queue, so that what is sent to a client that has gone is no row for ever.
INSERT INTO jobrunner.broker_messages (queue, priority, available_at, expires_at, task, task_id, message)
SELECT q.name, :'priority'::smallint, due.at,
       due.at + least(:'ttl_ms'::bigint * interval '1 millisecond', q.message_ttl), :'task'::text, :'task_id'::text, :'message'::json
FROM (
    SELECT DISTINCT b.queue FROM jobrunner.broker_bindings b
    WHERE b.exchange = :'exchange'::text
      AND CASE b.kind WHEN 'fanout' THEN true WHEN 'direct' THEN b.routing_key = :'routing_key'::text
                      ELSE '.' || :'routing_key'::text ~ b.pattern END
) AS bound
JOIN jobrunner.broker_queues q ON q.name = bound.queue
CROSS JOIN (SELECT greatest(:'available_at'::timestamptz, now()) AS at) AS due
RETURNING queue
