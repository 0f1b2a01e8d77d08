"""The application that chaos tests run: tasks that note what they do in a ledger file and misbehave on request.

The ledger is one line per event, written by a single `write` in append mode: it survives the kill of the writer.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from jobrunner import JobRunner, current_job

jobs = JobRunner()


def note(event: str, number: object) -> None:
    """Append `event number pid lease` to the ledger."""
    descriptor = os.open(os.environ["JOBRUNNER_CHAOS_LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{event} {number} {os.getpid()} {current_job().lease}\n".encode())
    os.close(descriptor)


@jobs.task
def work(number: int, seconds: float = 0.0) -> int:
    """Note the beginning and the end, and take some time between."""
    note("begin", number)
    time.sleep(seconds)
    note("end", number)
    return number


@jobs.task(max_attempts=1)
def once(number: int, seconds: float = 0.0) -> None:
    """Like `work`, with no second attempt: shows that an attempt was not used up."""
    note("begin", number)
    time.sleep(seconds)
    note("end", number)


@jobs.task(max_attempts=1, max_crashes=3, backoff="constant", backoff_base=0)
def segfault(number: int) -> None:
    """Die in C."""
    note("begin", number)
    import ctypes

    ctypes.string_at(0)


@jobs.task(max_attempts=1, max_crashes=2, backoff="constant", backoff_base=0)
def leave(status: int) -> None:
    """End the process behind Python's back."""
    os._exit(status)


@jobs.task(max_attempts=1)
def spawn_and_sleep(pid_file: str) -> None:
    """Start a process of one's own, and outlive the limit with it."""
    child = subprocess.Popen([sys.executable, "-c", "import time, signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"])
    Path(pid_file).write_text(str(child.pid))
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)


@jobs.task(max_attempts=1)
def typed(number: int) -> None:
    """Its argument has a type that a row may not fit."""
    note("begin", number)


class Hostile(Exception):
    """Raises when asked what it says."""

    def __str__(self) -> str:
        raise RuntimeError("not even that")


@jobs.task(max_attempts=1)
def hostile(kind: str) -> None:
    """Raise what is hard to store."""
    match kind:
        case "str":
            raise Hostile
        case "nul":
            raise ValueError("a\0b")
        case "surrogate":
            raise ValueError("\ud800")
        case "huge":
            raise ValueError("x" * 10_000_000)
        case "exit":
            sys.exit(3)
        case "interrupt":
            raise KeyboardInterrupt
        case "closed":
            os.close(1)
            os.close(2)
            raise ValueError("nowhere to print")


@jobs.task
async def asynchronous(number: int) -> int:
    """A coroutine."""
    note("begin", number)
    return number * 2


@jobs.task
async def awaiting(number: int, seconds: float = 0.0) -> int:
    """Like `work`, as a coroutine."""
    note("begin", number)
    await asyncio.sleep(seconds)
    note("end", number)
    return number
