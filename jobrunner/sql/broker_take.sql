-- broker_take: hands out and removes due messages of one queue, for a consumer that does not acknowledge.
-- Parameters: queue; take (rows, at most); priority (the only one to look at, or NULL: all); floor_available_at, floor_id (the last key
--   taken in that priority; '-infinity' and 0 for a look from the start).
-- Locks: the rows taken, SKIP LOCKED. Index: broker_messages_claim, a range for each priority; then broker_messages_pkey.
-- Trap avoided: as in broker_claim.
WITH RECURSIVE priorities (priority) AS (
    SELECT coalesce(:'priority'::smallint, (
        SELECT m.priority FROM jobrunner.broker_messages m
        WHERE m.queue = :'queue'::text AND m.consumer_id IS NULL ORDER BY m.priority DESC LIMIT 1))
    UNION ALL
    SELECT (
        SELECT m.priority FROM jobrunner.broker_messages m
        WHERE m.queue = :'queue'::text AND m.consumer_id IS NULL AND m.priority < p.priority ORDER BY m.priority DESC LIMIT 1)
    FROM priorities p WHERE p.priority IS NOT NULL AND :'priority'::smallint IS NULL
), picked AS MATERIALIZED (
    SELECT found.id
    FROM priorities p CROSS JOIN LATERAL (
        SELECT m.id FROM jobrunner.broker_messages m
        WHERE m.queue = :'queue'::text AND m.priority = p.priority AND m.consumer_id IS NULL AND m.available_at <= now()
          AND (m.available_at, m.id) > (:'floor_available_at'::timestamptz, :'floor_id'::bigint)
          AND (m.expires_at IS NULL OR m.expires_at > now())
        ORDER BY m.available_at, m.id
        LIMIT :'take'::integer
        FOR UPDATE OF m SKIP LOCKED
    ) AS found
    LIMIT :'take'::integer
)
DELETE FROM jobrunner.broker_messages m
WHERE m.id = ANY (ARRAY(SELECT picked.id FROM picked))
RETURNING m.id, m.lease + 1, m.priority, m.available_at, m.message::text
