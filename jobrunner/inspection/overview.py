"""Owns the sight of the whole: queues, workers, the pulse that every page shows, and the status screen.

It must not count without an end: with millions of waiting jobs the numbers become lower bounds, not a slow page.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner import migrate
from jobrunner.inspection.health import Pulse, Status, UnservedTask
from jobrunner.inspection.reading import Reader, reading
from jobrunner.inspection.running import running_jobs
from jobrunner.inspection.values import Count, QueueRow, WorkerRow

if TYPE_CHECKING:
    from jobrunner.database import Database

QUEUE_SAMPLE = 10_000  # waiting jobs of one queue that are looked at; above, its counts are lower bounds
MAX_QUEUES = 200
MAX_WORKERS = 200  # stopped ones; the live ones are always all shown
MAX_UNSERVED = 20  # tasks named in a status

# A loose scan of the claim index for the distinct (queue, priority), each with its earliest run_at; then, for each queue, at most
# QUEUE_SAMPLE entries. The view v_queues counts every row, which with a backlog of millions takes longer than anybody waits.
_QUEUES = sa.text("""
WITH RECURSIVE keys AS (
    (SELECT queue, priority, run_at FROM jobrunner.jobs WHERE state = 'queued' ORDER BY queue, priority, run_at LIMIT 1)
    UNION ALL
    SELECT n.queue, n.priority, n.run_at FROM keys k CROSS JOIN LATERAL (
        SELECT j.queue, j.priority, j.run_at FROM jobrunner.jobs j
        WHERE j.state = 'queued' AND (j.queue, j.priority) > (k.queue, k.priority)
        ORDER BY j.queue, j.priority, j.run_at LIMIT 1
    ) n
), alive AS MATERIALIZED (
    SELECT id, queues, tasks, slots FROM jobrunner.workers WHERE stopped_at IS NULL AND lease_expires_at > now()
), listening AS (
    SELECT q AS queue, count(*) AS workers, sum(a.slots) AS slots FROM alive a, unnest(a.queues) AS q GROUP BY q
), serving AS MATERIALIZED (
    SELECT q AS queue, array_agg(DISTINCT t) AS tasks FROM alive a, unnest(a.queues) AS q, unnest(a.tasks) AS t GROUP BY q
), running AS (
    SELECT queue, count(*) AS running FROM jobrunner.jobs WHERE state = 'running' GROUP BY queue
), names AS (
    SELECT queue FROM keys UNION SELECT queue FROM listening UNION SELECT queue FROM running
)
SELECT n.queue, s.ready, s.scheduled, s.retrying, s.unserved, s.looked_at,
       (SELECT min(k.run_at) FROM keys k WHERE k.queue = n.queue AND k.run_at <= now()) AS oldest_ready_at,
       coalesce(r.running, 0) AS running, coalesce(l.workers, 0) AS workers, coalesce(l.slots, 0) AS slots
FROM names n
LEFT JOIN running r ON r.queue = n.queue
LEFT JOIN listening l ON l.queue = n.queue
LEFT JOIN serving v ON v.queue = n.queue
CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE w.run_at <= now()) AS ready,
           count(*) FILTER (WHERE w.run_at > now() AND w.attempt = 0) AS scheduled,
           count(*) FILTER (WHERE w.attempt > 0) AS retrying,
           count(*) FILTER (WHERE w.run_at <= now() AND (v.tasks IS NULL OR w.task <> ALL (v.tasks))) AS unserved,
           count(*) AS looked_at
    FROM (SELECT j.task, j.run_at, j.attempt FROM jobrunner.jobs j WHERE j.state = 'queued' AND j.queue = n.queue
          ORDER BY j.priority, j.run_at, j.id LIMIT :sample + 1) w
) s
ORDER BY n.queue
LIMIT :most
""")

_UNSERVED = sa.text("""
WITH alive AS MATERIALIZED (
    SELECT queues, tasks FROM jobrunner.workers WHERE stopped_at IS NULL AND lease_expires_at > now()
), serving AS (
    SELECT DISTINCT q AS queue, t AS task FROM alive a, unnest(a.queues) AS q, unnest(a.tasks) AS t
)
SELECT w.task, w.queue, count(*) AS number
FROM unnest(CAST(:queues AS text[])) AS n (queue)
CROSS JOIN LATERAL (
    SELECT j.task, j.queue FROM jobrunner.jobs j WHERE j.state = 'queued' AND j.queue = n.queue AND j.run_at <= now()
    ORDER BY j.priority, j.run_at, j.id LIMIT :sample
) w
WHERE NOT EXISTS (SELECT FROM serving v WHERE v.queue = w.queue AND v.task = w.task)
GROUP BY w.task, w.queue ORDER BY number DESC, w.task, w.queue LIMIT :most
""")

_WORKER_COLUMNS = (
    "id, name, host, pid, kind, version, queues, tasks, slots, state, running_count, started_at, heartbeat_at, stopped_at, last_exit, "
    "rss_bytes, succeeded_count, failed_count, crashed_count, pool, pool_slot, claimed_count, memory_bytes, "
    "CAST(running AS text) AS running"
)
_WORKERS = sa.text(
    f"(SELECT {_WORKER_COLUMNS} FROM jobrunner.v_workers WHERE stopped_at IS NULL ORDER BY state, id DESC) "  # noqa: S608  constants
    f"UNION ALL (SELECT {_WORKER_COLUMNS} FROM jobrunner.v_workers WHERE stopped_at IS NOT NULL ORDER BY stopped_at DESC LIMIT :most)"
)

_PULSE = sa.text("""
SELECT count(*) FILTER (WHERE stopped_at IS NULL AND lease_expires_at > now()) AS alive,
       count(*) FILTER (WHERE (stopped_at IS NULL AND lease_expires_at <= now())
                           OR (last_exit = 'lost' AND stopped_at > now() - CAST(:recent AS interval))) AS lost,
       coalesce(sum(slots) FILTER (WHERE stopped_at IS NULL AND lease_expires_at > now()), 0) AS slots,
       max(heartbeat_at) AS last_seen_at,
       (SELECT count(*) FROM jobrunner.jobs WHERE state = 'running') AS running,
       EXISTS (SELECT FROM jobrunner.jobs WHERE state = 'queued' AND run_at <= now()) AS waiting,
       pg_is_in_recovery() OR current_setting('default_transaction_read_only')::boolean AS read_only
FROM (
    SELECT stopped_at, lease_expires_at, last_exit, slots, heartbeat_at FROM jobrunner.workers WHERE stopped_at IS NULL
    UNION ALL (SELECT stopped_at, lease_expires_at, last_exit, slots, heartbeat_at FROM jobrunner.workers
               WHERE stopped_at IS NOT NULL ORDER BY stopped_at DESC LIMIT 200)
) w
""")

_FAILED = sa.text("""
SELECT coalesce(sum(ended_count), 0) FROM (
    SELECT ended_count FROM jobrunner.rollup_minute
    WHERE minute >= date_bin('1 minute', now() - CAST(:recent AS interval), 'epoch') AND outcome IN ('failed', 'quarantined')
    UNION ALL
    SELECT ended_count FROM jobrunner.rollup_pending
    WHERE slice >= date_bin('1 minute', now() - CAST(:recent AS interval), 'epoch') AND outcome IN ('failed', 'quarantined')
) failed
""")
RECENT = timedelta(hours=1)


def list_queues(database: Database) -> tuple[QueueRow, ...]:
    """Queues that hold live jobs or that a live worker listens on, by name; at most 200.

    Raises:
        QueryTimeout, DatabaseUnreachable, SchemaMissing: as for every read.
    """
    with reading(database) as reader:
        return read_queues(reader)


def list_workers(database: Database) -> tuple[WorkerRow, ...]:
    """Workers: those not stopped (alive ones first), then the 200 that stopped last.

    Raises:
        QueryTimeout, DatabaseUnreachable, SchemaMissing: as for every read.
    """
    with reading(database) as reader:
        return read_workers(reader, MAX_WORKERS)


def pulse(database: Database) -> Pulse:
    """Version of the schema and state of the workers: two small statements.

    Raises:
        QueryTimeout, DatabaseUnreachable, SchemaMissing: as for every read.
    """
    with reading(database) as reader:
        return _pulse(reader)


def status(database: Database) -> Status:
    """The installation on one screen.

    Raises:
        QueryTimeout, DatabaseUnreachable, SchemaMissing: as for every read.
    """
    with reading(database) as reader:
        queues = read_queues(reader)
        names = [row.queue for row in queues if row.unserved]
        parameters = {"queues": names, "sample": QUEUE_SAMPLE, "most": MAX_UNSERVED}
        unserved = reader.connection.execute(_UNSERVED, parameters).all() if names else ()
        return Status(
            pulse=_pulse(reader),
            queues=queues,
            unserved=tuple(UnservedTask(row.task, row.queue, Count(row.number, exact=row.number < QUEUE_SAMPLE)) for row in unserved),
            failed_last_hour=Count(reader.connection.scalar(_FAILED, {"recent": RECENT}) or 0),
        )


def registered_tasks(database: Database) -> frozenset[str]:
    """The names of tasks that some live worker registers.

    Raises:
        QueryTimeout, DatabaseUnreachable, SchemaMissing: as for every read.
    """
    query = sa.text("SELECT DISTINCT unnest(tasks) FROM jobrunner.workers WHERE stopped_at IS NULL AND lease_expires_at > now()")
    with reading(database) as reader:
        return frozenset(reader.connection.scalars(query))


def _pulse(reader: Reader) -> Pulse:
    schema = migrate.version_on(reader.connection)
    row = reader.connection.execute(_PULSE, {"recent": RECENT}).one()
    return Pulse(
        schema=schema,
        workers_alive=row.alive,
        workers_lost=row.lost,
        slots=row.slots,
        running=row.running,
        last_seen_at=row.last_seen_at,
        waiting=row.waiting,
        read_only=row.read_only,
        at=reader.at,
    )


def read_workers(reader: Reader, stopped: int) -> tuple[WorkerRow, ...]:
    """The workers, at most so many stopped ones, in a transaction that is open already: one statement."""
    return tuple(_worker(row) for row in reader.connection.execute(_WORKERS, {"most": stopped}))


def read_queues(reader: Reader) -> tuple[QueueRow, ...]:
    """The queues, in a transaction that is open already: one statement."""
    rows = reader.connection.execute(_QUEUES, {"sample": QUEUE_SAMPLE, "most": MAX_QUEUES})
    return tuple(
        QueueRow(
            queue=row.queue,
            ready=row.ready,
            scheduled=row.scheduled,
            retrying=row.retrying,
            running=row.running,
            unserved=row.unserved,
            exact=row.looked_at <= QUEUE_SAMPLE,
            oldest_ready_at=row.oldest_ready_at,
            workers=row.workers,
            slots=row.slots,
        )
        for row in rows
    )


def _worker(row: Any) -> WorkerRow:
    return WorkerRow(
        id=row.id,
        name=row.name,
        host=row.host,
        pid=row.pid,
        kind=row.kind,
        version=row.version,
        queues=tuple(row.queues),
        tasks=tuple(row.tasks),
        slots=row.slots,
        state=row.state,
        running=row.running_count,
        started_at=row.started_at,
        heartbeat_at=row.heartbeat_at,
        stopped_at=row.stopped_at,
        last_exit=row.last_exit,
        rss_bytes=row.rss_bytes,
        succeeded_count=row.succeeded_count,
        failed_count=row.failed_count,
        crashed_count=row.crashed_count,
        pool=row.pool,
        pool_slot=row.pool_slot,
        claimed_count=row.claimed_count,
        memory_bytes=row.memory_bytes,
        running_jobs=running_jobs(row.running),
    )
