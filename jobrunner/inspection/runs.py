"""Owns the sight of finished worker processes: the list of runs, and whether cron started all that it should have.

It must not guess: what is not on record (a start that found its slot taken, or no database) shows as time without a run.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import sqlalchemy as sa

from jobrunner.inspection.reading import reading

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from jobrunner.database import Database

DEFAULT_RUNS = 50
MAX_RUNS = 1000
LATE = timedelta(seconds=20)  # so long after it was due a start may still appear: Python has to start, a database to answer
LEAST_TO_LEARN = 3  # starts from which an interval can be learned
_STEP = timedelta(seconds=60)  # cron's own grain

# Two texts, so that each takes its index: worker_runs_recent, worker_runs_pool.
_COLUMNS = (
    "id, worker_id, name, host, pid, kind, pool, pool_slot, version, started_at, finished_at, run_ms, reason, exit_code, error, "
    "claimed_count, succeeded_count, failed_count, crashed_count, left_count, next_due_at"
)
_RUNS = sa.text(f"SELECT {_COLUMNS} FROM jobrunner.v_worker_runs ORDER BY finished_at DESC, id DESC LIMIT :most")  # noqa: S608  constants
_RUNS_OF_POOL = sa.text(
    f"SELECT {_COLUMNS} FROM jobrunner.v_worker_runs WHERE pool = :pool ORDER BY finished_at DESC, id DESC LIMIT :most"  # noqa: S608
)
# The runs of that time, the one before them, and those under way.
_HISTORY = sa.text("""
(SELECT started_at, finished_at, reason, error, false AS earlier FROM jobrunner.v_worker_runs
 WHERE pool = :pool AND kind = 'cron' AND finished_at > now() - CAST(:since AS interval)
 ORDER BY finished_at DESC LIMIT :most)
UNION ALL
(SELECT started_at, finished_at, NULL, NULL, true FROM jobrunner.v_worker_runs
 WHERE pool = :pool AND kind = 'cron' AND finished_at <= now() - CAST(:since AS interval)
 ORDER BY finished_at DESC LIMIT 1)
UNION ALL
SELECT started_at, NULL, NULL, NULL, false FROM jobrunner.workers
WHERE pool = :pool AND kind = 'cron' AND stopped_at IS NULL AND lease_expires_at > now()
ORDER BY started_at
""")


@dataclass(frozen=True, slots=True)
class WorkerRunRow:
    """One worker process that has ended.

    Attributes:
        run: from its registration to its end.
        reason: `drained`, `time`, `done`, `signal`, `error`, `lost`; see `v_worker_runs`.
        exit_code: None for one that was lost.
        left_count: due jobs that it left in its queues; None when nobody could look.
        next_due_at: when the next scheduled job of them was due then.
    """

    id: int
    worker_id: int
    name: str
    host: str
    pid: int
    kind: str
    pool: str | None
    pool_slot: int | None
    version: str
    started_at: datetime
    finished_at: datetime
    run: timedelta
    reason: str
    exit_code: int | None
    error: str | None
    claimed_count: int | None
    succeeded_count: int
    failed_count: int
    crashed_count: int
    left_count: int | None
    next_due_at: datetime | None


class Span(NamedTuple):
    """When one run was under way."""

    start: datetime
    end: datetime


@dataclass(frozen=True, slots=True)
class Missed:
    """A stretch of time in which a start was due, none is on record and no run was under way."""

    since: datetime
    until: datetime
    starts: int


@dataclass(frozen=True, slots=True)
class CronHistory:
    """What cron has done for one pool lately.

    Attributes:
        starts: runs on record, those under way included.
        every: the interval between starts, as told or learned; None when there are too few to learn it.
        missed: stretches without a run; empty when `every` is None.
        bad: (reason, error) of runs that were lost or ended by an error, the oldest first.
        last_start: of any time; None when there never was one.
    """

    starts: int
    every: timedelta | None
    missed: tuple[Missed, ...]
    bad: tuple[tuple[str, str | None], ...]
    last_start: datetime | None


def list_worker_runs(database: Database, *, pool: str | None = None, limit: int = DEFAULT_RUNS) -> tuple[WorkerRunRow, ...]:
    """Worker processes that have ended, the last first.

    Args:
        pool: only those of this pool.
        limit: rows, 1 to 1000; anything else is brought into that range.

    Raises:
        QueryTimeout, DatabaseUnreachable, SchemaMissing: as for every read.
    """
    most = max(1, min(limit, MAX_RUNS))
    with reading(database) as reader:
        if pool is None:
            rows = reader.connection.execute(_RUNS, {"most": most})
        else:
            rows = reader.connection.execute(_RUNS_OF_POOL, {"pool": pool, "most": most})
        return tuple(_run(row) for row in rows)


def cron_history(database: Database, pool: str, *, since: timedelta, every: timedelta | None = None) -> CronHistory:
    """Whether cron's starts of a pool came as they should.

    Args:
        since: how far to look back.
        every: the interval between starts; None to learn it from them.

    Raises:
        QueryTimeout, DatabaseUnreachable, SchemaMissing: as for every read.
    """
    with reading(database) as reader:
        rows = reader.connection.execute(_HISTORY, {"pool": pool, "since": since, "most": MAX_RUNS}).all()
        now = reader.at
    spans = [Span(row.started_at, row.finished_at or now) for row in rows]
    starts = [row.started_at for row in rows]
    every = every or learned_interval(starts)
    return CronHistory(
        starts=sum(not row.earlier for row in rows),
        every=every,
        missed=() if every is None else missed(spans, every, now, now - since),
        bad=tuple((row.reason, row.error) for row in rows if row.reason in {"lost", "error"}),
        last_start=starts[-1] if starts else None,
    )


def learned_interval(starts: Sequence[datetime]) -> timedelta | None:
    """The usual time between starts, in whole minutes as cron counts; None when there are too few.

    Starts of one minute count as one: several slots, or several hosts.
    """
    gaps = sorted(gap for earlier, later in pairwise(starts) if (gap := later - earlier) > _STEP / 2)
    if len(gaps) < LEAST_TO_LEARN - 1:
        return None
    return max(_STEP, _STEP * round(gaps[(len(gaps) - 1) // 2] / _STEP))


def missed(spans: Sequence[Span], every: timedelta, now: datetime, since: datetime) -> tuple[Missed, ...]:
    """Where starts were due after `since` and none is on record.

    A start that falls into a run is not missed: it found the slot taken, or would have.

    Args:
        spans: runs in the order of their start.
        every: the interval between starts.
    """
    found: list[Missed] = []
    covered = since
    for number, span in enumerate(spans):
        last = number + 1 == len(spans)
        until = now if last else spans[number + 1].start
        between = int((now - LATE - span.start) / every) if last else round((until - span.start) / every) - 1
        covered = max(covered, span.end)
        if starts := sum(span.start + every * step > covered for step in range(1, between + 1)):
            found.append(Missed(covered, until, starts))
    return tuple(found)


def _run(row: Any) -> WorkerRunRow:
    values = {name: getattr(row, name) for name in WorkerRunRow.__slots__ if name != "run"}
    return WorkerRunRow(run=timedelta(milliseconds=max(0, row.run_ms)), **values)
