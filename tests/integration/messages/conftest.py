"""Fixtures of the tests of message queues: an application without tasks, and one queue of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from jobrunner import JobRunner

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jobrunner.messages import MessageQueue


@pytest.fixture
def jobs(dsn) -> Iterator[JobRunner]:
    runner = JobRunner(dsn=dsn)
    yield runner
    runner.close()


@pytest.fixture
def queue(jobs: JobRunner) -> MessageQueue:
    """A queue whose messages come back at once when they are given back."""
    return jobs.queue("emails", backoff="constant", backoff_base=0)
