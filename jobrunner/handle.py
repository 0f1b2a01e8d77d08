"""Owns `Job`, what an application holds of a job it enqueued: its state, its result, and the verbs on it.

It must not cache more than the last state seen, nor change a row by itself: the store's statements do.
"""

from __future__ import annotations

import json
import math
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar

from jobrunner import payload
from jobrunner.errors import JobCancelled, JobFailed, JobNotFound, ResultExpired
from jobrunner.states import FINISHED, State

if TYPE_CHECKING:
    from jobrunner.database import Database
    from jobrunner.looking import Row
    from jobrunner.tasks import Registry

R = TypeVar("R")

_STATE = "SELECT state FROM jobrunner.v_jobs WHERE id = %s"


class Owner(Protocol):
    """What a handle needs of the JobRunner that made it."""

    @property
    def database(self) -> Database:
        """Where the job is."""

    @property
    def database_name(self) -> str:
        """Which of several databases that is."""

    @property
    def registry(self) -> Registry:
        """To find the task's return annotation."""

    def wake(self, queue: str) -> None:
        """Tell workers that a queue has work."""


class Job(Generic[R]):
    """One job, by its id in its database.

    Attributes:
        id: the primary key of its row; stays the same when it moves to history.
        created: False when `unique` found a live job with the same key and gave that one.
        state: as it was last seen, in the words of `v_jobs`: scheduled, queued, running, retrying, succeeded, failed, cancelled,
            quarantined. `refresh()` looks again.
    """

    __slots__ = ("_owner", "_seen", "created", "id", "state")

    def __init__(self, owner: Owner, job_id: int, state: str, *, created: bool = True, seen: bool = False) -> None:
        self._owner = owner
        self._seen = seen  # whether the row is known to have been committed
        self.id = job_id
        self.state = state
        self.created = created

    @property
    def database_name(self) -> str:
        """The name of the database the job is in, when there are several; else `default`. With the id it finds the job again."""
        return self._owner.database_name

    def refresh(self) -> Job[R]:
        """Read the state again, on a connection of its own.

        Raises:
            JobNotFound: no such row: the transaction that enqueued it is still open or was rolled back.
            ResultExpired (a JobNotFound): the row was there, and retention has dropped it since.
        """
        with self._owner.database.store() as store:
            row = store.connection.execute(_STATE, (self.id,)).fetchone()
        if row is None:
            raise ResultExpired(self.id) if self._seen else JobNotFound(self.id)
        self._saw(row[0])
        return self

    def wait(self, timeout: float | timedelta | None = None) -> str:
        """Wait until the job is finished.

        All who wait in this process share one connection and one thread, which looks every 2 ms at jobs that were just enqueued
        and four times a second at those that take long. An outage of the database is waited through, up to `timeout`.

        Args:
            timeout: seconds or timedelta; 0 looks once; None waits for ever, as long as the database answers.

        Returns:
            The final state.

        Raises:
            TimeoutError: it is not finished yet, or the database did not say so in time (`__cause__` then says why); the job goes on.
            JobNotFound: no such row: the transaction that enqueued it is still open or was rolled back.
            ResultExpired (a JobNotFound): the row was there, and retention has dropped it since.
            DatabaseUnreachable: there was no timeout, and the database has not answered for two minutes.
        """
        return self._await_finish(timeout).state

    def result(self, timeout: float | timedelta | None = None) -> R:
        """Wait until the job is finished and give what the function returned, decoded by its return annotation.

        Args:
            timeout: as for `wait`.

        Raises:
            JobFailed: it failed or was quarantined; has the error and the traceback of the last attempt.
            JobCancelled: it was cancelled.
            TimeoutError, JobNotFound, ResultExpired, DatabaseUnreachable: as for `wait`.
        """
        row = self._await_finish(timeout)
        if row.state == State.CANCELLED:
            raise JobCancelled(self.id)
        if row.state != State.SUCCEEDED:
            raise JobFailed(self.id, row.state, row.error_type, row.error, row.traceback, row.exit_cause)
        task = self._owner.registry.find(row.task)
        value = None if row.result is None else json.loads(row.result)
        return payload.decode_result(Any, value) if task is None else task.decode_result(value)  # type: ignore[no-any-return]

    def cancel(self) -> Literal["cancelled", "requested"]:
        """Cancel the job if it waits, or ask it to stop if it runs.

        Raises:
            JobNotFound, IllegalTransition: there is no such job, or it is finished.
        """
        with self._owner.database.store() as store:
            answer = store.cancel(self.id)
        if answer == "cancelled":
            self._saw(State.CANCELLED.value)
            return "cancelled"
        return "requested"

    def retry(self) -> None:
        """Run a failed, cancelled or quarantined job again under the same id, or a waiting one now.

        Raises:
            JobNotFound, IllegalTransition: there is no such job, or it is running or has succeeded.
            DuplicateJob: another live job has its unique key.
        """
        with self._owner.database.store() as store:
            queue = store.requeue(self.id)
        self._saw(State.QUEUED.value)
        self._owner.wake(queue)

    def _await_finish(self, timeout: float | timedelta | None) -> Row:
        from jobrunner.waiters import watcher_of  # only who waits pays for the driver

        seconds = _seconds(timeout)
        row = watcher_of(self._owner.database.dsn).wait(self.id, seconds, seen=self._seen)
        self._saw(row.state)
        if row.state not in FINISHED:
            raise TimeoutError(f"job {self.id} is not finished after {seconds:g} s: it is {row.state}")
        return row

    def _saw(self, state: str) -> None:
        self.state, self._seen = state, True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Job) and other.id == self.id and other.database_name == self.database_name

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"<Job {self.id} {self.state}>"


def _seconds(timeout: object) -> float | None:
    if isinstance(timeout, timedelta):
        return timeout.total_seconds()
    if timeout is None or timeout == math.inf:
        return None
    if not isinstance(timeout, (int, float)) or isinstance(timeout, bool) or math.isnan(timeout):
        raise TypeError(f"timeout={timeout!r}: expected seconds, a timedelta or None")
    return timeout
