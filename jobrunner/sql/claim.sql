-- claim: queued -> running; takes due jobs of one queue and one priority in the order (run_at, id), behind a floor.
--   Jobs with an ordering key are not among them: claim_ordered.sql; nor are those that have expired: expire.sql.
-- Parameters: worker_id; tasks text[] (names this worker registers); queue; priority; floor_run_at, floor_id (the last key
--   claimed here, or 1970 and 0 for a scan from the start); take (rows, at most); past_gate (who has waited for long asks no gate).
-- Guard: the worker's own lease holds, by the database's clock; state and due time are checked in the locking SELECT and again in the UPDATE.
-- Returns: the jobs; one row of NULLs when the gate was closed.
-- Locks: the rows taken, SKIP LOCKED; for 10 rows or more one of the queue's two gates (xact-level advisory locks, never waited for).
-- Index: jobs_claim, a range behind the floor; then jobs_pkey.
-- Trap avoided: without MATERIALIZED the planner may run the LIMIT sub-select twice and claim too many. With a snapshot pinned
--   elsewhere, every scan from the start walks all dead entries; the floor does not. A priority per call keeps run_at in the range.
--   `state || ''` and the array keep the UPDATE on jobs_pkey; as a join it may walk all of jobs_claim, or the whole table.
--   An endless time_limit (possible since PostgreSQL 17) is none; one of a few microseconds is 1 ms, as 0 could be read as none.
--   Every row that others are taking at this moment is walked over, and makes their statements longer and so the walk: of many
--   workers at once each pays for all. The gates let two through (ADR 0021); whoever takes few rows does not matter.
--   `limits` is one JSON text, NULL for the many jobs that have none of them: five more columns would cost each of those.
WITH gate AS MATERIALIZED (
    SELECT CASE WHEN :'take'::integer < 10 OR :'past_gate'::boolean THEN true
                WHEN pg_try_advisory_xact_lock(hashtextextended('jobrunner.claim.1 ' || :'queue'::text, 0)) THEN true
                ELSE pg_try_advisory_xact_lock(hashtextextended('jobrunner.claim.2 ' || :'queue'::text, 0)) END AS open
), alive AS MATERIALIZED (
    SELECT w.id FROM jobrunner.workers w CROSS JOIN gate
    WHERE w.id = :'worker_id'::bigint AND w.stopped_at IS NULL AND w.lease_expires_at > now() AND gate.open
), picked AS MATERIALIZED (
    SELECT j.id
    FROM jobrunner.jobs j
    WHERE j.state = 'queued' AND j.queue = :'queue'::text AND j.priority = :'priority'::smallint
      AND j.run_at <= now() AND (j.run_at, j.id) > (:'floor_run_at'::timestamptz, :'floor_id'::bigint)
      AND j.task = ANY (:'tasks'::text[]) AND j.ordering_key IS NULL AND (j.expires_at IS NULL OR j.expires_at > now()) AND EXISTS (SELECT FROM alive)
    ORDER BY j.run_at, j.id
    LIMIT :'take'::integer
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
              j.checkpoint::text AS checkpoint
)
SELECT claimed.* FROM gate LEFT JOIN claimed ON true WHERE claimed.id IS NOT NULL OR NOT gate.open
