"""Fixtures for all tests: a real PostgreSQL, one server for the run, one database for each test process.

| fixture          | what the test gets                                                        |
|------------------|---------------------------------------------------------------------------|
| `dsn`            | a migrated, empty database, shared with other tests one after the other   |
| `connection`     | a psycopg connection to it, autocommit                                    |
| `fresh_dsn`      | a migrated database of its own, dropped afterwards                        |
| `empty_dsn`      | a database of its own without our schema                                  |
| `server`         | the server itself, to make databases on                                   |
| `durable_server` | a cluster of its own on disk with PostgreSQL's default durability, running |
"""

from __future__ import annotations

import os
import shutil
import signal
from typing import TYPE_CHECKING

import psycopg
import pytest
from hypothesis import HealthCheck, settings

from jobrunner.embedded import Server
from tests.support import machine
from tests.support import postgres as pg

if TYPE_CHECKING:
    from collections.abc import Iterator

RUN = pytest.StashKey[pg.Run]()
KEPT = ("JOBRUNNER_TEST_", "JOBRUNNER_CHAOS_")
FOREIGN = ("JOBRUNNER_", "PG", "FLASK_")

settings.register_profile("jobrunner", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
settings.load_profile("jobrunner")


def pytest_configure(config: pytest.Config) -> None:
    """Begin the run, and forget what the developer's shell says about databases and apps."""
    for name in list(os.environ):
        if name == "DATABASE_URL" or (name.startswith(FOREIGN) and not name.startswith(KEPT)):
            del os.environ[name]
    # A shell that starts the run in the background has these ignored, in every process that follows; who presses Ctrl-C has not.
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    config.stash[RUN] = pg.Run.join() if hasattr(config, "workerinput") else pg.Run.begin()


def pytest_unconfigure(config: pytest.Config) -> None:
    """End the run; also after an interrupt."""
    if RUN in config.stash:
        config.stash[RUN].end()


def pytest_report_header() -> list[str]:
    """Say which PostgreSQL is used, and what this machine lacks: tests that need it are deselected."""
    server = os.environ.get(pg.GIVEN_DSN) and f"the one in {pg.GIVEN_DSN}"
    lines = [f"postgresql: {server or os.environ.get(pg.GIVEN_BINARIES) or 'embedded'}"]
    return [*lines, *(f"absent here: {what}" for what in machine.lacking())]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what this machine cannot run."""
    kept = [item for item in items if machine.runs_here(item)]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
    items[:] = kept


@pytest.fixture(scope="session")
def server(pytestconfig: pytest.Config) -> pg.Postgres:
    """The run's PostgreSQL server; started by the first test that needs it."""
    return pytestconfig.stash[RUN].postgres()


@pytest.fixture(scope="session")
def _shared(server: pg.Postgres) -> Iterator[pg.SharedDatabase]:
    with server.temporary() as dsn:
        yield pg.SharedDatabase(dsn)


@pytest.fixture
def dsn(_shared: pg.SharedDatabase) -> Iterator[str]:
    """A migrated, empty database."""
    yield _shared.dsn
    _shared.empty()


@pytest.fixture
def connection(dsn: str) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    """A connection to `dsn`, autocommit."""
    with psycopg.connect(dsn, autocommit=True) as opened:
        yield opened


@pytest.fixture
def fresh_dsn(server: pg.Postgres) -> Iterator[str]:
    """A migrated database of the test's own."""
    with server.temporary() as own:
        yield own


@pytest.fixture
def empty_dsn(server: pg.Postgres) -> Iterator[str]:
    """A database of the test's own, without our schema."""
    with server.temporary(template="template0") as own:
        yield own


@pytest.fixture
def durable_server() -> Iterator[Server]:
    """A running cluster on disk with default durability; `durable_server.dsn("postgres")` is migrated by the test if it wants."""
    directory = pg.disk_directory()
    own = Server(directory / "pg", binaries=pg.given_binaries())
    try:
        own.start()
        yield own
    finally:
        own.destroy()
        shutil.rmtree(directory, ignore_errors=True)
