"""Debian's own cron starts `jobrunner cron`: no mail, no overlap, every minute on record."""

from __future__ import annotations

import shlex
import sys
from functools import partial

import pytest

from tests.support import crond
from tests.support.waiting import wait_until
from tests.support.workers import APP, Ledger, insert, rows

pytestmark = [pytest.mark.chaos, pytest.mark.needs("crond", "root", "unshare")]

MINUTE = 60.0
OVERLAPS = """
SELECT count(*) FROM jobrunner.v_worker_runs a JOIN jobrunner.v_worker_runs b
ON a.pool = b.pool AND a.pool_slot = b.pool_slot AND a.id < b.id AND a.started_at < b.finished_at AND b.started_at < a.finished_at
"""


def crontab(dsn, ledger, *lines):
    """A crontab as a user would write it: the database and the app by environment, absolute paths, nothing redirected."""
    commands = [shlex.join([sys.executable, "-m", "jobrunner", "cron", *line]).replace("%", "\\%") for line in lines]
    environment = f"MAILTO=root\nJOBRUNNER_DSN={dsn}\nJOBRUNNER_APP={APP}\nJOBRUNNER_CHAOS_LEDGER={ledger.path}\n"
    return environment + "".join(f"* * * * *  cd / && {command}\n" for command in commands)


@pytest.mark.parametrize("minutes", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_cron_starts_it_every_minute(fresh_dsn, server, tmp_path, minutes):
    """Two lines that start at the same second of each minute, one of which finds the slot taken: every job runs once, no mail is sent,
    no two runs overlap, each minute has its run. A third line whose database does not exist mails one line a minute."""
    ledger = Ledger(tmp_path / "ledger")
    good, broken = ["--for", "15s", "-c", "2"], ["--dsn", server.dsn("no_such_database")]
    with crond.running(tmp_path / "cron", crontab(fresh_dsn, ledger, good, good, broken)) as cron:
        for minute in range(1, minutes + 1):
            insert(fresh_dsn, "once", 20, f"jsonb_build_object('number', n + {1000 * minute}, 'seconds', 0.2)")
            ended = f"SELECT count(*) >= {minute} FROM jobrunner.v_worker_runs"
            wait_until(partial(holds, fresh_dsn, ended), timeout=2 * MINUTE, what=f"run {minute} to be over")
    found = rows(fresh_dsn, "SELECT pool, pool_slot, reason, exit_code, succeeded_count FROM jobrunner.v_worker_runs ORDER BY id")
    assert found == [("default", 1, "time", 0, 20)] * minutes
    assert all(count == 1 for count in ledger.count("begin").values())
    assert len(ledger.count("end")) == 20 * minutes
    assert rows(fresh_dsn, OVERLAPS) == [(0,)]
    apart = "SELECT extract(epoch FROM started_at - lag(started_at) OVER (ORDER BY id))::float FROM jobrunner.v_worker_runs OFFSET 1"
    assert all(MINUTE - 30 < float(str(seconds)) < MINUTE + 30 for (seconds,) in rows(fresh_dsn, apart))
    lines = [line for line in cron.mailed().splitlines() if "level=" in line]
    assert len(lines) == minutes
    assert all('msg="cannot reach PostgreSQL' in line and "exit=3" in line for line in lines)


def holds(dsn, query):
    """Whether a query's one answer is true."""
    return rows(dsn, query) == [(True,)]
