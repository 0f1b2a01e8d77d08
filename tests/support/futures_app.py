"""The Flask application whose functions run as calls: what they return, raise, wait for, and find around them."""

from __future__ import annotations

import json
import os
import signal
import time
from enum import Enum
from json import loads  # noqa: F401  what a row must not reach
from os import system  # noqa: F401  the same
from pathlib import Path
from typing import Any

from flask import Flask, current_app, g

from jobrunner import JobRunner, Retry, current_job
from jobrunner.compat.flask_executor import Executor

app = Flask(__name__)
app.config.update(
    EXECUTOR_TYPE="jobs", EXECUTOR_CAPTURE="g.tenant request.path request.headers.X-Request-ID", SHOP="books",
    SMALL_EXECUTOR_TYPE="jobs", SMALL_EXECUTOR_FUTURES_MAX_LENGTH="2",
)  # fmt: skip
jobs = JobRunner(app, allowed_modules=["time", "operator"], wakeups=True)
executor = Executor(app)
small = Executor(app, "small")

IDLE = "nobody"  # a queue without a worker
PATIENCE = 60  # seconds until what should happen is given up
FINE = 0.01  # seconds between two looks
LONG = 60.0  # seconds after which a call that is held gives up


class Colour(Enum):
    RED = "#f00"


class OrderError(Exception):
    """Its constructor wants other arguments than it keeps."""

    def __init__(self, number: int, why: str) -> None:
        super().__init__(f"order {number}: {why}")
        self.number = number


class NothingError(Exception):
    """False, as an empty list is."""

    def __len__(self) -> int:
        return 0


def add(first: Any, second: Any = 1, *, third: Any = 0) -> Any:
    """A sum."""
    return first + second + third


def echo(*args: Any, **kwargs: Any) -> Any:
    """What it was given."""
    return args, kwargs


async def echo_async(value: Any) -> Any:
    """The same in a coroutine."""
    return value, current_job().task


def fail(kind: str) -> None:
    """Raise an exception."""
    match kind:
        case "builtin":
            raise ValueError("no", 1, (2, {3}))
        case "file":
            Path("/nowhere/at/all").read_text()
        case "own":
            raise OrderError(5, "gone")
        case "false":
            raise NothingError("nothing", 5)
        case "foreign":
            json.loads("{")
        case "exit":
            raise SystemExit(3)
        case "retry":
            raise Retry("again", delay=0)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)


def unreturnable() -> Any:
    """An object that cannot travel."""
    return [object()]


def hold(path: str) -> str:
    """Run until a file is there."""
    deadline = time.monotonic() + LONG
    while not Path(path).exists():
        if time.monotonic() > deadline:
            raise TimeoutError(path)
        time.sleep(FINE)
    return path


def mark(path: str) -> None:
    """Leave a file behind."""
    Path(path).touch()


def fail_at(number: int) -> int:
    """Raise for one number."""
    if number == 3:
        raise OrderError(number, "is refused")
    return number


def around() -> dict[str, Any]:
    """What the call finds around it."""
    return {"shop": current_app.config["SHOP"], "g": {name: g.get(name) for name in g}, "job": current_job().queue}


def around_of(_number: int) -> dict[str, Any]:
    """The same, for a `map`."""
    return around()


def checkpointing() -> Any:
    """Fail once, and tell what an earlier attempt left."""
    found = current_job().last_checkpoint
    if not Path(os.environ["JOBRUNNER_CHAOS_LEDGER"]).exists():
        Path(os.environ["JOBRUNNER_CHAOS_LEDGER"]).touch()
        raise ValueError("first")
    return found


def remember() -> None:
    """Fail, and say which run of the job it is and what an earlier one left."""
    job = current_job()
    raise OrderError(job.lease, f"found {job.last_checkpoint}")


@executor.job
def double(number: int) -> int:
    """Decorated."""
    return number * 2


def _make() -> Any:
    @executor.job
    def inside(number: int) -> int:
        return number * 3

    return inside


triple = _make()
