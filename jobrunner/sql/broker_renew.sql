-- broker_renew: the heartbeat of consumers, and with it of every message they hold.
-- Parameters: consumer_ids bigint[].
-- Guard: nobody gave the consumer up: its row is there. One that is late and not given up yet goes on. Returns those that do.
-- Locks: the rows; waits for a rescuer that holds one, and then does not find it. Index: broker_consumers_pkey.
UPDATE jobrunner.broker_consumers c
SET heartbeat_at = now(), lease_expires_at = now() + c.lease
WHERE c.id = ANY (:'consumer_ids'::bigint[])
RETURNING c.id
