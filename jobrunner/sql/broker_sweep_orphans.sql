-- broker_sweep_orphans: removes messages whose queue is no more: they were on their way when it was deleted. Returns how many.
-- Parameters: most (rows at once).
-- Locks: the rows, SKIP LOCKED. Index: broker_messages_claim, one probe for each queue; broker_queues_pkey; broker_messages_pkey.
WITH RECURSIVE named (name) AS (
    SELECT (SELECT m.queue FROM jobrunner.broker_messages m WHERE m.consumer_id IS NULL ORDER BY m.queue LIMIT 1)
    UNION ALL
    SELECT (SELECT m.queue FROM jobrunner.broker_messages m WHERE m.consumer_id IS NULL AND m.queue > n.name ORDER BY m.queue LIMIT 1)
    FROM named n WHERE n.name IS NOT NULL
), orphans AS MATERIALIZED (
    SELECT found.id
    FROM named n CROSS JOIN LATERAL (
        SELECT m.id FROM jobrunner.broker_messages m
        WHERE m.queue = n.name AND m.consumer_id IS NULL LIMIT :'most'::integer
        FOR UPDATE OF m SKIP LOCKED
    ) AS found
    WHERE n.name IS NOT NULL AND NOT EXISTS (SELECT FROM jobrunner.broker_queues q WHERE q.name = n.name)
    LIMIT :'most'::integer
), gone AS (
    DELETE FROM jobrunner.broker_messages m WHERE m.id = ANY (ARRAY(SELECT orphans.id FROM orphans))
    RETURNING m.id
)
SELECT count(*) FROM gone
