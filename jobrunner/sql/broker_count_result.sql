-- broker_count_result: adds one to the number under a key, and gives it; Celery counts the finished parts of a chord so.
-- Parameters: key; ttl_ms (or NULL: for ever).
-- Locks: the row, so that each of two parts that end at once gets a number of its own. Index: broker_results_pkey.
INSERT INTO jobrunner.broker_results AS r (key, value, expires_at)
VALUES (:'key'::text, convert_to('1', 'UTF8'), now() + :'ttl_ms'::bigint * interval '1 millisecond')
ON CONFLICT (key) DO UPDATE SET value = convert_to((convert_from(r.value, 'UTF8')::bigint + 1)::text, 'UTF8'), changed_at = now()
RETURNING convert_from(value, 'UTF8')::bigint
