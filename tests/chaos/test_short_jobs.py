"""Short jobs travel by the hundred; each is for itself all the same: its end, its crash, its way back."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.support import modes_app
from tests.support.waiting import wait_until
from tests.support.workers import Ledger, insert, rows, states, wait_for_states, workers

pytestmark = pytest.mark.chaos

APP = str(Path(modes_app.__file__))
KNOWN = 300  # jobs after which a task is known to be short
BEHIND = 300  # jobs behind the one that turns out to be long


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "ledger")


def short_then_long(dsn):
    """Jobs of a task that is short, until one of them sleeps; more behind it."""
    insert(dsn, "work", KNOWN)
    insert(dsn, "work", 1, "jsonb_build_object('number', 9999, 'seconds', 120)")
    insert(dsn, "work", BEHIND, "jsonb_build_object('number', n + 1000)")


def wait_for_sleeper(ledger, times=1):
    """Wait until the long job has begun. Returns the process that runs it."""
    wait_until(lambda: ledger.count("begin")["9999"] == times, timeout=60, what="the long job to begin")
    return [pid for event, number, pid, _ in ledger.lines() if (event, number) == ("begin", "9999")][-1]


def test_an_end_does_not_wait_for_the_job_behind_it(dsn, ledger):
    """What ended before a job that turns out to be long is in the database while that one runs, in a worker with one slot."""
    short_then_long(dsn)
    with workers(dsn, ledger.path, "-c", "1", app=APP):
        wait_for_sleeper(ledger)
        wait_until(lambda: states(dsn)["succeeded"] == KNOWN, timeout=20, what="the ends before it to be written")
        wait_until(lambda: states(dsn)["queued"] == BEHIND, timeout=20, what="the jobs behind it to be given back")
    assert set(ledger.count("begin").values()) == {1}
    assert rows(dsn, "SELECT DISTINCT attempt FROM jobrunner.v_jobs WHERE state = 'queued'") == [(0,)]


def test_the_death_of_a_child_costs_the_job_it_ran_and_no_other(dsn, ledger):
    """kill -9 in the middle of a bundle: what had ended does not run again, what had not begun runs once, without a crash on record."""
    short_then_long(dsn)
    with workers(dsn, ledger.path, "-c", "1", app=APP):
        os.kill(wait_for_sleeper(ledger), signal.SIGKILL)
        with workers(dsn, ledger.path, "-c", "2", app=APP):
            wait_until(lambda: states(dsn)["succeeded"] == KNOWN + BEHIND, timeout=60, what="all others to be done")
    again = {number: count for number, count in ledger.count("begin").items() if count > 1}
    assert set(again) <= {"9999"}
    crashed = rows(dsn, "SELECT args->>'number' FROM jobrunner.v_jobs WHERE crash_count > 0")
    assert crashed == [("9999",)]


def test_kills_amid_bundles_lose_nothing(fresh_dsn, ledger):
    """A child, then the worker, killed -9 amid thousands of short jobs: each of them is done, and a child's death is that of one job."""
    insert(fresh_dsn, "work", 6000)
    with workers(fresh_dsn, ledger.path, "-c", "2", "--lease", "2s", app=APP) as [worker]:
        for least in (1000, 2000):
            ledger.wait_for_ends(least)
            os.kill(ledger.lines()[-1][2], signal.SIGKILL)
        ledger.wait_for_ends(3000)
        worker.kill()
    with workers(fresh_dsn, ledger.path, "-c", "2", "--lease", "2s", app=APP):
        wait_for_states(fresh_dsn, 60, succeeded=6000)
    assert len(ledger.count("end")) == 6000
    [(deaths,)] = rows(fresh_dsn, "SELECT count(*) FROM jobrunner.job_attempts WHERE exit_cause = 'signal 9'")
    assert int(str(deaths)) <= 2, "more than one job for each child that was killed"
    assert rows(fresh_dsn, "SELECT max(attempt) FROM jobrunner.v_jobs") == [(1,)], "a crash used up an attempt"


@pytest.mark.parametrize("most", [7, 100])
def test_a_child_that_leaves_amid_a_bundle_leaves_the_rest_to_the_next(dsn, ledger, most):
    """With a bound on jobs for each child none runs more, and what it was given beyond goes to its successor."""
    insert(dsn, "work", 1000)
    with workers(dsn, ledger.path, "-c", "1", "--max-jobs-per-child", str(most), "--drain", app=APP) as [worker]:
        assert worker.wait(60) == 0
    assert states(dsn) == {"succeeded": 1000}
    by_child: dict[int, int] = {}
    for event, _, pid, _ in ledger.lines():
        by_child[pid] = by_child.get(pid, 0) + (event == "begin")
    assert max(by_child.values()) <= most
    assert sum(by_child.values()) == 1000
