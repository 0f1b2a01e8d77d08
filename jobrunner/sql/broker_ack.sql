-- broker_ack: removes messages that were acknowledged, or rejected for good.
-- Parameters, arrays of one length: ids, leases (of the deliveries).
-- Guard: (id, lease): nobody was given the message since. No row back for one means: somebody was, and the message is theirs.
-- Locks: the rows. Index: broker_messages_pkey.
DELETE FROM jobrunner.broker_messages m
WHERE m.id = ANY (:'ids'::bigint[]) AND m.lease = (:'leases'::bigint[])[array_position(:'ids'::bigint[], m.id)]
RETURNING m.id
