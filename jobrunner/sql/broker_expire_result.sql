-- broker_expire_result: how long from now on a result is kept.
-- Parameters: key; ttl_ms (or NULL: for ever). Locks: the row. Index: broker_results_pkey.
UPDATE jobrunner.broker_results r SET expires_at = now() + :'ttl_ms'::bigint * interval '1 millisecond' WHERE r.key = :'key'::text
RETURNING r.key
