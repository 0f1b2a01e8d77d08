"""Owns what happened lately: how much finished in the last ten minutes and how fast, and which errors there were within the hour.

It must not count rows of history: the roll-ups have counted them. Of rows it reads samples, however much happened.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.inspection.conditions import matching
from jobrunner.inspection.rows import EXCERPT_LENGTH, duration
from jobrunner.inspection.values import Count
from jobrunner.schema import job_attempts as attempts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from jobrunner.filters import JobFilter
    from jobrunner.inspection.reading import Reader

MINUTES = 10  # by the clock, the one that is not over included
FINISHED_SAMPLE = 2_000  # the newest finished jobs, whose run and wait times are looked at: some milliseconds
ERROR_WINDOW = timedelta(hours=1)
ERROR_SAMPLE = 5_000  # the newest attempts that are looked at; they are wide, with their tracebacks
RATE_OVER = 60.0  # seconds that a rate is taken over, and up to ten more: it is counted by slices of ten seconds
_ENDED = "('succeeded', 'failed', 'cancelled', 'quarantined')"  # what ends a job; the other outcomes are of attempts

# Counts are sums of what was counted when the jobs ended: exact, and no more to read when more ended. How long they took is read from
# the newest by the index on (finished_at, id). There the time stands in a sub-select so that the planner does not estimate by it: its
# statistics end some minutes ago, it would take a busy ten minutes for a few rows, and sort all of them
# (test_throughput_reads_its_sample_and_no_more, not analysed).
LATELY = sa.text(f"""
WITH since AS MATERIALIZED (
    SELECT date_bin('1 minute', now(), 'epoch') AS this_minute,
           date_bin('10 seconds', now() - :rate_over * interval '1 second', 'epoch') AS rate
), counted AS (
    SELECT queue, outcome, ended_count, minute AS at FROM jobrunner.rollup_minute
    WHERE minute > date_bin('1 minute', now(), 'epoch') - :minutes * interval '1 minute' AND outcome IN {_ENDED}
    UNION ALL
    SELECT queue, outcome, ended_count, slice FROM jobrunner.rollup_pending
    WHERE slice >= date_bin('1 minute', now(), 'epoch') - (:minutes - 1) * interval '1 minute' AND outcome IN {_ENDED}
), slices AS (
    SELECT c.queue, greatest(0, ceil(extract(epoch FROM s.this_minute - c.at) / 60))::int AS minutes_ago, sum(c.ended_count) AS ended,
           coalesce(sum(c.ended_count) FILTER (WHERE c.outcome = 'succeeded'), 0) AS succeeded,
           coalesce(sum(c.ended_count) FILTER (WHERE c.outcome IN ('failed', 'quarantined')), 0) AS failed
    FROM counted c CROSS JOIN since s GROUP BY 1, 2
), newest AS MATERIALIZED (
    SELECT h.run_ms, h.wait_ms FROM jobrunner.job_history h
    WHERE h.finished_at > (SELECT now() - :minutes * interval '1 minute')
    ORDER BY h.finished_at DESC, h.id DESC LIMIT :sample
), whole AS MATERIALIZED (
    SELECT s.this_minute, extract(epoch FROM now() - s.rate)::float8 AS rate_over,
           (SELECT coalesce(sum(p.ended_count), 0)::float8 FROM jobrunner.rollup_pending p
            WHERE p.slice >= s.rate AND p.outcome = 'succeeded') AS rate_count
    FROM since s
), times AS (
    SELECT percentile_disc(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (ORDER BY run_ms) AS run_ms,
           percentile_disc(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (ORDER BY wait_ms) AS wait_ms
    FROM newest
), alive AS (
    SELECT count(*) AS workers_alive, coalesce(sum(slots), 0) AS slots
    FROM jobrunner.workers WHERE stopped_at IS NULL AND lease_expires_at > now()
)
SELECT s.queue, s.minutes_ago, s.ended, s.succeeded, s.failed, w.*, t.*, a.*,
       (SELECT count(*) FROM jobrunner.jobs WHERE state = 'running') AS running
FROM whole w CROSS JOIN times t CROSS JOIN alive a LEFT JOIN slices s ON true
""")  # noqa: S608  constants

_GONE_WRONG = ("retried", "failed", "crashed", "quarantined")  # outcomes of attempts; the others were asked for


@dataclass(frozen=True, slots=True)
class Percentiles:
    """How long half, 95 and 99 of a hundred took at most."""

    p50: timedelta
    p95: timedelta
    p99: timedelta


@dataclass(frozen=True, slots=True)
class Throughput:
    """What finished within the last ten minutes by the clock, the one that is not over included.

    Attributes:
        per_minute: jobs that ended, for each minute, the oldest first.
        per_queue: the same of each queue in which any ended.
        succeeded, failed, ended: how many in all; `failed` has the quarantined, `ended` the cancelled too.
        succeeded_per_second: over the last minute.
        run, wait: of the last attempts of the newest 2,000 of those jobs; None when none of them ran.
        span: how long ago the first of those minutes began.
    """

    per_minute: tuple[int, ...]
    per_queue: Mapping[str, tuple[int, ...]]
    succeeded: int
    failed: int
    ended: int
    succeeded_per_second: float
    run: Percentiles | None
    wait: Percentiles | None
    span: timedelta

    @property
    def failed_share(self) -> float | None:
        """Of those that succeeded or failed, how many failed, from 0 to 1; None when there were none."""
        return self.failed / (self.failed + self.succeeded) if self.failed + self.succeeded else None


@dataclass(frozen=True, slots=True)
class Lately:
    """What finished lately, and who is at it now."""

    throughput: Throughput
    workers_alive: int
    slots: int
    running: int


@dataclass(frozen=True, slots=True)
class ErrorGroup:
    """Attempts that went wrong in the same way within the last hour.

    Attributes:
        fingerprint: equal for the same error at the same place; None when nothing was raised, because the process ended.
        error_type: class of the error; None when nothing was raised.
        exit_cause: of those without a fingerprint, such as `signal 9`; else None.
        events, jobs: attempts, and how many jobs they are of.
        task: of the newest; `tasks` how many different ones there are.
        message: of the newest, an excerpt.
        job_id: of the newest.
    """

    fingerprint: str | None
    error_type: str | None
    exit_cause: str | None
    events: Count
    jobs: Count
    task: str
    tasks: int
    message: str | None
    job_id: int
    first_at: datetime
    last_at: datetime


def read_lately(reader: Reader) -> Lately:
    """Throughput, workers and slots, in a transaction that is open already: one statement."""
    parameters = {"minutes": MINUTES, "sample": FINISHED_SAMPLE, "rate_over": RATE_OVER}
    rows = reader.connection.execute(LATELY, parameters).all()
    whole = rows[0]  # there is always one: the slices are joined from the left
    return Lately(_throughput(rows, reader.at), workers_alive=whole.workers_alive, slots=whole.slots, running=whole.running)


def read_error_groups(reader: Reader, wanted: JobFilter, limit: int) -> tuple[ErrorGroup, ...]:
    """Errors within the last hour, the most frequent first, in a transaction that is open already: one statement.

    The newest attempts are looked at, up to a number; with more than those, the counts are lower bounds.
    """
    rows = reader.connection.execute(error_groups_statement(wanted, limit)).all()
    return tuple(_error_group(row) for row in rows)


def error_groups_statement(wanted: JobFilter, limit: int) -> sa.Select[Any]:
    """The statement of the error groups; the tests read its plan. The filter's states are not asked: an attempt has none."""
    column = attempts.c
    newest = (
        sa.select(
            column.job_id.label("id"),
            column.task,
            column.queue,
            column.finished_at,
            column.outcome,
            column.error_type,
            column.fingerprint,
            sa.func.left(column.message, EXCERPT_LENGTH).label("message"),
            sa.case((column.fingerprint.is_(None), column.exit_cause)).label("exit_cause"),
        )
        .where(column.finished_at > sa.select(sa.func.now() - ERROR_WINDOW).scalar_subquery())  # as above
        .order_by(column.finished_at.desc(), column.job_id.desc())
        .limit(ERROR_SAMPLE)
        .cte("newest")
        .prefix_with("MATERIALIZED")
    )
    found = newest.c
    last = sa.dialects.postgresql.aggregate_order_by
    by_age = (found.finished_at.desc(), found.id.desc())
    events = sa.func.count().label("events")
    last_at = sa.func.max(found.finished_at).label("last_at")
    return (
        sa.select(
            found.fingerprint,
            found.error_type,
            found.exit_cause,
            events,
            sa.func.count(found.id.distinct()).label("jobs"),
            sa.func.count(found.task.distinct()).label("tasks"),
            _first(sa.func.array_agg(last(found.task, *by_age))).label("task"),
            _first(sa.func.array_agg(last(found.message, *by_age))).label("message"),
            _first(sa.func.array_agg(last(found.id, *by_age))).label("job_id"),
            sa.func.min(found.finished_at).label("first_at"),
            last_at,
            sa.select(sa.func.count()).select_from(newest).scalar_subquery().label("looked_at"),
        )
        .where(found.outcome.in_([sa.literal_column(f"'{outcome}'") for outcome in _GONE_WRONG]), *matching(newest, wanted))
        .group_by(found.fingerprint, found.error_type, found.exit_cause)
        .order_by(events.desc(), last_at.desc())
        .limit(limit)
    )


def _first(values: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    return sa.type_coerce(values, sa.ARRAY(sa.Text))[1]


def _throughput(rows: Sequence[sa.Row[Any]], now: datetime) -> Throughput:
    whole = rows[0]
    slices = [row for row in rows if row.queue is not None]
    total = [0] * MINUTES
    per_queue: dict[str, list[int]] = {}
    for row in slices:
        for minutes in (total, per_queue.setdefault(row.queue, [0] * MINUTES)):
            minutes[MINUTES - 1 - row.minutes_ago] += row.ended
    return Throughput(
        per_minute=tuple(total),
        per_queue={queue: tuple(minutes) for queue, minutes in per_queue.items()},
        succeeded=sum(row.succeeded for row in slices),
        failed=sum(row.failed for row in slices),
        ended=sum(total),
        succeeded_per_second=whole.rate_count / whole.rate_over,
        run=_percentiles(whole.run_ms),
        wait=_percentiles(whole.wait_ms),
        span=now - whole.this_minute + timedelta(minutes=MINUTES - 1),
    )


def _percentiles(milliseconds: Sequence[int | None] | None) -> Percentiles | None:
    found = [duration(value) for value in milliseconds or ()]
    if not found or any(value is None for value in found):
        return None
    return Percentiles(*(value or timedelta() for value in found))


def _error_group(row: sa.Row[Any]) -> ErrorGroup:
    exact = row.looked_at < ERROR_SAMPLE
    return ErrorGroup(
        fingerprint=row.fingerprint,
        error_type=row.error_type,
        exit_cause=row.exit_cause,
        events=Count(row.events, exact=exact),
        jobs=Count(row.jobs, exact=exact),
        task=row.task,
        tasks=row.tasks,
        message=row.message,
        job_id=int(row.job_id),
        first_at=row.first_at,
        last_at=row.last_at,
    )
