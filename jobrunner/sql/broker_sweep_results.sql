-- broker_sweep_results: removes results whose time is up. Returns how many.
-- Parameters: most (rows at once).
-- Locks: the rows, SKIP LOCKED. Index: broker_results_expiring, broker_results_pkey.
WITH late AS MATERIALIZED (
    SELECT r.key FROM jobrunner.broker_results r
    WHERE r.expires_at IS NOT NULL AND r.expires_at <= now()
    ORDER BY r.expires_at LIMIT :'most'::integer
    FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM jobrunner.broker_results r WHERE r.key = ANY (ARRAY(SELECT late.key FROM late))
    RETURNING r.key
)
SELECT count(*) FROM gone
