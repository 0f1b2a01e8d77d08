"""The Flask application whose jobs say in which process, thread, loop and context they run, and misbehave on request."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import threading
import time
from dataclasses import dataclass

from flask import Flask, current_app, g

from jobrunner import Cancel, Fail, JobRunner, Retry, Snooze, current_job

app = Flask("modes")
jobs = JobRunner(app)
kept: list[bytes] = []  # by `leak`: whatever it is given stays

FINE = 0.01  # seconds; how long a task sleeps between two looks at whether it should go on


def note(event: str, number: object) -> None:
    """Append `event number pid lease` to the ledger, by one write."""
    descriptor = os.open(os.environ["JOBRUNNER_CHAOS_LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{event} {number} {os.getpid()} {current_job().lease}\n".encode())
    os.close(descriptor)


def has_loop() -> bool:
    """Whether this thread runs an event loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def seen(number: int) -> dict[str, object]:
    """What a task finds about itself at its end; `g.number` was set at its beginning."""
    return {
        "job": current_job().id, "number": g.number if g.job == current_job().id else f"{number} among others", "app": current_app.name,
        "pid": os.getpid(), "thread": threading.get_ident(), "loop": has_loop(),
    }  # fmt: skip


@jobs.task
def look(number: int, seconds: float = 0.0) -> dict[str, object]:
    """Where it runs, and whether job and app context are its own from the beginning to the end."""
    g.number, g.job = number, current_job().id
    time.sleep(seconds)
    return seen(number)


@jobs.task
async def look_async(number: int, seconds: float = 0.0) -> dict[str, object]:
    """The same in a coroutine."""
    g.number, g.job = number, current_job().id
    await asyncio.sleep(seconds)
    return seen(number)


@jobs.task(max_attempts=2, backoff="constant", backoff_base=0)
def work(number: int, seconds: float = 0.0) -> int:
    """Note the beginning and the end, and wait in C between."""
    note("begin", number)
    time.sleep(seconds)
    note("end", number)
    return number


@jobs.task(max_attempts=2, backoff="constant", backoff_base=0)
async def work_async(number: int, seconds: float = 0.0) -> int:
    """The same in a coroutine."""
    note("begin", number)
    await asyncio.sleep(seconds)
    note("end", number)
    return number


@jobs.task(max_attempts=1)
def spin(number: int) -> None:
    """Python code for ever."""
    note("begin", number)
    while True:
        time.sleep(FINE)


@jobs.task(max_attempts=1)
async def spin_async(number: int) -> None:
    """A coroutine for ever; notes how it is ended."""
    note("begin", number)
    try:
        await asyncio.sleep(600)
    except asyncio.CancelledError:
        note("cancelled", number)
        raise


@jobs.task(max_attempts=1)
async def convert(number: int) -> None:
    """A coroutine whose library turns the cancellation into an error of its own."""
    note("begin", number)
    try:
        await asyncio.sleep(600)
    except asyncio.CancelledError:
        raise RuntimeError("the connection broke") from None


@jobs.task(max_attempts=1)
async def block(number: int, seconds: float) -> None:
    """A coroutine that must not be one: nothing else runs meanwhile, and no order is heard."""
    note("begin", number)
    time.sleep(seconds)  # noqa: ASYNC251  as said


def steer(how: str) -> str:
    """End as told."""
    attempt = current_job().attempt
    match how:
        case "retry" if attempt == 1:
            raise Retry(delay=0)
        case "snooze" if current_job().lease == 1:
            raise Snooze(0)
        case "cancel":
            raise Cancel("not wanted")
        case "fail":
            raise Fail("no such user")
        case "error":
            raise ValueError("wrong")
    return f"{how} {attempt}"


@jobs.task(max_attempts=2, backoff="constant", backoff_base=0)
def control(how: str) -> str:
    """End as told."""
    return steer(how)


@jobs.task(max_attempts=2, backoff="constant", backoff_base=0)
async def control_async(how: str) -> str:
    """End as told, in a coroutine."""
    await asyncio.sleep(0)
    return steer(how)


@jobs.task(max_attempts=1, max_crashes=3, backoff="constant", backoff_base=0)
def segfault(number: int) -> None:
    """Die in C."""
    note("begin", number)
    ctypes.string_at(0)


@jobs.task(max_attempts=1, max_crashes=3, backoff="constant", backoff_base=0)
async def segfault_async(number: int) -> None:
    """Die in C."""
    note("begin", number)
    os.kill(os.getpid(), signal.SIGSEGV)


@jobs.task
def leak(number: int, size: int) -> int:
    """Keep so many bytes, and touch each of their pages."""
    kept.append(b"x" * size)
    return os.getpid() if number else 0


@jobs.task
async def leak_async(number: int, size: int) -> int:
    """The same in a coroutine."""
    kept.append(b"x" * size)
    return os.getpid() if number else 0


@jobs.task(memory_limit="300MB")
def limited(number: int, seconds: float = 0.0) -> int:
    """A job with a limit that it keeps."""
    note("begin", number)
    time.sleep(seconds)
    note("end", number)
    return number


@jobs.task(max_attempts=1, max_crashes=2, backoff="constant", backoff_base=0)
def close_everything(number: int) -> None:
    """Close what is not its own: the process can say nothing any more."""
    note("begin", number)
    os.closerange(3, 1024)
    time.sleep(600)


@dataclass
class Slow:
    """An argument that takes as long to be made as it takes the worker to lose its patience."""

    number: int

    def __post_init__(self):
        while not current_job().should_stop():
            time.sleep(FINE)


@jobs.task
def begin_late(slow: Slow) -> None:
    """Its interrupt comes before it has begun."""
    note("begin", slow.number)


@jobs.task
async def begin_late_async(slow: Slow) -> None:
    """The same for a coroutine."""
    note("begin", slow.number)
