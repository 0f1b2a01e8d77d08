-- drop_partitions: drops daily partitions of one table that ended long ago, the oldest first.
-- Parameters: parent (the table's name); keep_ms; most (partitions at once). Returns how many.
-- Guard: an xact-level advisory lock: of two at once one drops, and the other does nothing.
-- Locks: ACCESS EXCLUSIVE on the table and the partition, until the commit: the caller sets a short lock_timeout before.
-- Trap avoided: without the advisory lock the second of two waits for the first, and then drops what is no longer there.
SELECT CASE WHEN pg_try_advisory_xact_lock(hashtextextended('jobrunner.drop_partitions', 0))
            THEN jobrunner.drop_partitions(:'parent'::text, now() - :'keep_ms'::bigint * interval '1 millisecond', :'most'::integer)
            ELSE 0 END AS dropped
