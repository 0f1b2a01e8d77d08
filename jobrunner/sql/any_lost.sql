-- any_lost: whether lost_workers would find anything, and whether `expire` would. Writes nothing: workers ask once a second, and the answers are
--   nearly always no.
-- Parameters: none. Locks: none. Index: workers_alive, workers_stopped; the two conditions are those of lost_workers. jobs_expiring.
-- Trap avoided: a transaction that locks and writes, opened and closed by each of many workers every second, only to find nothing.
SELECT EXISTS (
    SELECT FROM jobrunner.workers c WHERE c.stopped_at IS NULL AND c.lease_expires_at <= now()
) OR EXISTS (
    SELECT FROM jobrunner.workers c
    WHERE c.stopped_at > now() - interval '15 minutes' AND c.stopped_at < now() + interval '15 minutes'
      AND (c.rescued_at IS NULL OR c.rescued_at < now() - interval '1 minute')
) AS lost, EXISTS (
    SELECT FROM jobrunner.jobs j WHERE j.state = 'queued' AND j.expires_at <= now()
) AS expired
