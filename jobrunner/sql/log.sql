-- log: keeps lines that attempts logged. Changes no job.
-- Parameters, arrays of one length: ids, leases bigint[]; lines integer[] (number within the attempt), levels smallint[] (as in Python's
--   logging), loggers, messages text[]; age_ms bigint[] (how long ago it was logged).
-- Guard: (id, lease) and running, or lately succeeded under that lease (a transactional task ends its job by itself, and its last lines
--   come after that): the lines of a superseded attempt are dropped. Returns the job ids of the lines kept. Locks: none.
-- Index: jobs_pkey, and job_history_pkey of the partitions of yesterday and today, one probe a line.
-- Trap avoided: without MATERIALIZED and the guesses (see succeed.sql) the planner may read the whole table of jobs for a join.
WITH f AS MATERIALIZED (
    SELECT * FROM unnest(:'ids'::bigint[], :'leases'::bigint[], :'lines'::integer[], :'levels'::smallint[], :'loggers'::text[], :'messages'::text[], :'age_ms'::bigint[])
        AS f (id, lease, line, level, logger, message, age_ms)
    WHERE f.lease BETWEEN 1 AND 9223372036854775806
)
INSERT INTO jobrunner.job_logs (job_id, lease, line, attempt, logged_at, level, logger, message)
SELECT f.id, f.lease, f.line, a.attempt, now() - f.age_ms * interval '1 millisecond', f.level, f.logger, f.message
FROM f CROSS JOIN LATERAL (
    SELECT j.attempt FROM jobrunner.jobs j
    WHERE j.id = f.id AND j.lease = f.lease AND j.state || '' = 'running'
    UNION ALL
    SELECT h.attempt FROM jobrunner.job_history h
    WHERE h.id = f.id AND h.lease = f.lease AND h.state || '' = 'succeeded'
      AND h.finished_at > now() - interval '1 day' AND h.finished_at < now() + interval '1 minute'
) a
RETURNING job_id
