"""Owns everything about one job: its row, its attempts, and why it is not running.

It must not load what it does not show: the attempts are capped, counts of jobs ahead stop.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.errors import JobNotFound
from jobrunner.filters import MAX_ID
from jobrunner.inspection.reading import PREPARED, Reader, reading
from jobrunner.inspection.rows import FINISHED_COLUMNS, LIVE_COLUMNS, duration, job_row
from jobrunner.inspection.values import AttemptRow, JobDetail
from jobrunner.inspection.waiting import waiting_reason
from jobrunner.schema import job_history as finished
from jobrunner.schema import jobs as live
from jobrunner.schema import workers

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from jobrunner.database import Database
    from jobrunner.inspection.values import JobRow, Reason

MAX_ATTEMPTS = 200  # shown: a job that snoozes every minute has thousands
_CLOCKS = timedelta(days=1)  # by which an attempt may seem to lie outside its job's life: the server's clock was set
LONGEST = timedelta(days=365_000)  # what Python and people can read; an interval column can hold more


def _detail_columns(table: sa.Table) -> list[sa.ColumnElement[Any]]:
    columns = table.c
    return [
        # jsonb_pretty, not psycopg's decoding: numbers keep every digit, and a hostile document cannot exhaust the parser here.
        sa.func.jsonb_pretty(columns.args).label("args"),
        sa.func.jsonb_pretty(columns.meta).label("meta"),
        columns.tags,
        columns.parent_id,
        columns.unique_key,
        columns.last_error,
        columns.last_error_at,
        columns.crash_count,
        columns.max_crashes,
        *(sa.cast(sa.extract("epoch", columns[name]), sa.Float).label(name) for name in ("time_limit", "soft_time_limit", "cpu_limit")),
        columns.memory_limit,
        columns.memory_limit_on_retry,
        columns.output_limit,
        columns.max_processes,
        columns.progress_text.label("whole_progress_text"),
        sa.func.jsonb_pretty(columns.checkpoint).label("checkpoint"),
        columns.backoff,
        columns.lease,
        columns.ordering_key,
        columns.expires_at,
    ]


def _worker(table: sa.Table) -> sa.ColumnElement[Any]:
    return sa.select(workers.c.name).where(workers.c.id == table.c.worker_id).scalar_subquery().label("worker")


_NONE = sa.null()
_INSTANT = sa.DateTime(timezone=True)
_LIVE = (
    *LIVE_COLUMNS,
    *_detail_columns(live),
    _worker(live),
    _NONE.cast(sa.Text).label("result"),
    _NONE.cast(sa.BigInteger).label("cpu_ms"),
    live.c.claimed_at,
    live.c.cancel_requested_at,
)
_FINISHED = (
    *FINISHED_COLUMNS,
    *_detail_columns(finished),
    _worker(finished),
    sa.func.jsonb_pretty(finished.c.result).label("result"),
    finished.c.cpu_ms,
    _NONE.cast(_INSTANT).label("claimed_at"),
    _NONE.cast(_INSTANT).label("cancel_requested_at"),
)
_LIVE_JOB = sa.select(*_LIVE).where(live.c.id == sa.bindparam("id")).execution_options(**PREPARED)
# When it finished is looked for in every day, by a plan that is kept. The rest of the row is read from that day alone: a row so wide costs
# each day that is in a plan as much as looking into it.
_FINISHED_AT = (
    sa.select(finished.c.finished_at)
    .where(finished.c.id == sa.bindparam("id"))
    .order_by(finished.c.finished_at.desc())
    .limit(1)
    .execution_options(**PREPARED)
)
_FINISHED_JOB = sa.select(*_FINISHED).where(finished.c.id == sa.bindparam("id"), finished.c.finished_at == sa.bindparam("finished_at"))
# With the time, only days that may have attempts are planned and looked into: for half a year of them that takes longer than the reading.
_ATTEMPTS = sa.text(
    "SELECT a.attempt, a.lease, a.outcome, a.started_at, a.finished_at, a.run_ms, a.cpu_ms, a.worker_id, w.name AS worker, "
    "a.error_type, a.message, a.traceback, a.fingerprint, a.exit_cause, a.peak_memory "
    "FROM jobrunner.v_attempts a LEFT JOIN jobrunner.workers w ON w.id = a.worker_id "
    "WHERE a.job_id = :id AND a.finished_at >= :since AND a.finished_at <= :until ORDER BY a.lease DESC, a.finished_at DESC LIMIT :most"
).execution_options(**PREPARED)
# NULL for who may not read the sequence.
_WAS_GIVEN = sa.text("SELECT last_value >= :id FROM pg_sequences WHERE schemaname = 'jobrunner' AND sequencename = 'jobs_id_seq'")


def get_job(database: Database, job_id: int) -> JobDetail:
    """Everything about one job, live or finished, as of one snapshot.

    Args:
        database: where.
        job_id: the primary key of its row.

    Raises:
        JobNotFound: there is no such row (an uncommitted or rolled-back enqueue, or history was pruned).
        QueryTimeout, DatabaseUnreachable, SchemaMissing: as for every read.
    """
    if not 0 <= job_id <= MAX_ID:
        raise JobNotFound(job_id)
    with reading(database) as reader:
        connection = reader.connection
        row = connection.execute(_LIVE_JOB, {"id": job_id}).one_or_none() or _finished_job(connection, job_id)
        if row is not None:
            life = {"since": _moved(row.created_at, -_CLOCKS), "until": _moved(row.finished_at or reader.at, _CLOCKS)}
            attempts = connection.execute(_ATTEMPTS, {"id": job_id, **life, "most": MAX_ATTEMPTS + 1}).all()
            return _detail(reader, row, attempts)
        was_given = bool(connection.scalar(_WAS_GIVEN, {"id": job_id}))
    raise JobNotFound(job_id, was_given=was_given)  # not before: what ends in an error forgets what it has prepared


def _finished_job(connection: sa.Connection, job_id: int) -> sa.Row[Any] | None:
    finished_at = connection.scalar(_FINISHED_AT, {"id": job_id})
    return finished_at and connection.execute(_FINISHED_JOB, {"id": job_id, "finished_at": finished_at}).one()


def _moved(instant: datetime, by: timedelta) -> datetime:
    """The instant moved, as far as Python can: a row that somebody put in may have any."""
    try:
        return instant + by
    except OverflowError:
        return instant


def _detail(reader: Reader, row: sa.Row[Any], attempts: Sequence[sa.Row[Any]]) -> JobDetail:
    job = job_row(row)
    return JobDetail(
        job=job,
        args=row.args,
        result=row.result,
        meta=row.meta,
        checkpoint=row.checkpoint,
        tags=tuple(row.tags),
        parent_id=row.parent_id,
        unique_key=row.unique_key,
        error=row.last_error,
        error_at=row.last_error_at,
        crash_count=row.crash_count,
        max_crashes=row.max_crashes,
        time_limit=_limit(row.time_limit),
        soft_time_limit=_limit(row.soft_time_limit),
        cpu_limit=_limit(row.cpu_limit),
        memory_limit=row.memory_limit,
        memory_limit_on_retry=row.memory_limit_on_retry,
        output_limit=row.output_limit,
        max_processes=row.max_processes,
        progress_text=row.whole_progress_text,
        backoff=row.backoff,
        lease=row.lease,
        claimed_at=row.claimed_at,
        cancel_requested_at=row.cancel_requested_at,
        cpu=duration(row.cpu_ms),
        worker=row.worker,
        attempts=tuple(_attempt(item) for item in attempts[:MAX_ATTEMPTS]),
        attempts_left_out=len(attempts) > MAX_ATTEMPTS,
        waiting_reason=None if job.finished_at else _reason(reader, job, row),
        at=reader.at,
        ordering_key=row.ordering_key,
        expires_at=row.expires_at,
    )


def _reason(reader: Reader, job: JobRow, row: sa.Row[Any]) -> Reason:
    return waiting_reason(reader, job, cancel_requested=row.cancel_requested_at is not None, ordering_key=row.ordering_key)


def _attempt(row: sa.Row[Any]) -> AttemptRow:
    return AttemptRow(
        attempt=row.attempt,
        lease=row.lease,
        outcome=row.outcome,
        started_at=row.started_at,
        finished_at=row.finished_at,
        run=duration(row.run_ms),
        cpu=duration(row.cpu_ms),
        worker_id=row.worker_id,
        worker=row.worker,
        error_type=row.error_type,
        message=row.message,
        traceback=row.traceback,
        fingerprint=row.fingerprint,
        exit_cause=row.exit_cause,
        peak_memory=row.peak_memory,
    )


def _limit(seconds: float | None) -> timedelta | None:
    return None if seconds is None else min(LONGEST, timedelta(seconds=min(seconds, LONGEST.total_seconds())))
