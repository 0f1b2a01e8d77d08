-- broker_set_result: stores a result of Celery under its key, in the place of an older one.
-- Parameters: key; value bytea; ttl_ms (or NULL: for ever).
-- Locks: the row. Index: broker_results_pkey.
INSERT INTO jobrunner.broker_results (key, value, expires_at)
VALUES (:'key'::text, :'value'::bytea, now() + :'ttl_ms'::bigint * interval '1 millisecond')
ON CONFLICT (key) DO UPDATE SET value = EXCLUDED.value, expires_at = EXCLUDED.expires_at, changed_at = now()
RETURNING key
