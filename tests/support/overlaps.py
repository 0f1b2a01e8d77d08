"""The application of the test with overlapping starts: its task holds a file's lock, so that two at once are seen."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from jobrunner import JobRunner

jobs = JobRunner()


@jobs.task(max_attempts=1)
def alone(number: int, directory: str, seconds: float = 0.0) -> None:
    """Note that it ran, and fail when any other runs."""
    with Path(directory, "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        descriptor = os.open(Path(directory, "ran"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, f"{number}\n".encode())
        os.close(descriptor)
        time.sleep(seconds)
