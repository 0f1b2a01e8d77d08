"""Fixtures of the tests of `JobExecutor`: one worker of one application for all tests of a module."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest

from jobrunner.compat.futures import JobExecutor
from tests.support import futures_app
from tests.support.rows import Scene
from tests.support.workers import workers

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def served(server, tmp_path_factory) -> Iterator[str]:
    """A database with a worker of the application."""
    ledger = tmp_path_factory.mktemp("futures") / "ledger"
    with server.temporary() as dsn:
        futures_app.jobs.use_dsn(dsn)
        with workers(dsn, ledger, "-c", "3", "--poll", "0.2s", app="tests.support.futures_app", environment={"JOBRUNNER_APP": ""}):
            yield dsn
        futures_app.jobs.close()


@pytest.fixture
def scene(served) -> Iterator[Scene]:
    with psycopg.connect(served, autocommit=True) as connection:
        yield Scene(connection)


@pytest.fixture
def executor(served) -> Iterator[JobExecutor]:
    with JobExecutor(futures_app.jobs) as executor:
        yield executor


@pytest.fixture
def idle(served) -> Iterator[JobExecutor]:
    """An executor whose jobs nobody runs."""
    executor = JobExecutor(futures_app.jobs, queue=futures_app.IDLE)
    yield executor
    executor.shutdown(wait=True, cancel_futures=True)
