"""Owns what the facade reads and writes of jobs beside enqueuing them: Celery's part of `meta`, and what a retry changes.

It must not change a job's state: the engine's transitions do. Each write of an attempt carries its lease, so that a superseded one
changes nothing.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any, LiteralString, NamedTuple, TypeVar

import psycopg
import sqlalchemy as sa

from jobrunner import jitter, statements
from jobrunner.errors import DatabaseUnreachable, LeaseLost
from jobrunner.transient import is_transient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from datetime import datetime

    from jobrunner.current import JobContext
    from jobrunner.database import Database

T = TypeVar("T")

SPACE = "celery"  # of references: the key is the task id
META = "celery"  # the member of `meta` that is ours
_PAUSES = (0.1, 5.0)  # seconds between two tries of a database that is away: at first, and at most
UNANSWERED = (DatabaseUnreachable, psycopg.OperationalError, psycopg.InterfaceError, sa.exc.OperationalError, sa.exc.InterfaceError)

# The newest record is that of an attempt that was given back after it had begun: one that had not begun leaves none.
_BEGIN = """
/* jobrunner:celery_begin */
SELECT j.meta -> 'celery' AS celery, j.queue, j.priority, j.crash_count, j.max_crashes, j.run_at,
       extract(epoch FROM j.time_limit)::float8 AS time_limit, extract(epoch FROM j.soft_time_limit)::float8 AS soft_time_limit,
       CASE WHEN j.lease > j.attempt THEN coalesce((
           SELECT a.outcome = 'released' AND a.started_at IS NOT NULL FROM jobrunner.job_attempts a
           WHERE a.job_id = j.id ORDER BY a.lease DESC LIMIT 1), false) ELSE false END AS was_released,
       j.run_at > now() AS is_early
FROM jobrunner.jobs j WHERE j.id = %(id)s AND j.lease = %(lease)s AND j.state = 'running'
"""
_AMEND = """
/* jobrunner:celery_amend */
UPDATE jobrunner.jobs j
SET meta = jsonb_set(coalesce(j.meta, '{}'::jsonb), '{celery}', coalesce(j.meta -> 'celery', '{}'::jsonb) || %(celery)s::jsonb),
    args = coalesce(%(args)s::jsonb, j.args), queue = coalesce(%(queue)s::text, j.queue),
    priority = coalesce(%(priority)s::smallint, j.priority), max_attempts = coalesce(%(max_attempts)s::smallint, j.max_attempts),
    backoff = CASE WHEN %(pause)s::float8 IS NULL THEN j.backoff ELSE 'constant' END,
    backoff_base = coalesce(%(pause)s::float8 * interval '1 second', j.backoff_base),
    backoff_cap = coalesce(%(pause)s::float8 * interval '1 second', j.backoff_cap),
    backoff_jitter = CASE WHEN %(pause)s::float8 IS NULL THEN j.backoff_jitter ELSE 0 END,
    time_limit = coalesce(%(time_limit)s::float8 * interval '1 second', j.time_limit),
    soft_time_limit = coalesce(%(soft_time_limit)s::float8 * interval '1 second', j.soft_time_limit)
WHERE j.id = %(id)s AND j.lease = %(lease)s AND j.state = 'running'
RETURNING j.id
"""
_NOTE = """
/* jobrunner:celery_note */
UPDATE jobrunner.jobs j
SET meta = jsonb_set(coalesce(j.meta, '{}'::jsonb), '{celery}', coalesce(j.meta -> 'celery', '{}'::jsonb) || %(celery)s::jsonb)
WHERE j.id = %(id)s
RETURNING j.state
"""
_LOOK = """
/* jobrunner:celery_look */
SELECT j.id, j.state, j.task, j.args, j.queue, j.meta -> 'celery' AS celery, j.result, j.error_type, j.error, j.started_at,
       j.finished_at, j.lease,
       (SELECT w.name FROM jobrunner.workers w WHERE w.id = j.worker_id) AS worker,
       CASE WHEN j.error_type IS NOT NULL THEN (
           SELECT a.traceback FROM jobrunner.job_attempts a WHERE a.job_id = j.id ORDER BY a.lease DESC LIMIT 1) END AS traceback
FROM jobrunner.v_jobs j WHERE j.id = %(id)s
"""


class Begun(NamedTuple):
    """What an attempt has to know of its job before the body runs.

    Attributes:
        celery: our part of `meta`; None for a job that was written by SQL or by Jobrunner's own enqueue.
        was_released: the attempt before this one had begun and was given back, as in a deploy.
        is_early: it is not due: a test has brought it.
    """

    celery: dict[str, Any] | None
    queue: str
    priority: int
    crash_count: int
    max_crashes: int
    run_at: datetime
    time_limit: float | None
    soft_time_limit: float | None
    was_released: bool
    is_early: bool


class Found(NamedTuple):
    """A job as `AsyncResult` sees it; `state` in the words of `v_jobs`."""

    id: int
    state: str
    task: str
    args: dict[str, Any]
    queue: str
    celery: dict[str, Any] | None
    result: Any
    error_type: str | None
    error: str | None
    started_at: datetime | None
    finished_at: datetime | None
    lease: int
    worker: str | None
    traceback: str | None


def begin(database: Database, context: JobContext) -> Begun:
    """Read the job of an attempt that is about to run; waits while the database is away.

    Raises:
        LeaseLost: the attempt has been superseded.
        JobStopped: the worker was told to stop while it waited.
    """
    row = patiently(context, lambda: _row(database, _BEGIN, {"id": context.id, "lease": context.lease}))
    if row is None:
        raise LeaseLost(context.id, context.lease)
    return Begun(*row)


def amend(database: Database, context: JobContext, celery: Mapping[str, Any], **columns: Any) -> None:
    """Write Celery's part of `meta`, and columns of the running job that a retry changes; waits while the database is away.

    Args:
        celery: members to be set; the others stay.
        columns: `args` (a dict), `queue`, `priority`, `max_attempts`, `pause`, `time_limit`, `soft_time_limit` (seconds).

    Raises:
        LeaseLost: the attempt has been superseded; nothing was written.
        JobStopped: the worker was told to stop while it waited.
    """
    names = ("args", "queue", "priority", "max_attempts", "pause", "time_limit", "soft_time_limit")
    values = {"id": context.id, "lease": context.lease, "celery": json.dumps(dict(celery)), **{name: columns.get(name) for name in names}}
    if values["args"] is not None:
        values["args"] = json.dumps(values["args"])
    if patiently(context, lambda: _row(database, _AMEND, values)) is None:
        raise LeaseLost(context.id, context.lease)


def note(database: Database, job_id: int, celery: Mapping[str, Any]) -> str | None:
    """Set members of Celery's part of a live job's `meta`, whoever runs it. Returns its state; None when it is not live."""
    row = _row(database, _NOTE, {"id": job_id, "celery": json.dumps(dict(celery))})
    return None if row is None else str(row[0])


def look(database: Database, job_id: int) -> Found | None:
    """The job, live or finished."""
    row = _row(database, _LOOK, {"id": job_id})
    return None if row is None else Found(*row)


def rows(database: Database, query: LiteralString, parameters: Mapping[str, Any]) -> list[Any]:
    """The rows of a question."""
    with database.store() as store:
        return store.connection.execute(query, parameters, prepare=True).fetchall()


def cancel(database: Database, job_ids: Iterable[int]) -> list[int]:
    """Cancel those of the jobs that wait; running ones stay as they are. Returns their ids."""
    found = rows(database, statements.load("cancel"), {"ids": list(job_ids)})
    return [job_id for (job_id,) in found]


def patiently(context: JobContext, action: Callable[[], T]) -> T:
    """Do something with the database, again and again while it is away: the body must not fail for an outage, nor an end be lost."""
    pause = _PAUSES[0]
    while True:
        try:
            return action()
        except UNANSWERED as error:
            if not isinstance(error, DatabaseUnreachable) and not is_transient(error):
                raise
        context.raise_if_stopping()
        time.sleep(pause * jitter.between(0.5, 1.0))  # spreads the children
        pause = min(pause * 2, _PAUSES[1])


def _row(database: Database, query: LiteralString, parameters: Mapping[str, Any]) -> Any:
    found = rows(database, query, parameters)
    return found[0] if found else None
