"""Owns running task code: one job after another, in a process that has nothing else to do.

It must not touch our tables: what comes out of an attempt goes to the worker as a line of JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import json
import sys
import time
from typing import TYPE_CHECKING, Any

from jobrunner import payload
from jobrunner.current import JobContext, running
from jobrunner.errors import Cancel, Fail, JobControl, Retry, Snooze
from jobrunner.jobs import Ending
from jobrunner.worker import wire
from jobrunner.worker.failures import MESSAGE_LIMIT, cut, describe, storable

if TYPE_CHECKING:
    import socket
    from datetime import timedelta

    from jobrunner.app import JobRunner

_MAX_DELAY_MS = 10 * 365 * 86_400_000  # ten years: what a task asks for must always be a time the database can store


def serve(jobs: JobRunner, inbox: socket.socket, outbox: socket.socket) -> None:
    """Run jobs until the inbox closes. One asyncio runner serves all `async def` tasks of this process."""
    with asyncio.Runner() as runner:
        while data := wire.receive_job(inbox):
            line = execute(jobs, wire.decode_job(data), runner)
            _flush()
            outbox.sendall(line)


def execute(jobs: JobRunner, job: wire.Assignment, runner: asyncio.Runner) -> bytes:
    """One attempt, from arguments to a line for the worker: `[id, lease, ending, …, run_ms, cpu_ms]`. Never raises."""
    began, cpu = time.monotonic(), time.process_time()
    try:
        result = _call(jobs, job, runner)
        ending: list[Any] = ["ok", result]
    except JobControl as control:
        ending = _controlled(control)
    except BaseException as error:  # noqa: BLE001  whatever task code raises ends its attempt, never the worker
        ending = [Ending.RETRY, *describe(error), "exception", None]
    run_ms, cpu_ms = round((time.monotonic() - began) * 1000), round((time.process_time() - cpu) * 1000)
    return json.dumps([job.id, job.lease, *ending, run_ms, cpu_ms]).encode() + b"\n"


def _call(jobs: JobRunner, job: wire.Assignment, runner: asyncio.Runner) -> str | None:
    task = jobs.registry.get(job.task)
    context = JobContext(id=job.id, task=job.task, queue=job.queue, attempt=job.attempt, max_attempts=job.max_attempts, lease=job.lease)
    with jobs.execution_context(), running(context):
        args, kwargs = payload.decode_args(task, job.args)
        value = task.fn(*args, **kwargs)
        if inspect.isawaitable(value):
            # the runner has a context of its own, in which no job would be current
            value = runner.run(_await(value), context=contextvars.copy_context())
        return None if value is None else payload.encode_result(value, jobs.max_result_bytes)


async def _await(value: Any) -> Any:
    return await value


def _controlled(control: JobControl) -> list[Any]:
    message = cut(storable(str(getattr(control, "message", ""))), MESSAGE_LIMIT) or None
    name = type(control).__name__
    match control:
        case Retry():
            return [Ending.RETRY, f"jobrunner.{name}", message, None, None, "exception", _delay_ms(control.delay)]
        case Snooze():
            return [Ending.SNOOZE, None, message, None, None, None, _delay_ms(control.delay)]
        case Cancel():
            return [Ending.ABORT, None, message, None, None, "cancelled", None]
        case Fail():
            return [Ending.FAIL, f"jobrunner.{name}", message, None, None, "exception", None]
        case _:
            return [Ending.RETRY, *describe(control), "exception", None]


def _delay_ms(delay: timedelta | None) -> int | None:
    return None if delay is None else min(int(delay.total_seconds() * 1000), _MAX_DELAY_MS)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        # a task may have closed or replaced them
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
