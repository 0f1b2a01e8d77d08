"""Owns which job the running code belongs to, and what that code may say of it or ask about it.

It must not talk to the database: the worker sets the context around each attempt and hears what is said through a `Voice`.
"""

from __future__ import annotations

import json
import logging
import time
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, Protocol, TypeVar

from jobrunner.errors import JobStopped, NoCurrentJob
from jobrunner.payload import encode_checkpoint
from jobrunner.texts import storable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from jobrunner.handle import Job
    from jobrunner.tasks import BoundTask, Task

P = ParamSpec("P")
R = TypeVar("R")

MAX_PROGRESS_TEXT = 500  # characters
MAX_CHECKPOINT_BYTES = 256_000  # of JSON; it is written to the job's row each time
NOTES_PER_SECOND = 50  # progress notes that leave the attempt; more are joined, the newest wins
BURST = 200  # notes at once before that
LOGGER = "jobrunner.job"


class Voice(Protocol):
    """The tie between a running attempt and its worker."""

    def note(self, fraction: float | None, text: str | None, checkpoint: str | None) -> None:
        """Tell the worker; None leaves what is there."""

    def listen(self) -> None:
        """Take in what the worker has said; may call `JobContext.stop`, and may raise what interrupts the task."""


class Silence:
    """The voice of code that runs without a worker: `jobrunner run`, tests."""

    def note(self, fraction: float | None, text: str | None, checkpoint: str | None) -> None:
        """Nobody hears it."""

    def listen(self) -> None:
        """Nobody speaks."""


class Fence(NamedTuple):
    """The attempt on whose behalf something is written: refused once (id, lease) is no longer what runs."""

    id: int
    lease: int


class JobContext:
    """The attempt that is running.

    Attributes:
        id: of the job; stays the same over its attempts.
        task: name of the task.
        queue: where the job was enqueued.
        attempt: 1 for the first.
        max_attempts: how many there may be.
        lease: the fencing number of this attempt; grows with every claim, so that a system outside can refuse an older one.
        deadline: when `time_limit` ends this attempt, by this host's clock; None without a limit.
        log: a logger whose records, from DEBUG on, are kept in the job's log whatever the levels of other loggers are.
    """

    __slots__ = (
        "_allowance", "_checkpoint", "_pending", "_spent_at", "_voice", "attempt", "deadline", "fenced", "id", "interruptible", "lease",
        "log", "log_level", "max_attempts", "queue", "session", "soft_seconds", "stop_reason", "task",
    )  # fmt: skip

    def __init__(
        self,
        *,
        id: int,  # noqa: A002  the column's name
        task: str,
        queue: str,
        attempt: int,
        max_attempts: int,
        lease: int,
        deadline: datetime | None = None,
        checkpoint: str | None = None,
        voice: Voice | None = None,
    ) -> None:
        self.id, self.task, self.queue = id, task, queue
        self.attempt, self.max_attempts, self.lease = attempt, max_attempts, lease
        self.deadline = deadline
        self.log = logging.getLogger(LOGGER)
        self.log_level: int | None = logging.INFO
        self.session: Any = None  # of a transactional task: what it enqueues joins that transaction
        self.soft_seconds: float | None = None
        self.stop_reason: str | None = None
        self.interruptible = False  # whether an exception may be raised in the task at this moment
        self.fenced = lease > 0  # whether what it enqueues is refused once it is superseded; not for `jobrunner run`, which has no row
        self._voice: Voice = voice or Silence()
        self._checkpoint = checkpoint
        self._pending: tuple[float | None, str | None] | None = None
        self._allowance, self._spent_at = float(BURST), time.monotonic()

    def progress(self, fraction: float | None = None, text: str | None = None) -> None:
        """Say how far the work is; shown in `v_jobs`, the dashboard and `jobrunner jobs show` within about a second.

        Cheap: calls that come faster than 50 a second are joined, the newest wins. Refused silently once the attempt is superseded.

        Args:
            fraction: 0 to 1; values outside are taken as the nearer end.
            text: a few words, such as "page 4/10"; cut at 500 characters.
        """
        clean = None if fraction is None else min(1.0, max(0.0, float(fraction)))
        if clean is not None and clean != clean:  # noqa: PLR0124  NaN
            raise ValueError("progress(nan): expected a number from 0 to 1")
        self._pending = (clean, None if text is None else storable(str(text))[:MAX_PROGRESS_TEXT])
        now = time.monotonic()
        self._allowance = min(BURST, self._allowance + (now - self._spent_at) * NOTES_PER_SECOND)
        self._spent_at = now
        if self._allowance >= 1:
            self._allowance -= 1
            self.flush()

    def flush(self) -> None:
        """Send progress that was held back. The worker calls it at the end of the attempt."""
        if self._pending is not None:
            (fraction, text), self._pending = self._pending, None
            self._voice.note(fraction, text, None)

    def checkpoint(self, value: Any) -> None:
        """Keep `value` for the next attempt, which finds it in `last_checkpoint`: after an error, a crash, a deploy, a `jobs retry`.

        Written with the job's row by the worker within about half a second, always before the end of this attempt, and refused once
        the attempt is superseded. It is lost only when the worker itself is killed within that time; then the one before counts.

        Args:
            value: anything JSON can hold, at most 256 kB.

        Raises:
            InvalidPayload: it cannot be stored; the checkpoint before stays.
        """
        text = encode_checkpoint(value, MAX_CHECKPOINT_BYTES)
        self.flush()
        self._checkpoint = text
        self._voice.note(None, None, text)

    @property
    def last_checkpoint(self) -> Any:
        """What `checkpoint` last kept, in this attempt or an earlier one, as JSON data; None when there is none."""
        return None if self._checkpoint is None else json.loads(self._checkpoint)

    def should_stop(self) -> bool:
        """Whether somebody wants this attempt to end: a cancel, the shutdown of the worker, a limit that is near.

        A task that looks at this can leave in order: keep a checkpoint and call `raise_if_stopping()`, or return.
        Costs a system call, about a microsecond.
        """
        self._voice.listen()
        return self.stop_reason is not None

    def raise_if_stopping(self) -> None:
        """Leave the attempt when `should_stop()`: a cancelled job is then cancelled, one that a deploy stops is released unharmed.

        Raises:
            JobStopped: a BaseException, so that `except Exception` in task code does not swallow it.
        """
        if self.should_stop():
            raise JobStopped(str(self.stop_reason))

    def stop(self, reason: str) -> None:
        """For the worker: from now on `should_stop()` is true."""
        self.stop_reason = reason

    def enqueue(self, task: Task[P, R] | BoundTask[P, R], *args: P.args, **kwargs: P.kwargs) -> Job[R]:
        """Enqueue a child of this job: `task.enqueue(...)` with `parent_id` set, refused once this attempt is superseded.

        A plain `task.enqueue(...)` in a running job does the same.

        Raises:
            LeaseLost: another attempt of this job runs by now, or it was cancelled; nothing was written.
            InvalidPayload: as for `Task.enqueue`.
        """
        return task.enqueue(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<JobContext {self.id} {self.task} attempt {self.attempt}/{self.max_attempts} lease {self.lease}>"


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


def current_or_none() -> JobContext | None:
    """The job that this code runs in, or None."""
    return _current.get()


def current_fence() -> Fence | None:
    """The running attempt, for what must be refused once it is superseded; None outside of a job."""
    context = _current.get()
    return Fence(context.id, context.lease) if context is not None and context.fenced else None


def current_session() -> Any:
    """The session of the transactional job that runs here, or None."""
    context = _current.get()
    return context.session if context is not None else None


@contextmanager
def running(context: JobContext) -> Iterator[JobContext]:
    """For the worker: make `context` the current job for the length of the block."""
    token = _current.set(context)
    try:
        yield context
    finally:
        _current.reset(token)
