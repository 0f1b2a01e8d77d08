"""Owns the handle of a job in a test: as `Job`, but it does not wait for a worker that will never come.

It must not run the job: that is what the test asks for, with `drain()`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from jobrunner import payload
from jobrunner.errors import JobCancelled, JobFailed
from jobrunner.handle import Job
from jobrunner.states import FINISHED, State

if TYPE_CHECKING:
    from datetime import timedelta

    from jobrunner.app import JobRunner
    from jobrunner.testing.ground import Ground

R = TypeVar("R")

SERVED = "SELECT name, host FROM jobrunner.v_workers WHERE state = 'alive' AND kind NOT IN ('test', 'consumer') LIMIT 1"
_END = "SELECT state, task, result, error_type, error FROM jobrunner.v_jobs WHERE id = %s"
_LAST_ATTEMPT = "SELECT traceback, exit_cause FROM jobrunner.v_attempts WHERE job_id = %s ORDER BY lease DESC LIMIT 1"


class JobInTest(Job[R]):
    """A job of a test. Everything it reads and does is in the place where the test's jobs are."""

    __slots__ = ("_ground", "_jobs")

    def __init__(self, jobs: JobRunner, ground: Ground, job_id: int, state: str, *, created: bool = True) -> None:
        super().__init__(jobs, job_id, state, created=created)
        self._jobs = jobs
        self._ground = ground

    def wait(self, timeout: float | timedelta | None = None) -> str:
        """As `Job.wait`, but a job that nobody will run is a TimeoutError at once."""
        self._refuse_to_wait()
        return self.state if self.state in FINISHED else super().wait(timeout)

    def result(self, timeout: float | timedelta | None = None) -> R:
        """As `Job.result`, but a job that nobody will run is a TimeoutError at once."""
        self._refuse_to_wait()
        if self.state not in FINISHED:
            return super().result(timeout)
        if self.state == State.CANCELLED:
            raise JobCancelled(self.id)
        with self._ground.database.store() as store:
            state, task, value, error_type, error = store.connection.execute(_END, (self.id,)).fetchone()  # type: ignore[misc]
            if state != State.SUCCEEDED:
                attempt = store.connection.execute(_LAST_ATTEMPT, (self.id,)).fetchone() or (None, None)
                raise JobFailed(self.id, state, error_type, error, *attempt)
        found = self._jobs.registry.find(task)
        return payload.decode_result(Any, value) if found is None else found.decode_result(value)  # type: ignore[no-any-return]

    def _refuse_to_wait(self) -> None:
        self.refresh()
        if self.state in FINISHED:
            return
        with self._ground.database.store() as store:
            served = store.connection.execute(SERVED).fetchone()
        if self._ground.shared or served is None:
            raise TimeoutError(f"job {self.id} is {self.state}, and nobody runs it: drain() does, or a worker outside of testing.Jobs")
