-- ensure_partitions: makes the daily partitions of history, attempts and logs ahead of time; any worker may run it, any number at once.
-- Parameters: ahead (days). Locks: an xact-level advisory lock; ACCESS EXCLUSIVE on the default partitions while one is attached.
SELECT jobrunner.ensure_partitions(:'ahead'::integer) AS made
