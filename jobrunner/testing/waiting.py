"""Owns reading the jobs that wait, and those that have waited.

It must not change a row nor choose among them: `criteria` does.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from jobrunner.testing.handles import JobInTest

if TYPE_CHECKING:
    from datetime import datetime

    from jobrunner.app import JobRunner
    from jobrunner.database import Database
    from jobrunner.handle import Job
    from jobrunner.testing.clock import Clock
    from jobrunner.testing.criteria import Wanted
    from jobrunner.testing.ground import Ground

_WAITING = (
    "SELECT id, task, args, queue, priority, tags, meta, unique_key, parent_id, attempt, max_attempts, created_at, run_at "
    "FROM jobrunner.jobs WHERE state = 'queued' ORDER BY id"
)
_GONE = "SELECT id, task, args, state FROM jobrunner.v_jobs WHERE id > %s AND task = %s AND finished_at IS NOT NULL ORDER BY id"
_LAST_ID = "SELECT coalesce(pg_sequence_last_value(pg_get_serial_sequence('jobrunner.jobs', 'id')::regclass), 0)"


@dataclass(frozen=True, slots=True)
class Waiting:
    """A job that waits.

    Attributes:
        job: the handle.
        args: as the JSON data that the row holds.
        state: `queued`, `scheduled` or `retrying`, by the test's clock.
        run_at: when it is due.
    """

    id: int
    task: str
    args: dict[str, Any]
    queue: str
    priority: int
    tags: list[str]
    meta: dict[str, Any] | None
    unique_key: str | None
    parent_id: int | None
    attempt: int
    max_attempts: int
    created_at: datetime
    run_at: datetime
    state: str
    job: Job[Any]


def read(jobs: JobRunner, ground: Ground, clock: Clock) -> list[Waiting]:
    """All jobs that wait, in the order in which they were enqueued."""
    names = [field.name for field in fields(Waiting)][:-2]
    now = clock.now()
    found = []
    with ground.database.store() as store:
        for row in store.connection.execute(_WAITING).fetchall():
            values = dict(zip(names, row, strict=True))
            state = "retrying" if values["attempt"] > 0 else "scheduled" if values["run_at"] > now else "queued"
            found.append(Waiting(**values, state=state, job=JobInTest(jobs, ground, values["id"], state)))
    return found


def gone(database: Database, after_id: int, question: Wanted) -> list[tuple[int, str]]:
    """Jobs with the task and arguments asked for that wait no more: id and state; only those made after a job's id."""
    if question.task is None:
        return []
    with database.store() as store:
        rows = store.connection.execute(_GONE, (after_id, question.task)).fetchall()
    return [(job_id, state) for job_id, _, args, state in rows if question.args_fit(args)]


def last_id(database: Database) -> int:
    """The highest id given to a job so far."""
    with database.store() as store:
        return int(store.connection.execute(_LAST_ID).fetchone()[0])  # type: ignore[index]
