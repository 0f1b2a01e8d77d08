-- job_state: the stored state of one job, live or finished. Writes nothing.
-- Parameters: id. Index: jobs_pkey; job_history_pkey of each partition.
SELECT state, queue FROM jobrunner.jobs WHERE id = :'id'::bigint
UNION ALL
SELECT state, queue FROM jobrunner.job_history WHERE id = :'id'::bigint
