"""PostgreSQL goes away and comes back while jobs run."""

from __future__ import annotations

import time

import pytest

from jobrunner import migrate
from tests.support.waiting import wait_until
from tests.support.workers import Ledger, insert, rows, wait_for_states, workers

pytestmark = pytest.mark.chaos


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "ledger")


@pytest.mark.parametrize("how", ["fast", "immediate", "kill"])
def test_stopped_and_started_under_load(durable_server, ledger, how):
    """PostgreSQL stopped (fast, immediate, kill -9) and started under load: nothing is lost, nothing runs twice that had not to."""
    dsn = durable_server.dsn("postgres")
    migrate.upgrade(dsn)
    insert(dsn, "work", 600, "jsonb_build_object('number', n, 'seconds', 0.01)")
    with workers(dsn, ledger.path, "-c", "2") as [worker]:
        for _ in range(2):
            done = len(ledger.count("end"))
            ledger.wait_for_ends(done + 100)
            if how == "kill":
                durable_server.kill()
            else:
                durable_server.stop(mode=how)
            wait_until(lambda: "database away" in worker.text(), timeout=20, what="the worker to notice")
            durable_server.start()
        wait_for_states(dsn, 60, succeeded=600)
        back = rows(dsn, "SELECT now()::text")[0][0]
        heartbeat = f"SELECT max(heartbeat_at) > '{back}' FROM jobrunner.v_workers"
        wait_until(lambda: rows(dsn, heartbeat) == [(True,)], timeout=40, what="heartbeats to go on")
        listeners = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'jobrunner-listener'"
        wait_until(lambda: rows(dsn, listeners) == [(1,)], timeout=40, what="the listener to be back")
        assert worker.stop() == 0
        assert "lease lost" not in worker.text()
    assert len(ledger.count("end")) == 600
    assert all(count == 1 for count in ledger.count("begin").values()), "the outage was shorter than the lease: nothing had to run again"


def _tries(worker):
    return worker.text().count("cannot register again yet")


def test_away_for_longer_than_the_lease(durable_server, ledger):
    """Away for longer than the lease: the worker ends its children, registers anew when the database is back, and the job runs again.

    Meanwhile it tries once a second, not as fast as it can.
    """
    dsn = durable_server.dsn("postgres")
    migrate.upgrade(dsn)
    insert(dsn, "work", 1, "jsonb_build_object('number', n, 'seconds', 4)")
    with workers(dsn, ledger.path, "-c", "1", "--lease", "2s") as [worker]:
        wait_until(lambda: ledger.count("begin")["1"] == 1, timeout=20, what="the job to begin")
        durable_server.stop(mode="immediate")
        wait_until(lambda: "lease lost" in worker.text(), timeout=20, what="the lease to be lost")
        lost = time.monotonic()
        tries = wait_until(lambda: _tries(worker) if _tries(worker) > 2 else 0, timeout=20, what="three tries to register")
        assert tries <= time.monotonic() - lost + 2
        durable_server.start()
        wait_for_states(dsn, 40, succeeded=1)
        assert worker.stop() == 0
    assert ledger.count("end")["1"] == 1
    assert rows(dsn, "SELECT attempt FROM jobrunner.v_jobs") == [(1,)]


def test_backends_terminated(fresh_dsn, ledger):
    """Terminating every backend of the worker again and again loses nothing and runs nothing twice."""
    insert(fresh_dsn, "work", 400, "jsonb_build_object('number', n, 'seconds', 0.005)")
    with workers(fresh_dsn, ledger.path, "-c", "2"):
        for step in range(1, 11):
            ledger.wait_for_ends(step * 30)
            rows(
                fresh_dsn,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND application_name LIKE 'jobrunner%'",
            )
        wait_for_states(fresh_dsn, 60, succeeded=400)
    assert all(count == 1 for count in ledger.count("begin").values())
