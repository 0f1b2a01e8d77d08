-- find_due: which (queue, priority) pairs hold queued jobs, and how soon the first of each is due; and, in rows without a priority, which
--   queues hold jobs with an ordering key. Writes nothing.
-- Parameters: queues text[].
-- Index: jobs_claim, one probe for each distinct priority (a loose scan): a million jobs scheduled for next month at an urgent
--   priority cost one probe. jobs_ordered, one probe a queue.
-- Trap avoided: an array that the planner can count makes each plan look cheaper than the one for all arrays, and a prepared statement
--   is planned anew at every call, which costs more than the call. This one it cannot count.
WITH RECURSIVE step AS (
    SELECT q.queue, first.priority, first.run_at
    FROM unnest(ARRAY(SELECT unnest(:'queues'::text[]))) AS q (queue)
    CROSS JOIN LATERAL (
        SELECT j.priority, j.run_at FROM jobrunner.jobs j
        WHERE j.state = 'queued' AND j.queue = q.queue
        ORDER BY j.priority, j.run_at, j.id LIMIT 1
    ) AS first
    UNION ALL
    SELECT step.queue, next.priority, next.run_at
    FROM step
    CROSS JOIN LATERAL (
        SELECT j.priority, j.run_at FROM jobrunner.jobs j
        WHERE j.state = 'queued' AND j.queue = step.queue AND j.priority > step.priority
        ORDER BY j.priority, j.run_at, j.id LIMIT 1
    ) AS next
)
SELECT queue, priority, greatest(0, ceil(extract(epoch FROM run_at - clock_timestamp()) * 1000))::bigint AS due_in_ms
FROM step
UNION ALL
SELECT q.queue, NULL, 0
FROM unnest(ARRAY(SELECT unnest(:'queues'::text[]))) AS q (queue)
CROSS JOIN LATERAL (
    SELECT FROM jobrunner.jobs j
    WHERE j.queue = q.queue AND j.ordering_key IS NOT NULL
    ORDER BY j.ordering_key, j.id LIMIT 1
) AS ordered
