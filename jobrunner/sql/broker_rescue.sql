-- broker_rescue: gives up consumers whose lease has expired; what they held goes back to the queues.
-- Parameters: most (consumers at once).
-- Guard: the lease has expired by the database's clock, and the server has been up for a lease: after a restart nobody could renew.
-- Returns each queue with the number of its messages that came back.
-- Locks: the rows of the consumers, SKIP LOCKED (one that is renewing at this moment is alive), and of their messages.
-- Index: broker_consumers_lease_ends; broker_messages_of_consumer, one probe for each consumer that holds messages.
-- Trap avoided: a claim that began before its lease ended may commit when its consumer has been given up: messages of a consumer that
--   is no more are found by themselves.
WITH RECURSIVE lost AS MATERIALIZED (
    SELECT c.id FROM jobrunner.broker_consumers c
    WHERE c.lease_expires_at <= now() AND pg_postmaster_start_time() + c.lease <= now()
    ORDER BY c.lease_expires_at LIMIT :'most'::integer
    FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM jobrunner.broker_consumers c WHERE c.id = ANY (ARRAY(SELECT lost.id FROM lost))
), holders (id) AS (
    SELECT (SELECT min(m.consumer_id) FROM jobrunner.broker_messages m WHERE m.consumer_id IS NOT NULL)
    UNION ALL
    SELECT (SELECT min(m.consumer_id) FROM jobrunner.broker_messages m WHERE m.consumer_id > h.id)
    FROM holders h WHERE h.id IS NOT NULL
), nobody AS MATERIALIZED (
    SELECT h.id FROM holders h
    WHERE h.id IS NOT NULL AND NOT EXISTS (SELECT FROM jobrunner.broker_consumers c WHERE c.id = h.id)
), freed AS (
    UPDATE jobrunner.broker_messages m SET consumer_id = NULL, claimed_at = NULL
    WHERE m.consumer_id = ANY (ARRAY(SELECT lost.id FROM lost UNION ALL SELECT nobody.id FROM nobody))
    RETURNING m.queue
)
SELECT freed.queue, count(*) FROM freed GROUP BY freed.queue
