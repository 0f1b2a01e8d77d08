-- left_due: how many jobs of some queues are due, and when the next one that is not will be. Writes nothing.
-- Parameters: queues text[]; most (counting stops there). next_due_at is NULL when nothing waits for later.
-- Index: jobs_claim, a loose scan over the distinct priorities, then two ranges for each: neither a backlog of millions nor as many
--   jobs scheduled for next month are walked.
WITH RECURSIVE step AS (
    SELECT q.queue, first.priority
    FROM unnest(:'queues'::text[]) AS q (queue)
    CROSS JOIN LATERAL (
        SELECT j.priority FROM jobrunner.jobs j
        WHERE j.state = 'queued' AND j.queue = q.queue
        ORDER BY j.priority, j.run_at, j.id LIMIT 1
    ) AS first
    UNION ALL
    SELECT step.queue, next.priority
    FROM step
    CROSS JOIN LATERAL (
        SELECT j.priority FROM jobrunner.jobs j
        WHERE j.state = 'queued' AND j.queue = step.queue AND j.priority > step.priority
        ORDER BY j.priority, j.run_at, j.id LIMIT 1
    ) AS next
), counted AS (
    SELECT due.number, later.run_at
    FROM step
    CROSS JOIN LATERAL (
        SELECT count(*) AS number FROM (
            SELECT FROM jobrunner.jobs j
            WHERE j.state = 'queued' AND j.queue = step.queue AND j.priority = step.priority AND j.run_at <= now()
            ORDER BY j.priority, j.run_at, j.id LIMIT :'most'::integer
        ) AS found
    ) AS due
    LEFT JOIN LATERAL (
        SELECT j.run_at FROM jobrunner.jobs j
        WHERE j.state = 'queued' AND j.queue = step.queue AND j.priority = step.priority AND j.run_at > now()
        ORDER BY j.priority, j.run_at, j.id LIMIT 1
    ) AS later ON true
)
SELECT least(coalesce(sum(number), 0), :'most'::integer)::bigint AS left_count, min(run_at) AS next_due_at
FROM counted
