"""Owns how a row of a list is read: the columns, in SQL, and the `JobRow` made of them.

It must not choose rows. Waits and runs of jobs still at it are counted by the database's clock.
"""

from __future__ import annotations

import math
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

import sqlalchemy as sa

from jobrunner.inspection.values import JobRow
from jobrunner.schema import job_history as finished
from jobrunner.schema import jobs as live

if TYPE_CHECKING:
    from jobrunner.filters import StateWord

EXCERPT_LENGTH = 200  # characters of arguments, error and progress in a list: more than a line shows

_NOW = sa.func.now()
_FAR: sa.ColumnElement[Any] = sa.literal_column("'9999-01-01 00:00+00'::timestamptz")
_BEGAN = sa.func.coalesce(live.c.started_at, live.c.claimed_at)


def _ms(duration: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    return sa.cast(sa.extract("epoch", duration), sa.Float) * 1000


def _excerpts(table: sa.Table) -> list[sa.ColumnElement[Any]]:
    return [
        sa.func.left(sa.cast(table.c.args, sa.Text), EXCERPT_LENGTH).label("args_excerpt"),
        table.c.last_error_type.label("error_type"),
        sa.func.left(table.c.last_error, EXCERPT_LENGTH).label("error"),
        table.c.worker_id,
        table.c.progress,
        sa.func.left(table.c.progress_text, EXCERPT_LENGTH).label("progress_text"),
    ]


def created_at(table: sa.Table) -> sa.ColumnElement[Any]:
    """When a job was created, in years that Python can read: the column has no CHECK, and one 'infinity' would hide the whole page."""
    return sa.func.least(sa.func.greatest(table.c.created_at, sa.literal_column("'0001-01-02 00:00+00'::timestamptz")), _FAR).label(
        "created_at"
    )


def _names(table: sa.Table) -> list[sa.ColumnElement[Any]]:
    columns = table.c
    names = [columns.id, columns.task, columns.queue, columns.priority, columns.attempt, columns.max_attempts]
    return [*names, created_at(table), columns.run_at]


STATE_WORD = sa.case(
    (live.c.state == "running", sa.literal_column("'running'")),
    (live.c.attempt > 0, sa.literal_column("'retrying'")),
    (live.c.run_at > _NOW, sa.literal_column("'scheduled'")),
    else_=sa.literal_column("'queued'"),
)
"""The state of a live job in the words of `v_jobs`."""

LIVE_COLUMNS: tuple[sa.ColumnElement[Any], ...] = (
    *_names(live),
    STATE_WORD.label("state"),
    _BEGAN.label("started_at"),
    sa.null().cast(sa.DateTime(timezone=True)).label("finished_at"),
    sa.case((live.c.state == "running", _ms(_BEGAN - live.c.run_at)), (live.c.run_at <= _NOW, _ms(_NOW - live.c.run_at))).label("wait_ms"),
    sa.case((live.c.state == "running", _ms(_NOW - _BEGAN))).label("run_ms"),
    *_excerpts(live),
    sa.null().cast(sa.BigInteger).label("peak_memory"),
)

FINISHED_COLUMNS: tuple[sa.ColumnElement[Any], ...] = (
    *_names(finished),
    finished.c.state,
    finished.c.started_at,
    finished.c.finished_at,
    finished.c.wait_ms,
    finished.c.run_ms,
    *_excerpts(finished),
    finished.c.peak_memory,
)


def job_row(row: sa.Row[Any]) -> JobRow:
    """A row of either set of columns as a value."""
    return JobRow(
        id=row.id,
        task=row.task,
        queue=row.queue,
        state=cast("StateWord", row.state),
        priority=row.priority,
        attempt=row.attempt,
        max_attempts=row.max_attempts,
        created_at=row.created_at,
        run_at=row.run_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        wait=duration(row.wait_ms),
        run=duration(row.run_ms),
        args_excerpt=row.args_excerpt,
        error_type=row.error_type,
        error=row.error,
        worker_id=row.worker_id,
        progress=row.progress if row.progress is not None and math.isfinite(row.progress) else None,  # history has no CHECK
        progress_text=row.progress_text,
        peak_memory=row.peak_memory,
    )


def duration(milliseconds: float | None) -> timedelta | None:
    """A column of milliseconds as a duration, never negative (clocks of two machines are in it)."""
    return None if milliseconds is None else timedelta(milliseconds=max(0.0, milliseconds))
