-- broker_touch: queues are in use: those that expire have their time again. Returns those that exist.
-- Parameters: queues text[]; hold_ms (how long they are kept at least: a consumer is heard of again within that time).
-- Locks: the rows of queues that expire. Index: broker_queues_pkey.
WITH pushed AS (
    UPDATE jobrunner.broker_queues q
    SET expires_at = now() + greatest(q.expires, :'hold_ms'::bigint * interval '1 millisecond')
    WHERE q.name = ANY (:'queues'::text[]) AND (q.expires IS NOT NULL OR q.auto_delete)
)
SELECT q.name FROM jobrunner.broker_queues q WHERE q.name = ANY (:'queues'::text[])
