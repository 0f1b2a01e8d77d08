-- prune_rollup_hours: forgets hours of the roll-ups that ended long ago. Changes no job.
-- Parameters: keep_ms; most (rows at once). Guard: none but its age. Returns the hours.
-- Locks: the rows, SKIP LOCKED. Index: rollup_hour_pkey, from its start.
DELETE FROM jobrunner.rollup_hour WHERE ctid = ANY (ARRAY(
    SELECT h.ctid FROM jobrunner.rollup_hour h
    WHERE h.hour < now() - :'keep_ms'::bigint * interval '1 millisecond' - interval '1 hour'
    ORDER BY h.hour LIMIT :'most'::integer
    FOR UPDATE OF h SKIP LOCKED
))
RETURNING hour
