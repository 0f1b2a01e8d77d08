-- broker_put: puts a message into one queue, which is made when it is not there.
-- Parameters: queue; priority; available_at (or NULL: at once); ttl_ms (after which nobody wants it any more, or NULL);
--   task, task_id (of a Celery message, else NULL); message (JSON text); unclaimed_ms (how long a queue made here is kept when nobody
--   declares it or consumes from it).
-- Returns the queue. Locks: none but the new row of the queue, or the one of an undeclared queue a tenth of whose time has passed: then
--   it has its whole time again, or what was sent just now would go with it. Not as part of ON CONFLICT: that locks at every message.
-- Index: broker_queues_pkey.
-- Trap avoided: a message whose queue is not known would be in no list; a queue that is made by the way and kept for ever, in all.
WITH made AS (
    INSERT INTO jobrunner.broker_queues (name, expires, expires_at)
    VALUES (:'queue'::text, :'unclaimed_ms'::bigint * interval '1 millisecond', now() + :'unclaimed_ms'::bigint * interval '1 millisecond')
    ON CONFLICT (name) DO NOTHING
), kept AS (
    UPDATE jobrunner.broker_queues q SET expires_at = now() + q.expires
    WHERE q.name = :'queue'::text AND NOT q.auto_delete AND q.expires = :'unclaimed_ms'::bigint * interval '1 millisecond'
      AND q.expires_at < now() + q.expires * 0.9
)
INSERT INTO jobrunner.broker_messages (queue, priority, available_at, expires_at, task, task_id, message)
SELECT :'queue'::text, :'priority'::smallint, due.at,
       due.at + least(:'ttl_ms'::bigint * interval '1 millisecond',
                      (SELECT q.message_ttl FROM jobrunner.broker_queues q WHERE q.name = :'queue'::text)),
       :'task'::text, :'task_id'::text, :'message'::json
FROM (SELECT greatest(:'available_at'::timestamptz, now()) AS at) AS due
RETURNING queue
