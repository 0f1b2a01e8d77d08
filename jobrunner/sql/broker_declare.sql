-- broker_declare: a queue is there, with these properties; an expiring one has its whole time again.
-- Parameters: queue; auto_delete; expires_ms (unused for so long, it goes; or NULL); message_ttl_ms (or NULL).
-- Trap avoided: a consumer may have been promised more time than the queue's own; a declaration never takes that away.
-- Locks: the row of the queue, when it is new, expiring or changed. Index: broker_queues_pkey.
INSERT INTO jobrunner.broker_queues AS q (name, auto_delete, expires, expires_at, message_ttl)
VALUES (:'queue'::text, :'auto_delete'::boolean, :'expires_ms'::bigint * interval '1 millisecond',
        now() + :'expires_ms'::bigint * interval '1 millisecond', :'message_ttl_ms'::bigint * interval '1 millisecond')
ON CONFLICT (name) DO UPDATE
SET auto_delete = EXCLUDED.auto_delete, expires = EXCLUDED.expires, message_ttl = EXCLUDED.message_ttl,
    expires_at = CASE WHEN EXCLUDED.expires IS NOT NULL OR EXCLUDED.auto_delete THEN greatest(EXCLUDED.expires_at, q.expires_at) END
WHERE q.expires_at IS NOT NULL
   OR (q.auto_delete, q.expires, q.message_ttl) IS DISTINCT FROM (EXCLUDED.auto_delete, EXCLUDED.expires, EXCLUDED.message_ttl)
RETURNING q.name
