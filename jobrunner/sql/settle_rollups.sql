-- settle_rollups: adds what was counted some time ago to its minute and its hour, the oldest first. Changes no job.
-- Parameters: age_ms (what is younger is left); minutes_ms (minutes that are older are not kept); most (rows at once). Returns how many.
-- Guard: an xact-level advisory lock: of two at once one does it, and the other nothing.
-- Locks: the rows that it takes, SKIP LOCKED; those of minutes and hours that it adds to, in the order of their keys.
-- Index: rollup_pending_pkey, from its start.
SELECT CASE WHEN pg_try_advisory_xact_lock(hashtextextended('jobrunner.settle_rollups', 0))
            THEN jobrunner.settle_rollups(now() - :'age_ms'::bigint * interval '1 millisecond',
                                          now() - :'minutes_ms'::bigint * interval '1 millisecond', :'most'::integer)
            ELSE 0 END AS settled
