"""Fixtures of the tests of transactional tasks: an application, a table of effects, and attempts that are run without a worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from jobrunner import JobRunner
from jobrunner.settings import parse_dsn
from tests.support.attempts import Attempts

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _effects(connection) -> Iterator[None]:
    connection.execute("SET lock_timeout = '10s'")  # a test that leaves a transaction open fails here instead of standing still
    connection.execute("CREATE TABLE test_effects (number integer)")
    yield
    connection.execute("DROP TABLE test_effects")


@pytest.fixture
def jobs(dsn) -> JobRunner:
    return JobRunner(dsn=dsn, wakeups=False)


@pytest.fixture
def attempts(jobs, dsn) -> Iterator[Attempts]:
    opened = Attempts(jobs, dsn)
    yield opened
    opened.close()


@pytest.fixture
def engine(dsn) -> Iterator[sa.Engine]:
    made = sa.create_engine(parse_dsn(dsn, "test").sqlalchemy_url)
    yield made
    made.dispose()
