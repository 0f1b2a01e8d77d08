-- broker_sweep_messages: removes messages that nobody wanted in time. Returns how many.
-- Parameters: most (rows at once).
-- Locks: the rows, SKIP LOCKED. Index: broker_messages_expiring, then broker_messages_pkey.
WITH late AS MATERIALIZED (
    SELECT m.id FROM jobrunner.broker_messages m
    WHERE m.expires_at IS NOT NULL AND m.expires_at <= now() AND m.consumer_id IS NULL
    ORDER BY m.expires_at LIMIT :'most'::integer
    FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM jobrunner.broker_messages m WHERE m.id = ANY (ARRAY(SELECT late.id FROM late))
    RETURNING m.id
)
SELECT count(*) FROM gone
