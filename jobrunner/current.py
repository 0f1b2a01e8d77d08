"""Owns which job the running code belongs to.

It must not talk to the database: the worker sets the context around each attempt, task code reads it.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobrunner.errors import NoCurrentJob

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class JobContext:
    """The attempt that is running.

    Attributes:
        id: of the job; stays the same over its attempts.
        task: name of the task.
        queue: where the job was enqueued.
        attempt: 1 for the first.
        max_attempts: how many there may be.
        lease: the fencing number of this attempt; grows with every claim.
    """

    id: int
    task: str
    queue: str
    attempt: int
    max_attempts: int
    lease: int


_current: ContextVar[JobContext | None] = ContextVar("jobrunner_current_job", default=None)


def current_job() -> JobContext:
    """The job that this code runs in.

    Raises:
        NoCurrentJob: the code does not run in a worker, or in a thread that task code started without copying its context.
    """
    context = _current.get()
    if context is None:
        raise NoCurrentJob
    return context


@contextmanager
def running(context: JobContext) -> Iterator[JobContext]:
    """For the worker: make `context` the current job for the length of the block."""
    token = _current.set(context)
    try:
        yield context
    finally:
        _current.reset(token)
