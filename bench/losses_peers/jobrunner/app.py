"""The application that `jobrunner work` runs."""

from __future__ import annotations

import notes

from jobrunner import JobRunner, current_job

jobs = JobRunner()  # the database comes from JOBRUNNER_DSN


@jobs.task
def work(number: int, seconds: float) -> None:
    """The job; the lease counts how often it has been given to a worker."""
    notes.work(number, seconds, current_job().lease)
