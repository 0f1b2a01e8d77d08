"""The application of tests of ordering keys: tasks that note when they begin and end, and fail when they are told to."""

from __future__ import annotations

import os
import time

from jobrunner import JobRunner, current_job
from tests.support.chaos_app import note

jobs = JobRunner()


@jobs.task(max_attempts=3, backoff="constant", backoff_base=0.05, backoff_jitter=0)
def step(key: str, number: int, seconds: float = 0.0, fails: int = 0) -> None:
    """Take some time; fail so many times; die instead when `fails` is below 0."""
    note("begin", f"{key}/{number}")
    time.sleep(seconds)
    if fails < 0 and current_job().lease == 1:
        os._exit(1)
    if current_job().attempt <= fails:
        note("failed", f"{key}/{number}")
        raise ValueError("as told")
    note("end", f"{key}/{number}")
