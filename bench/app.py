"""The application whose worker the benches run."""

from __future__ import annotations

import time

from jobrunner import JobRunner

MILLISECOND = 0.001  # seconds

jobs = JobRunner()


@jobs.task
def noop(number: int) -> None:
    """Nothing: what is left is the queue's own cost."""


@jobs.task
async def async_noop(number: int) -> None:
    """Nothing, in a coroutine."""


def spin() -> None:
    """One millisecond of CPU, whatever else the machine does."""
    end = time.thread_time() + MILLISECOND
    while time.thread_time() < end:
        pass


@jobs.task
def work(number: int) -> None:  # noqa: ARG001  as many arguments as the others have
    """A millisecond of CPU."""
    spin()


@jobs.task
async def async_work(number: int) -> None:  # noqa: ARG001
    """A millisecond of CPU, in a coroutine that never waits."""
    spin()


@jobs.task
def nap(seconds: float) -> None:
    """Short or long, which nobody knows before."""
    time.sleep(seconds)
