-- broker_count_part: adds one to the number of a chord's finished parts, unless this part was counted before; gives the number.
-- Parameters: key (of the number); part (key of the row that says this part was counted); ttl_ms (or NULL: for ever).
-- Locks: both rows, so that of two runs of one part that end at once the second waits, and adds nothing. Index: broker_results_pkey.
WITH part AS (
    INSERT INTO jobrunner.broker_results (key, value, expires_at)
    VALUES (:'part'::text, convert_to('1', 'UTF8'), now() + :'ttl_ms'::bigint * interval '1 millisecond')
    ON CONFLICT (key) DO NOTHING
    RETURNING key
)
INSERT INTO jobrunner.broker_results AS r (key, value, expires_at)
SELECT :'key'::text, convert_to(count(*)::text, 'UTF8'), now() + :'ttl_ms'::bigint * interval '1 millisecond' FROM part
ON CONFLICT (key) DO UPDATE
    SET value = convert_to((convert_from(r.value, 'UTF8')::bigint + convert_from(EXCLUDED.value, 'UTF8')::bigint)::text, 'UTF8'), changed_at = now()
RETURNING convert_from(value, 'UTF8')::bigint
