-- purge_dead: removes dead messages of one queue from the history, for good. Changes no live job.
-- Parameters: queue; task (what messages are called); ids bigint[]. Guard: dead, and a message of this queue. Returns the ids.
-- Locks: the history rows, in id order. Index: job_history_pkey of each partition.
-- Trap avoided: as in redrive.sql.
WITH held AS MATERIALIZED (
    SELECT h.id FROM jobrunner.job_history h
    WHERE h.id = ANY (ARRAY(SELECT unnest(:'ids'::bigint[]))) AND h.state || '' IN ('failed', 'quarantined')
      AND h.queue || '' = :'queue'::text AND h.task || '' = :'task'::text
    ORDER BY h.id
    FOR UPDATE
)
DELETE FROM jobrunner.job_history h
WHERE h.id = ANY (ARRAY(SELECT id FROM held)) AND h.state || '' IN ('failed', 'quarantined')
RETURNING h.id
