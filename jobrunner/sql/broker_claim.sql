-- broker_claim: gives due messages of one queue to a consumer: the most urgent priority first, in each by (available_at, id).
-- Parameters: consumer_id; queue; take (rows, at most); priority (the only one to look at, or NULL: all); floor_available_at, floor_id
--   (the last key claimed in that priority; '-infinity' and 0 for a look from the start).
-- Guard: the consumer's own lease holds, by the database's clock. Returns the messages; one row of NULLs when the lease does not hold.
-- Locks: the rows taken, SKIP LOCKED. Index: broker_messages_claim, a range for each priority; then broker_messages_pkey.
-- Trap avoided: messages for next month at a more urgent priority are not walked, because each priority is a range of its own. With
--   a snapshot pinned elsewhere a look from the start walks all dead entries; one behind the floor does not. MATERIALIZED, because
--   the planner may else run the LIMIT twice. coalesce() and the array keep the UPDATE on the primary key.
WITH RECURSIVE alive AS MATERIALIZED (
    SELECT c.id FROM jobrunner.broker_consumers c WHERE c.id = :'consumer_id'::bigint AND c.lease_expires_at > now()
), priorities (priority) AS (
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
          AND (m.expires_at IS NULL OR m.expires_at > now()) AND EXISTS (SELECT FROM alive)
        ORDER BY m.available_at, m.id
        LIMIT :'take'::integer
        FOR UPDATE OF m SKIP LOCKED
    ) AS found
    LIMIT :'take'::integer
), claimed AS (
    UPDATE jobrunner.broker_messages m
    SET consumer_id = :'consumer_id'::bigint, claimed_at = now(), lease = m.lease + 1
    WHERE m.id = ANY (ARRAY(SELECT picked.id FROM picked)) AND coalesce(m.consumer_id, 0) = 0
    RETURNING m.id, m.lease, m.priority, m.available_at, m.message::text AS message
)
SELECT claimed.*
FROM (SELECT EXISTS (SELECT FROM alive) AS holds) AS own LEFT JOIN claimed ON true
WHERE claimed.id IS NOT NULL OR NOT own.holds
