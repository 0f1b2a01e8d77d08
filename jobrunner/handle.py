"""Owns `Job`, what an application holds of a job it enqueued: its state, its result, and the verbs on it.

It must not cache more than the last state seen, nor change a row by itself: the store's statements do.
"""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar

from jobrunner import payload
from jobrunner.errors import JobCancelled, JobFailed, JobNotFound
from jobrunner.states import FINISHED, State

if TYPE_CHECKING:
    from jobrunner.store import Database
    from jobrunner.tasks import Registry

R = TypeVar("R")

FIRST_POLL = 0.005  # seconds between looks at a job that was just enqueued; most results are there within milliseconds
LONGEST_POLL = 0.25  # and of one that takes its time
POLL_GROWTH = 1.5

_STATE = "SELECT state FROM jobrunner.v_jobs WHERE id = %s"
_IS_LIVE = "SELECT 1 FROM jobrunner.jobs WHERE id = %s"
_FINISHED = (
    "SELECT state, task, result, last_error_type, last_error FROM jobrunner.job_history WHERE id = %s ORDER BY finished_at DESC LIMIT 1"
)
_TRACEBACK = "SELECT traceback FROM jobrunner.job_attempts WHERE job_id = %s ORDER BY finished_at DESC LIMIT 1"


class Owner(Protocol):
    """What a handle needs of the JobRunner that made it."""

    @property
    def database(self) -> Database:
        """Where the job is."""

    @property
    def registry(self) -> Registry:
        """To find the task's return annotation."""

    def wake(self, queue: str) -> None:
        """Tell workers that a queue has work."""


class Job(Generic[R]):
    """One job, by its id.

    Attributes:
        id: the primary key of its row; stays the same when it moves to history.
        created: False when `unique` found a live job with the same key and gave that one.
        state: as it was last seen, in the words of `v_jobs`: scheduled, queued, running, retrying, succeeded, failed, cancelled,
            quarantined. `refresh()` looks again.
    """

    __slots__ = ("_owner", "created", "id", "state")

    def __init__(self, owner: Owner, job_id: int, state: str, *, created: bool = True) -> None:
        self._owner = owner
        self.id = job_id
        self.state = state
        self.created = created

    def refresh(self) -> Job[R]:
        """Read the state again, on a connection of its own.

        Raises:
            JobNotFound: no such row: the transaction that enqueued it is still open or was rolled back, or history was pruned.
        """
        rows = self._read(_STATE)
        if not rows:
            raise JobNotFound(self.id)
        self.state = rows[0][0]
        return self

    def wait(self, timeout: float | timedelta | None = None) -> str:
        """Wait until the job is finished, looking at first every 5 ms, later every 250 ms.

        Args:
            timeout: seconds or timedelta; None waits for ever.

        Returns:
            The final state.

        Raises:
            TimeoutError: it is not finished yet; the job goes on.
            JobNotFound: as for `refresh`.
        """
        self._await_finish(timeout)
        return self.state

    def result(self, timeout: float | timedelta | None = None) -> R:
        """Wait until the job is finished and give what the function returned, decoded by its return annotation.

        Args:
            timeout: seconds or timedelta; None waits for ever.

        Raises:
            JobFailed: it failed or was quarantined; has the error of the last attempt.
            JobCancelled: it was cancelled.
            TimeoutError, JobNotFound: as for `wait`.
        """
        state, task, value, error_type, error = self._await_finish(timeout)
        if state == State.CANCELLED:
            raise JobCancelled(self.id)
        if state != State.SUCCEEDED:
            rows = self._read(_TRACEBACK)
            raise JobFailed(self.id, state, error_type, error, rows[0][0] if rows else None)
        annotation = self._owner.registry[task].result_annotation if task in self._owner.registry else Any
        return payload.decode_result(annotation, value)  # type: ignore[no-any-return]

    def cancel(self) -> Literal["cancelled", "requested"]:
        """Cancel the job if it waits, or ask it to stop if it runs.

        Raises:
            JobNotFound, IllegalTransition: there is no such job, or it is finished.
        """
        with self._owner.database.store() as store:
            answer = store.cancel(self.id)
        if answer == "cancelled":
            self.state = State.CANCELLED.value
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
        self.state = State.QUEUED.value
        self._owner.wake(queue)

    def _await_finish(self, timeout: float | timedelta | None) -> tuple[Any, ...]:
        seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
        deadline = None if seconds is None else time.monotonic() + seconds
        pause = FIRST_POLL
        missing = 0
        while True:
            if not self._read(_IS_LIVE):
                rows = self._read(_FINISHED)
                if rows:
                    self.state = rows[0][0]
                    return rows[0]  # type: ignore[no-any-return]
                # Between the two reads an operator may have brought it back from history: one more look decides.
                missing += 1
                if missing > 1:
                    raise JobNotFound(self.id)
                continue
            missing = 0
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                self.refresh()
                if self.state in FINISHED:
                    continue
                raise TimeoutError(f"job {self.id} is not finished after {seconds} s: it is {self.state}")
            time.sleep(pause if left is None else min(pause, left))
            pause = min(pause * POLL_GROWTH, LONGEST_POLL)

    def _read(self, query: str) -> list[Any]:
        with self._owner.database.store() as store:
            return store.connection.execute(query, (self.id,)).fetchall()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Job) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"<Job {self.id} {self.state}>"
