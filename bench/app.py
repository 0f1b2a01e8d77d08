"""The application whose worker the benches run."""

from __future__ import annotations

import time

from jobrunner import JobRunner

jobs = JobRunner()


@jobs.task
def noop(number: int) -> None:
    """Nothing: what is left is the queue's own cost."""


@jobs.task
def stamp(sent: float) -> float:
    """When it began, by the clock that the sender used (same machine)."""
    return time.clock_gettime(time.CLOCK_MONOTONIC) - sent
