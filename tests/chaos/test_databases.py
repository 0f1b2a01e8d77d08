"""One command for two databases on two servers, of which one goes away."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import psycopg
import pytest

from jobrunner import migrate
from tests.support.cli import Program
from tests.support.waiting import wait_until
from tests.support.workers import states, wait_for_states

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

pytestmark = pytest.mark.chaos

APP = """
from jobrunner import JobRunner

jobs = JobRunner()


@jobs.task
def add(a: int = 1, b: int = 1) -> int:
    return a + b


@jobs.task(queue="mail")
def send() -> None:
    pass
"""


class Both(Program):
    """With the second database in its environment."""

    def __init__(self, home: Path, dsn: str, post: str) -> None:
        super().__init__(home, dsn)
        self.post = post

    def environment(self, given: Mapping[str, str] | None = None) -> dict[str, str]:
        """The same, and the routes."""
        routes = {"JOBRUNNER_DATABASES": json.dumps({"post": self.post}), "JOBRUNNER_ROUTES": json.dumps({"mail": "post"})}
        return super().environment(given) | routes


@pytest.fixture
def post(durable_server):
    """The second database, on a server of its own."""
    dsn = durable_server.dsn("postgres")
    migrate.upgrade(dsn)
    return dsn


@pytest.fixture
def program(tmp_path, fresh_dsn, post):
    """`jobrunner` beside an application on both."""
    (tmp_path / "app.py").write_text(APP)
    return Both(tmp_path, fresh_dsn, post)


def alive(dsn):
    """How many workers live in a database; none when it does not answer."""
    try:
        with psycopg.connect(dsn) as connection:
            return connection.execute("SELECT count(*) FROM jobrunner.v_workers WHERE state = 'alive'").fetchone() == (1,)
    except psycopg.OperationalError:
        return False


def test_a_database_that_goes_away_and_comes_back(program, fresh_dsn, post, durable_server):
    """While one server is down the other's queue is served as ever; back again its own is, by the same worker; then all end with 0."""
    with program.started("work", "-c", "1") as fleet:
        wait_until(lambda: alive(fresh_dsn) and alive(post), timeout=60, what="both workers")
        wait_until(lambda: fleet.err.count("worker started") == 2, timeout=60, what="both to have imported the app")
        durable_server.stop(mode="immediate")
        wait_until(lambda: "database away" in fleet.err, timeout=60, what="the worker to notice")
        for _ in range(5):
            program("enqueue", "add")
        wait_for_states(fresh_dsn, 60, succeeded=5)
        assert program("enqueue", "send", ok=None).code == 3
        durable_server.start()
        program("enqueue", "send")
        wait_for_states(post, 60, succeeded=1)
        assert "starting it again" not in fleet.err
        assert fleet.stop() == 0


def test_a_database_that_is_away_at_the_start(program, fresh_dsn, post, durable_server):
    """A database that does not answer at the start is said each time it is tried, stops no other, and is served when it is back."""
    durable_server.stop()
    with program.started("work", "-c", "1") as fleet:
        program("enqueue", "add")
        wait_for_states(fresh_dsn, 60, succeeded=1)
        wait_until(lambda: fleet.err.count("starting it again") >= 2, timeout=60, what="two tries")
        assert "exit=3" in fleet.err
        durable_server.start()
        program("enqueue", "send")
        wait_for_states(post, 60, succeeded=1)
        assert fleet.stop() == 0
    assert states(fresh_dsn) == {"succeeded": 1}


def test_the_exit_code_is_the_worst(program, fresh_dsn, post, durable_server):
    """A SIGTERM while one database is still away ends the command with that worker's code, though the other left in order."""
    durable_server.stop()
    with program.started("work", "-c", "1") as fleet:
        wait_until(lambda: alive(fresh_dsn) and "starting it again" in fleet.err, timeout=60, what="one worker, and one that cannot start")
        wait_until(lambda: "worker started" in fleet.err, timeout=60, what="the app to be imported")
        assert fleet.stop() == 3
    with program.started("work", "-c", "1", "--database", "post") as single:
        assert single.process.wait(60) == 3
