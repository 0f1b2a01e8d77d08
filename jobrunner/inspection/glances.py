"""Owns what `jobrunner top` asks every few seconds: the whole in numbers, and one list to look into.

It must not cost the database more than a page does: a few statements, each bounded whatever lies in the tables.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import sqlalchemy as sa

from jobrunner.errors import QueryTimeout
from jobrunner.filters import FinishedWord, JobFilter, LiveWord
from jobrunner.inspection.conditions import matching
from jobrunner.inspection.lists import MAX_LIMIT, page_statements
from jobrunner.inspection.overview import QUEUE_SAMPLE, read_queues, read_workers
from jobrunner.inspection.ranges import PastFilter
from jobrunner.inspection.reading import reading
from jobrunner.inspection.recent import read_error_groups, read_lately
from jobrunner.inspection.rows import LIVE_COLUMNS, job_row
from jobrunner.schema import jobs as live
from jobrunner.schema import workers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    from jobrunner.database import Database
    from jobrunner.inspection.reading import Reader
    from jobrunner.inspection.recent import ErrorGroup, Lately
    from jobrunner.inspection.values import JobRow, QueueRow, WorkerRow

View = Literal["running", "ready", "failed", "errors", "workers"]
VIEWS: tuple[View, ...] = get_args(View)

STOPPED_WORKERS = 10  # shown below those that are alive
_RUNNING: tuple[LiveWord, ...] = ("running",)
_READY: tuple[LiveWord, ...] = ("queued", "retrying")
_FAILED: tuple[FinishedWord, ...] = ("failed", "quarantined")


@dataclass(frozen=True, slots=True)
class Glance:
    """One look at the whole installation.

    Attributes:
        lately: throughput, and who is at it now.
        view: which list was asked for; the lists of the others are empty.
        jobs: `running`: the longest running first. `ready`: due ones, those that are taken next first, with a filter among the 10,000
            that come first in each queue and priority. `failed`: failed and quarantined ones, the newest first.
        errors: groups of the last hour, the most frequent first.
        workers: those that are alive, then lost ones, then those that stopped last.
        worker_names: of those that run `jobs`, by id.
        more: whether there are more than were asked for.
        trouble: why the list is empty although there may be something: it took too long.
        at: the database's time of the answer.
    """

    at: datetime
    lately: Lately
    queues: tuple[QueueRow, ...]
    view: View
    jobs: tuple[JobRow, ...] = ()
    errors: tuple[ErrorGroup, ...] = ()
    workers: tuple[WorkerRow, ...] = ()
    worker_names: Mapping[int, str] = field(default_factory=dict)
    more: bool = False
    trouble: QueryTimeout | None = None


def glance(database: Database, view: View = "running", filter: JobFilter | None = None, *, limit: int = 50) -> Glance:  # noqa: A002  the word of the API
    """One look: queues, throughput, and a list, in one read-only transaction of three statements or four.

    Args:
        database: where.
        view: which list.
        filter: which jobs are in the list; None is all. Queues and throughput are always of everything.
        limit: items of the list, 1 to 200; anything else is brought into that range.

    Raises:
        QueryTimeout: queues or throughput need longer than 2 s; that the list does is `trouble`, and the rest is there.
        DatabaseUnreachable, SchemaMissing: as for every read.
    """
    wanted, size = filter or JobFilter(), max(1, min(limit, MAX_LIMIT))
    seen: Glance | None = None
    try:
        with reading(database) as reader:
            queues, lately = read_queues(reader), read_lately(reader)
            seen = Glance(reader.at, lately, queues, view)
            # The list comes last: when its statement is ended by the server, nothing that was read before is lost.
            return _with_list(seen, reader, wanted, size)
    except QueryTimeout as error:
        if seen is None:
            raise
        return replace(seen, trouble=error)


def _with_list(seen: Glance, reader: Reader, wanted: JobFilter, limit: int) -> Glance:
    if seen.view == "workers":
        return replace(seen, workers=_matching_workers(read_workers(reader, STOPPED_WORKERS), wanted))
    if seen.view == "errors":
        groups = read_error_groups(reader, wanted, limit + 1)
        return replace(seen, errors=groups[:limit], more=len(groups) > limit)
    rows: list[sa.Row[Any]] = []
    for statement in list_statements(seen.view, wanted, limit + 1, reader.at):
        rows += reader.connection.execute(statement).all()
        if len(rows) > limit:
            break
    names = {row.worker_id: row.worker for row in rows if row.worker} if seen.view == "running" else {}
    return replace(seen, jobs=tuple(job_row(row) for row in rows[:limit]), worker_names=names, more=len(rows) > limit)


def list_statements(view: View, wanted: JobFilter, limit: int, at: datetime) -> Iterator[sa.Select[Any]]:
    """The statements of a list of jobs, each only when those before it left room; none when the filter leaves no state of it.

    The tests read their plans.
    """
    if view == "running":
        if "running" in wanted.live_words:
            yield _running_statement(wanted, limit)
    elif view == "ready":
        if words := wanted.live_words & set(_READY):
            yield _ready_statement(wanted, limit, words)
    elif failed := frozenset(wanted.finished_words & set(_FAILED)):
        only = replace(wanted, states=failed, not_states=frozenset())
        yield from page_statements(only, PastFilter(only, at), None, limit)


def _running_statement(wanted: JobFilter, limit: int) -> sa.Select[Any]:
    """All of them are looked at, by their index: there are no more than slots."""
    began = sa.func.coalesce(live.c.started_at, live.c.claimed_at)
    return (
        sa.select(*LIVE_COLUMNS, workers.c.name.label("worker"))
        .select_from(live.outerjoin(workers, workers.c.id == live.c.worker_id))
        .where(live.c.state == sa.literal_column("'running'"), *matching(live, wanted))
        .order_by(began, live.c.id)
        .limit(limit)
    )


# Each (queue, priority) that holds queued jobs: a loose scan of the claim index, one descent for each.
_KEYS = sa.text("""
WITH RECURSIVE step AS (
    (SELECT queue, priority FROM jobrunner.jobs WHERE state = 'queued' ORDER BY queue, priority LIMIT 1)
    UNION ALL
    SELECT n.queue, n.priority FROM step s CROSS JOIN LATERAL (
        SELECT j.queue, j.priority FROM jobrunner.jobs j
        WHERE j.state = 'queued' AND (j.queue, j.priority) > (s.queue, s.priority) ORDER BY j.queue, j.priority LIMIT 1
    ) n
)
SELECT queue, priority FROM step
""").columns(sa.column("queue", sa.Text), sa.column("priority", sa.SmallInteger))


def _ready_statement(wanted: JobFilter, limit: int, words: frozenset[LiveWord]) -> sa.Select[Any]:
    """The first due ones of each range of the claim index, then the first of these: a backlog of any size is not sorted."""
    keys = _KEYS.cte("keys")
    narrow = bool(wanted) or len(words) < len(_READY)
    first = (
        sa.select(live.c.id, live.c.task, live.c.queue, live.c.priority, live.c.run_at, live.c.attempt)
        .where(
            live.c.state == sa.literal_column("'queued'"),
            live.c.queue == keys.c.queue,
            live.c.priority == keys.c.priority,
            live.c.run_at <= sa.func.now(),
        )
        .order_by(live.c.run_at, live.c.id)
        .limit(QUEUE_SAMPLE if narrow else limit)
        .correlate(keys)
        .lateral("first")
    )
    conditions = matching(first, wanted)
    if wanted.queues:
        conditions.append(keys.c.queue.in_(wanted.queues))
    if len(words) < len(_READY):
        conditions.append(first.c.attempt == 0 if "queued" in words else first.c.attempt > 0)
    found = (
        sa.select(first.c.id, first.c.priority, first.c.run_at)
        .select_from(keys.join(first, sa.true()))
        .where(*conditions)
        .order_by(first.c.priority, first.c.run_at, first.c.id)
        .limit(limit)
        .subquery("found")
    )
    # What is shown of a job, its arguments as text above all, is read for those that are shown only.
    return (
        sa.select(*LIVE_COLUMNS)
        .select_from(found.join(live, live.c.id == found.c.id))
        .order_by(found.c.priority, found.c.run_at, found.c.id)
    )


def _matching_workers(rows: tuple[WorkerRow, ...], wanted: JobFilter) -> tuple[WorkerRow, ...]:
    """Those that listen on a queue and register a task that the filter asks for; the rest of it is about jobs."""
    return tuple(
        row
        for row in rows
        if (not wanted.queues or not set(wanted.queues).isdisjoint(row.queues))
        and (not wanted.tasks or any(pattern.matches(task) for pattern in wanted.tasks for task in row.tasks))
    )
