"""Owns which job the running code belongs to, and what that code may say of it or ask about it.

It must not talk to the database: the worker sets the context around each attempt and hears what is said through a `Voice`.
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from contextlib import suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, Protocol, TypeVar

from jobrunner.control import JobStopped
from jobrunner.errors import NoCurrentJob, SoftTimeLimitExceeded
from jobrunner.payload import encode_checkpoint
from jobrunner.texts import storable

if TYPE_CHECKING:
    from datetime import datetime

    from jobrunner.handle import Job
    from jobrunner.tasks import BoundTask, Task

P = ParamSpec("P")
R = TypeVar("R")

MAX_PROGRESS_TEXT = 500  # characters
MAX_CHECKPOINT_BYTES = 256_000  # of JSON; it is written to the job's row each time
NOTES_PER_SECOND = 50  # progress notes that leave the attempt; more are joined, the newest wins
BURST = 200  # notes at once before that
LATEST_AFTER = 0.5  # seconds after which a note that was held back goes out though nothing newer comes
LOGGER = "jobrunner.job"
_LOG = logging.getLogger(LOGGER)
SOFT_LIMIT = "timeout"  # the reason to stop that is no wish of anybody's


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
        "_allowance", "_checkpoint", "_pending", "_said", "_spent_at", "_timer", "_voice", "_words", "attempt", "deadline", "fenced", "id",
        "interruptible", "lease", "log", "log_bytes", "log_level", "log_lines", "max_attempts", "owed", "owner", "queue", "session",
        "soft_seconds", "stop_reason", "task",
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
        self.log = _LOG
        self.log_level: int | None = logging.INFO
        self.log_lines, self.log_bytes = 0, 0  # sent to the job's log
        self.owner: Any = None  # the JobRunner that runs it; what is enqueued for another one is no child of this job
        self.session: Any = None  # of a transactional task: what it enqueues joins that transaction
        self.soft_seconds: float | None = None
        self.stop_reason: str | None = None
        self.interruptible = False  # whether an exception may be raised in the task at this moment
        self.owed: BaseException | None = None  # an interrupt that came while none may be raised: the task's code begins with it
        self.fenced = lease > 0  # whether what it enqueues is refused once it is superseded; not for `jobrunner run`, which has no row
        self._voice: Voice = voice or Silence()
        self._checkpoint = checkpoint
        self._words = threading.Lock()  # of the four below: a timer sends what was held back
        self._pending: tuple[float | None, str | None] | None = None
        self._said: tuple[float | None, str | None] | None = None
        self._allowance, self._spent_at = float(BURST), time.monotonic()
        self._timer: threading.Timer | None = None

    def progress(self, fraction: float | None = None, text: str | None = None) -> None:
        """Say how far the work is; shown in `v_jobs`, the dashboard and `jobrunner jobs show` within about a second.

        Cheap: calls that come faster than 50 a second are joined, the newest wins and always arrives. Refused silently once the attempt
        is superseded.

        Args:
            fraction: 0 to 1; values outside are taken as the nearer end; None leaves what was said before.
            text: a few words, such as "page 4/10"; cut at 500 characters; None leaves what was said before.

        Raises:
            ValueError: `fraction` is NaN.
        """
        if fraction is not None:
            fraction = float(fraction)
            if math.isnan(fraction):
                raise ValueError("progress(nan): expected a number from 0 to 1; was something divided by a total of 0?")
            fraction = min(1.0, max(0.0, fraction))
        words = None if text is None else storable(str(text)[:MAX_PROGRESS_TEXT])[:MAX_PROGRESS_TEXT]
        now = time.monotonic()
        with self._words:
            self._said = _joined(self._said, (fraction, words))
            self._pending = _joined(self._pending, (fraction, words))
            self._allowance = min(BURST, self._allowance + (now - self._spent_at) * NOTES_PER_SECOND)
            self._spent_at = now
            if self._allowance < 1:
                self._send_later()
                return
            self._allowance -= 1
        self.flush()

    def _send_later(self) -> None:
        """The last of many calls must arrive though none follows: a task may report 100,000 rows in a second and then work for an hour."""
        if self._timer is None:
            timer = threading.Timer(LATEST_AFTER, self._send_held_back)
            timer.daemon = True
            with suppress(RuntimeError):  # no thread to be had; the end of the attempt sends it
                timer.start()
                self._timer = timer

    def _send_held_back(self) -> None:
        with self._words:
            self._timer = None
        with suppress(OSError):  # the worker is gone
            self.flush()

    def flush(self) -> None:
        """Send progress that was held back. The worker calls it at the end of the attempt."""
        with self._words:
            pending, self._pending = self._pending, None
        if pending is not None:
            self._voice.note(*pending, None)

    def last_words(self) -> tuple[float | None, str | None] | None:
        """For the worker: what `progress` said last, over all calls, if anything; nothing is held back any more."""
        with self._words:
            self._pending = None
            return self._said

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
            SoftTimeLimitExceeded: it is the soft time limit that is over; uses up an attempt as any exception.
        """
        if self.should_stop():
            if self.stop_reason == SOFT_LIMIT:
                raise SoftTimeLimitExceeded(self.soft_seconds or 0.0)
            raise JobStopped(str(self.stop_reason))

    def stop(self, reason: str) -> None:
        """For the worker: from now on `should_stop()` is true. A wish of somebody's counts more than a limit."""
        if self.stop_reason is None or reason != SOFT_LIMIT:
            self.stop_reason = reason

    def enqueue(self, task: Task[P, R] | BoundTask[P, R], *args: P.args, **kwargs: P.kwargs) -> Job[R]:
        """Enqueue a child of this job: `task.enqueue(...)` with `parent_id` set, refused once this attempt is superseded.

        A plain `task.enqueue(...)` in a running job does the same. In a transactional task the child joins the job's transaction.

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


def current_fence(application: object) -> Fence | None:
    """The running attempt, for what must be refused once it is superseded; None outside of a job of this application."""
    context = _current.get()
    return Fence(context.id, context.lease) if context is not None and context.fenced and _owns(application, context) else None


def current_session(application: object) -> Any:
    """The session of the transactional job of this application that runs here, or None."""
    context = _current.get()
    return context.session if context is not None and _owns(application, context) else None


def _owns(application: object, context: JobContext) -> bool:
    return context.owner is None or context.owner is application


def _joined(older: tuple[float | None, str | None] | None, newer: tuple[float | None, str | None]) -> tuple[float | None, str | None]:
    if older is None:
        return newer
    return (older[0] if newer[0] is None else newer[0], older[1] if newer[1] is None else newer[1])


enter, leave = _current.set, _current.reset  # for the worker's hot path: what `running` does, as functions in C


class running:  # noqa: N801  used as a function is: `with running(context):`
    """For the worker: make `context` the current job for the length of the block."""

    __slots__ = ("_context", "_token")

    def __init__(self, context: JobContext) -> None:
        self._context = context

    def __enter__(self) -> JobContext:
        self._token = _current.set(self._context)
        return self._context

    def __exit__(self, *_: object) -> None:
        _current.reset(self._token)
