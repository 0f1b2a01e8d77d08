"""Owns the way from a claimed job to the end of its attempt: the code of a worker's child, called here instead of in a process.

It must not know how that code works: all that this package uses of it is in this module.
"""

from __future__ import annotations

import contextvars
import inspect
from typing import TYPE_CHECKING, Any

from jobrunner import clock, payload
from jobrunner.current import running
from jobrunner.jobs import Ended, Ending, Note, Settled, Succeeded, Unsuccessful
from jobrunner.worker import executing, wire
from jobrunner.worker.notebook import Notebook

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from jobrunner.app import JobRunner
    from jobrunner.jobs import ClaimedJob


class Notes:
    """Keeps what an attempt says of itself, progress and checkpoints, until the attempt is over; nobody speaks to it."""

    def __init__(self, job: ClaimedJob) -> None:
        self._job = job
        self._book = Notebook()

    def note(self, fraction: float | None, text: str | None, checkpoint: str | None) -> None:
        """Keep it."""
        self._book.add([Note(self._job.id, self._job.lease, fraction, text, checkpoint)], [])

    def take(self) -> list[Note]:
        """What is to be written."""
        return self._book.take()[0]

    def listen(self) -> None:
        """Nothing: no worker wants the attempt to end."""


def execute(jobs: JobRunner, job: ClaimedJob, runner: asyncio.Runner) -> tuple[Ended, list[Note]]:
    """Run one attempt: arguments decoded, app context, current job, result encoded. Never raises; `jobs.execution_context` sees errors.

    Returns:
        How it ended, and what it said meanwhile.
    """
    assignment, voice = _assignment(job), Notes(job)
    context = executing.context_of(jobs.registry.get(job.task), assignment, voice)
    fields = executing.execute(jobs, context, assignment, executing.ThreadSpent(), _call(runner))
    return _ended(fields), voice.take()


def perform(jobs: JobRunner, job: ClaimedJob, runner: asyncio.Runner) -> str | None:
    """Run one call without a job. Returns the result as JSON text; raises what the task raises."""
    assignment = _assignment(job)
    task = jobs.registry.get(job.task)
    context = executing.context_of(task, assignment, Notes(job))
    with jobs.execution_context(), running(context):
        args, kwargs = payload.decode_args(task, assignment.args)
        if not task.running.transactional:
            return _text(jobs, _call(runner)(task, *args, **kwargs))
        from jobrunner.worker import transactions

        result = transactions.rehearse(jobs, context, lambda session: task.fn(*args, session=session, **kwargs))
        return _text(jobs, result)


def _assignment(job: ClaimedJob) -> wire.Assignment:
    # Through the bytes that travel to a child, so that the arguments are read from JSON text as there.
    return wire.decode_job(wire.encode_job(job))


def _call(runner: asyncio.Runner) -> Callable[..., Any]:
    def call(task: Any, /, *args: Any, **kwargs: Any) -> Any:
        value = task.fn(*args, **kwargs)
        if inspect.isawaitable(value):
            value = runner.run(_await(value), context=contextvars.copy_context())
        return value

    return call


async def _await(value: Any) -> Any:
    return await value


def _text(jobs: JobRunner, value: Any) -> str | None:
    return None if value is None else payload.encode_result(value, jobs.max_result_bytes)


def _ended(fields: list[Any]) -> Ended:
    job_id, lease, ending, *rest, run_us, cpu_ms, peak = fields
    run_ms, now = round(run_us / 1000), clock.monotonic()
    if ending == "ok":
        return Succeeded(job_id, lease, rest[0], run_ms, cpu_ms, now, peak)
    if ending == wire.DONE:
        return Settled(job_id, lease)
    *words, delay_ms = rest
    return Unsuccessful._make((Ending(ending), job_id, lease, *words, run_ms, cpu_ms, now, delay_ms, peak))
