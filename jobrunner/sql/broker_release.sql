-- broker_release: gives messages back to their queues, where they are due at once, in their old places.
-- Parameters, arrays of one length: ids, leases (of the deliveries).
-- Guard: (id, lease), and still held. Returns the queues. Locks: the rows. Index: broker_messages_pkey.
UPDATE jobrunner.broker_messages m
SET consumer_id = NULL, claimed_at = NULL
WHERE m.id = ANY (:'ids'::bigint[]) AND m.lease = (:'leases'::bigint[])[array_position(:'ids'::bigint[], m.id)]
  AND coalesce(m.consumer_id, 0) <> 0
RETURNING m.queue
