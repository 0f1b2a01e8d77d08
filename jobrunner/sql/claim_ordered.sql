-- claim_ordered: queued -> running; takes the next job of ordering keys of one queue and one priority, at most one of each key.
-- Parameters: worker_id; tasks text[] (names this worker registers); queue; priority; given text[] (keys to look at in any case: those whose job has
--   just ended); floor_key and keys (a walk over so many keys behind that one, '' for the first; 0 for none); take (rows, at most).
-- Guard: the worker's own lease holds; the job is the oldest of its key that is not finished, due, and no other of the key runs: one that was written
--   late, or brought back, may be older than the one that runs. State and due time are checked again once the row is locked.
-- Returns: a row for each job, or one of NULLs for none; before its columns the last key walked over, how many keys there were, and in how many
--   milliseconds the first job will be due that is the next of its key.
-- Locks: the rows taken, SKIP LOCKED. Index: jobs_ordered, one probe a key (a loose scan), however many jobs wait behind the first; then
--   jobs_ordered_running and jobs_pkey.
-- Trap avoided: two claims whose snapshots differ may both find a next job of one key: jobs_ordered_running then refuses the second with 23505.
--   That is a lost race, not an error: nothing was taken, and the same call made again sees what the other did. As NOT EXISTS
--   the look for one that runs may become a join that reads every running job. It goes by all columns of jobs_ordered_running, which begins as
--   jobs_ordered does: by the key alone that one was chosen when no row that ANALYZE saw had a key, for the order in which its first column lies
--   in the table, and gone through whole. With one beginning jobs_ordered_running is never dearer: fewer rows, and one condition less to look at.
--   The next of a given key is found by a range of one key: by `=` the order would be that of ids alone, for which jobs_pkey could be walked.
WITH RECURSIVE alive AS MATERIALIZED (
    SELECT w.id FROM jobrunner.workers w
    WHERE w.id = :'worker_id'::bigint AND w.stopped_at IS NULL AND w.lease_expires_at > now()
), walked AS (
    SELECT first.ordering_key, first.id, first.state, first.task, first.priority, first.run_at, first.expires_at, 1 AS place
    FROM alive CROSS JOIN LATERAL (
        SELECT j.ordering_key, j.id, j.state, j.task, j.priority, j.run_at, j.expires_at FROM jobrunner.jobs j
        WHERE j.queue = :'queue'::text AND j.ordering_key > :'floor_key'::text AND :'keys'::integer > 0
        ORDER BY j.ordering_key, j.id LIMIT 1
    ) AS first
    UNION ALL
    SELECT next.ordering_key, next.id, next.state, next.task, next.priority, next.run_at, next.expires_at, walked.place + 1
    FROM walked CROSS JOIN LATERAL (
        SELECT j.ordering_key, j.id, j.state, j.task, j.priority, j.run_at, j.expires_at FROM jobrunner.jobs j
        WHERE j.queue = :'queue'::text AND j.ordering_key > walked.ordering_key AND walked.place < :'keys'::integer
        ORDER BY j.ordering_key, j.id LIMIT 1
    ) AS next
), heads AS MATERIALIZED (
    SELECT head.ordering_key, head.id, head.state, head.task, head.priority, head.run_at, head.expires_at
    FROM alive CROSS JOIN unnest(:'given'::text[]) AS g (ordering_key) CROSS JOIN LATERAL (
        SELECT j.ordering_key, j.id, j.state, j.task, j.priority, j.run_at, j.expires_at FROM jobrunner.jobs j
        WHERE j.queue = :'queue'::text AND j.ordering_key >= g.ordering_key AND j.ordering_key <= g.ordering_key
        ORDER BY j.ordering_key, j.id LIMIT 1
    ) AS head
    UNION ALL
    SELECT ordering_key, id, state, task, priority, run_at, expires_at FROM walked
), picked AS MATERIALIZED (
    SELECT j.id
    FROM jobrunner.jobs j
    WHERE j.id = ANY (ARRAY(
        SELECT DISTINCT h.id FROM heads h
        WHERE h.state = 'queued' AND h.priority = :'priority'::smallint AND h.run_at <= now() AND (h.expires_at IS NULL OR h.expires_at > now())
          AND h.task = ANY (:'tasks'::text[])
          AND (SELECT r.id FROM jobrunner.jobs r
               WHERE r.queue = :'queue'::text AND r.ordering_key = h.ordering_key AND r.state = 'running' LIMIT 1) IS NULL
        ORDER BY h.id LIMIT :'take'::integer))
      AND j.state || '' = 'queued' AND j.run_at <= now()
    ORDER BY j.id
    FOR UPDATE OF j SKIP LOCKED
), claimed AS (
    UPDATE jobrunner.jobs j
    SET state = 'running', worker_id = :'worker_id'::bigint, lease = j.lease + 1,
        attempt = least(j.attempt + 1, 32767)::smallint, claimed_at = now(), started_at = NULL
    WHERE j.id = ANY (ARRAY(SELECT picked.id FROM picked)) AND j.state || '' = 'queued'
    RETURNING j.id, j.lease, j.attempt, j.max_attempts, j.task, j.queue, j.args::text AS args, j.run_at,
              CASE WHEN isfinite(j.time_limit) THEN greatest(1, extract(epoch FROM j.time_limit) * 1000)::bigint END AS time_limit_ms, (j.crash_count > 0 OR j.max_crashes = 1) AS suspect,
              CASE WHEN coalesce(j.soft_time_limit, j.cpu_limit) IS NOT NULL OR coalesce(j.memory_limit, j.output_limit, j.max_processes) IS NOT NULL THEN
                  json_build_object('soft_ms', CASE WHEN isfinite(j.soft_time_limit) THEN greatest(1, extract(epoch FROM j.soft_time_limit) * 1000)::bigint END,
                                    'cpu_ms', CASE WHEN isfinite(j.cpu_limit) THEN greatest(1, extract(epoch FROM j.cpu_limit) * 1000)::bigint END,
                                    'memory', j.memory_limit, 'output', j.output_limit, 'processes', j.max_processes)::text END AS limits,
              j.checkpoint::text AS checkpoint, j.ordering_key
)
SELECT (SELECT w.ordering_key FROM walked w ORDER BY w.place DESC LIMIT 1) AS last_key,
       (SELECT count(*) FROM walked) AS key_count,
       (SELECT ceil(extract(epoch FROM min(h.run_at) - now()) * 1000)::bigint FROM heads h WHERE h.state = 'queued' AND h.run_at > now()) AS due_in_ms,
       claimed.*
FROM (VALUES (1)) AS always (one) LEFT JOIN claimed ON true
