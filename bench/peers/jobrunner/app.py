"""The application whose workers the bench runs: the same four jobs that every contender has, in the ways of running that we have."""

from __future__ import annotations

import asyncio

import marks

from jobrunner import JobRunner

jobs = JobRunner()  # the database comes from JOBRUNNER_DSN


@jobs.task
def noop(argument: float) -> None:  # noqa: ARG001  kept in the row, as everybody keeps it
    """Nothing: what is left is the queue's own cost."""
    marks.mark()


@jobs.task
def nap(argument: float) -> None:
    """Waits for so many seconds."""
    marks.nap(argument)


@jobs.task
def spin(argument: float) -> None:
    """Uses the CPU for so many milliseconds."""
    marks.spin(argument)


@jobs.task
def stamp(argument: float) -> None:
    """Tells how long ago it was enqueued."""
    marks.stamp(argument)


@jobs.task
async def async_nap(argument: float) -> None:
    """Waits for so many seconds, and lets others run."""
    marks.mark()
    await asyncio.sleep(argument)
