"""Owns one attempt: from the arguments of a row to the line that tells the worker how it ended.

It must not choose what runs next to it (process, threads, event loop: the children's loops do) nor touch our tables, but for the
end of a transactional job.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import sys
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Protocol

from jobrunner import payload
from jobrunner.control import Cancel, Fail, JobControl, JobStopped, Retry, Snooze
from jobrunner.current import JobContext, enter, leave, running
from jobrunner.errors import SoftTimeLimitExceeded, UnstorableResult
from jobrunner.jobs import Ending
from jobrunner.texts import cut, storable
from jobrunner.worker.failures import MESSAGE_LIMIT, describe
from jobrunner.worker.voices import pay
from jobrunner.worker.wire import DONE, MICROSECONDS, OK

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobrunner.app import JobRunner
    from jobrunner.current import Voice
    from jobrunner.tasks import Task
    from jobrunner.worker.voices import ProcessEar
    from jobrunner.worker.wire import Assignment

_MAX_DELAY_MS = 10 * 365 * 86_400_000  # ten years: what a task asks for must always be a time the database can store


class Spent(Protocol):
    """Measures one attempt."""

    def read(self) -> tuple[int, int | None, int | None]:
        """Microseconds of wall time, milliseconds of CPU, and peak bytes since it was made; None for what cannot be told of one attempt."""


class WallOnly:
    """For attempts that share their thread with others: only time on the wall is theirs."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def read(self) -> tuple[int, int | None, int | None]:
        """Wall time."""
        return round((time.monotonic() - self._began) * MICROSECONDS), None, None


class ThreadSpent(WallOnly):
    """For attempts that have a thread of their own, but share the process; made in that thread."""

    def __init__(self) -> None:
        super().__init__()
        self._cpu = time.thread_time()

    def read(self) -> tuple[int, int | None, int | None]:
        """Wall time, and CPU time of the thread."""
        return super().read()[0], round((time.thread_time() - self._cpu) * 1000), None


def context_of(task: Task[..., Any] | None, job: Assignment, voice: Voice) -> JobContext:
    """The context of an attempt that is about to begin."""
    deadline = None if job.time_limit_ms is None else datetime.now(UTC) + timedelta(milliseconds=job.time_limit_ms)
    context = JobContext(
        id=job.id, task=job.task, queue=job.queue, attempt=job.attempt, max_attempts=job.max_attempts, lease=job.lease,
        deadline=deadline, checkpoint=job.checkpoint, voice=voice,
    )  # fmt: skip
    soft_ms = (job.limits or {}).get("soft_ms")
    context.soft_seconds = None if soft_ms is None else soft_ms / 1000
    if task is not None:
        context.log_level = task.running.log_level
    return context


def execute(jobs: JobRunner, context: JobContext, job: Assignment, spent: Spent, call: Callable[..., Any]) -> list[Any]:
    """One attempt in this thread. Never raises.

    Args:
        call: runs `task.fn` with its arguments and gives what it returned; knows what to do with a coroutine.

    Returns:
        What the worker is told: `[id, lease, ending, …, run_us, cpu_ms, peak_memory]`.
    """
    ending: list[Any]
    context.owner = jobs
    try:
        with jobs.execution_context():
            token = enter(context)
            try:
                task = jobs.registry.get(job.task)
                args, kwargs = task.parameters.call(job.args)
                if task.running.transactional:
                    from jobrunner.worker import transactions  # SQLAlchemy's ORM: half a second that other workers need not spend

                    transactions.run(jobs, context, spent, lambda session: call(task, *args, session=session, **kwargs))
                    ending = [DONE]
                elif (value := call(task, *args, **kwargs)) is None:
                    ending = [OK, None]
                else:
                    ending = [OK, payload.encode_result(value, jobs.max_result_bytes)]
            finally:
                leave(token)
    except BaseException as error:  # noqa: BLE001  whatever task code raises ends its attempt, never the worker
        ending = ended_by(error, job)
    return report(context, job, ending, spent)


async def execute_async(jobs: JobRunner, context: JobContext, job: Assignment, spent: Spent, call: Callable[..., Any]) -> list[Any]:
    """As `execute`, for a coroutine among others in one event loop; `call` gives an awaitable."""
    ending: list[Any]
    context.owner = jobs
    try:
        with jobs.execution_context(), running(context):
            task = jobs.registry.get(job.task)
            args, kwargs = task.parameters.call(job.args)
            ending = [OK, _stored(jobs, await call(task, *args, **kwargs))]
    except BaseException as error:  # noqa: BLE001
        ending = ended_by(error, job)
    return report(context, job, ending, spent)


def report(context: JobContext, job: Assignment, ending: list[Any], spent: Spent) -> list[Any]:
    """The line that tells the worker how an attempt ended."""
    try:  # noqa: SIM105  no object for each job
        context.flush()
    except OSError:  # the worker is gone; the line itself will find out
        pass
    return [job.id, job.lease, *ending, *spent.read()]


def _stored(jobs: JobRunner, value: Any) -> str | None:
    return None if value is None else payload.encode_result(value, jobs.max_result_bytes)


def never_begin(value: Any) -> None:
    """A coroutine that is not going to be awaited: Python would warn of it."""
    if inspect.iscoroutine(value):
        value.close()


class InProcess:
    """Calls tasks in the main thread of a child that has nothing else to do; one event loop serves all its coroutines."""

    def __init__(self, runner: asyncio.Runner, ear: ProcessEar) -> None:
        self.runner, self.ear = runner, ear

    def call(self, context: JobContext) -> Callable[..., Any]:
        """The `call` of `execute` for one attempt."""

        def call(task: Task[..., Any], /, *args: Any, **kwargs: Any) -> Any:
            try:
                context.interruptible = True  # a signal from here on raises; one that came before has left what is owed
                if context.owed is not None:
                    pay(context)
                value = task.fn(*args, **kwargs)
            finally:
                context.interruptible = False
            if value is not None and inspect.isawaitable(value):
                # the runner has a context of its own, in which no job would be current
                value = self.runner.run(self._await(context, value), context=contextvars.copy_context())
            return value

        return call

    async def _await(self, context: JobContext, value: Any) -> Any:
        self.ear.coroutine, self.ear.pending = asyncio.current_task(), None
        try:
            context.interruptible = True
            if context.owed is not None:
                never_begin(value)
                pay(context)
            return await value
        except asyncio.CancelledError:
            if self.ear.pending is not None:
                raise self.ear.pending from None
            raise
        finally:
            context.interruptible = False
            self.ear.coroutine = None


def ended_by(error: BaseException, job: Assignment) -> list[Any]:
    """The part of the line that says how an attempt ended which raised `error`."""
    if isinstance(error, JobControl):
        return _controlled(error)
    if isinstance(error, UnstorableResult):
        return [Ending.FAIL, *describe(error), "exception", None]
    cause = "exception"
    if isinstance(error, SoftTimeLimitExceeded):
        cause = "timeout"
    elif isinstance(error, MemoryError) and (job.limits or {}).get("memory"):
        cause = "memory"
    return [Ending.RETRY, *describe(error), cause, None]


def _controlled(control: JobControl) -> list[Any]:
    message = cut(storable(str(getattr(control, "message", ""))), MESSAGE_LIMIT) or None
    name = type(control).__name__
    match control:
        case Retry():
            return [Ending.RETRY, f"jobrunner.{name}", message, None, None, "exception", _delay_ms(control.delay)]
        case Snooze():
            return [Ending.SNOOZE, None, message, None, None, None, _delay_ms(control.delay)]
        case Cancel() | Fail():
            own = isinstance(control, Fail)
            words = [Ending.FAIL, f"jobrunner.{name}"] if own else [Ending.ABORT, None]
            return [*words, message, None, None, "exception" if own else "cancelled", None]
        case JobStopped():
            ending = Ending.ABORT if control.reason == "cancelled" else Ending.RELEASE
            return [ending, None, message, None, None, control.reason, None]
        case _:
            return [Ending.RETRY, *describe(control), "exception", None]


def _delay_ms(delay: timedelta | None) -> int | None:
    return None if delay is None else min(int(delay.total_seconds() * 1000), _MAX_DELAY_MS)


def flush_streams() -> None:
    """What a task has printed leaves the process before its end is told."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            continue  # a task may have closed or replaced them
