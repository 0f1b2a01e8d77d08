-- has_succeeded: which of the given attempts have succeeded lately. Writes nothing.
-- Parameters: ids, leases bigint[]. Index: job_history_pkey of the partitions of yesterday and today. Locks: none.
-- A transactional task ends its job by itself, so that the worker may come with what that task said when the job is in the history.
-- Trap avoided: `state || ''` keeps the planner off the indexes by state.
SELECT f.id, f.lease
FROM unnest(:'ids'::bigint[], :'leases'::bigint[]) AS f (id, lease)
CROSS JOIN LATERAL (
    SELECT FROM jobrunner.job_history h
    WHERE h.id = f.id AND h.lease = f.lease AND h.state || '' = 'succeeded'
      AND h.finished_at > now() - interval '1 day' AND h.finished_at < now() + interval '1 minute'
    LIMIT 1
) h
