"""Jobs that share a process, as threads or coroutines: how one is ended, and what that costs the others."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from tests.support import modes_app
from tests.support.modes import SHARED
from tests.support.waiting import wait_until
from tests.support.workers import Ledger, alive, rows, states, wait_for_states, workers
from tests.support.workers import insert as insert_rows

pytestmark = pytest.mark.chaos

APP = str(Path(modes_app.__file__))
IN_PYTHON = {"threads": "spin", "async": "spin_async"}  # tasks that an interrupt reaches at once
IN_C = {"threads": "work", "async": "block"}  # and others that none reaches
BESIDE = {"threads": "work", "async": "work_async"}
CRASH = {"threads": "segfault", "async": "segfault_async"}

each_shared_mode = pytest.mark.parametrize("mode", SHARED)


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "ledger")


def insert(dsn, task, count, args="jsonb_build_object('number', n)", **columns):
    """As `tests.support.workers.insert`, for jobs with one attempt: whoever loses it has failed."""
    insert_rows(dsn, task, count, args, **{"max_attempts": 1, **columns})


def attempts(dsn, task):
    """How the attempts of a task ended that did not succeed."""
    return rows(
        dsn,
        "SELECT outcome, exit_cause, error_type, message FROM jobrunner.v_attempts "
        f"WHERE task = '{task}' AND outcome <> 'succeeded' ORDER BY job_id, lease",
    )


def pids_of(ledger, number):
    """The processes in which a job began, in that order."""
    return [pid for event, found, pid, _ in ledger.lines() if (event, found) == ("begin", str(number))]


@each_shared_mode
def test_time_limit_interrupts_the_job_alone(dsn, ledger, mode):
    """A job over its `time_limit` is interrupted and recorded as that; its neighbour, and its process, go on as if nothing had been."""
    insert(dsn, BESIDE[mode], 1, "jsonb_build_object('number', 100, 'seconds', 14)")
    insert(dsn, IN_PYTHON[mode], 1, time_limit="1s")
    with workers(dsn, ledger.path, *SHARED[mode].slots(3), app=APP):
        wait_for_states(dsn, 30, failed=1, running=1)
        insert(dsn, BESIDE[mode], 1, "jsonb_build_object('number', 200)")
        wait_for_states(dsn, 40, failed=1, succeeded=2)
    assert attempts(dsn, IN_PYTHON[mode]) == [
        ("failed", "timeout", "jobrunner.errors.TimeLimitExceeded", "ran longer than its time_limit of 1 s")
    ]
    assert len({pid for _, _, pid, _ in ledger.lines()}) == 1, "the child was replaced though the job could be ended alone"
    assert ledger.count("begin") == {"1": 1, "100": 1, "200": 1}
    assert rows(dsn, "SELECT run_ms BETWEEN 900 AND 5000 FROM jobrunner.v_jobs WHERE state = 'failed'") == [(True,)]


@each_shared_mode
def test_soft_time_limit_is_raised_in_the_job(dsn, ledger, mode):
    """`soft_time_limit` raises in the thread or coroutine that it is for, under its public name."""
    insert(dsn, IN_PYTHON[mode], 1, soft_time_limit="2s")
    insert(dsn, BESIDE[mode], 1, "jsonb_build_object('number', 100, 'seconds', 3)")
    with workers(dsn, ledger.path, *SHARED[mode].slots(2), "--drain", app=APP) as [worker]:
        assert worker.wait() == 0
    assert [row[:3] for row in attempts(dsn, IN_PYTHON[mode])] == [("failed", "timeout", "jobrunner.errors.SoftTimeLimitExceeded")]
    assert ledger.count("end") == {"100": 1}
    assert ledger.count("cancelled")["1"] == (mode == "async")


def test_an_error_made_of_the_cancellation_is_recorded_as_the_limit(dsn, ledger):
    """A library that turns CancelledError into an error of its own does not hide that it was the limit that ended the job."""
    insert(dsn, "convert", 1, time_limit="500ms")
    with workers(dsn, ledger.path, "-c", "1", "--async-slots", "2", "--drain", app=APP) as [worker]:
        assert worker.wait() == 0
    assert [row[:3] for row in attempts(dsn, "convert")] == [("failed", "timeout", "jobrunner.errors.TimeLimitExceeded")]


def test_a_coroutine_in_a_thread_is_cancelled_though_its_loop_sleeps(dsn, ledger):
    """With --threads alone a coroutine that waits is ended at once as well: its loop is woken and it gets a CancelledError."""
    insert(dsn, "spin_async", 1, time_limit="1s")
    with workers(dsn, ledger.path, "--threads", "2", "--drain", app=APP) as [worker]:
        assert worker.wait() == 0
    assert [row[:3] for row in attempts(dsn, "spin_async")] == [("failed", "timeout", "jobrunner.errors.TimeLimitExceeded")]
    assert ledger.count("cancelled")["1"] == 1
    assert rows(dsn, "SELECT run_ms < 5000 FROM jobrunner.v_jobs") == [(True,)]


@each_shared_mode
def test_cancel_ends_the_job_alone(dsn, ledger, mode):
    """A cancelled job ends within the patience for it and stays cancelled; the one beside it goes on."""
    insert(dsn, IN_PYTHON[mode], 1)
    insert(dsn, BESIDE[mode], 1, "jsonb_build_object('number', 100, 'seconds', 8)")
    with workers(dsn, ledger.path, *SHARED[mode].slots(2), app=APP):
        wait_until(lambda: len(ledger.count("begin")) == 2, timeout=30, what="both to begin")
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("UPDATE jobrunner.jobs SET cancel_requested_at = now() WHERE task = %s", (IN_PYTHON[mode],))
        wait_for_states(dsn, 30, cancelled=1, succeeded=1)
    assert [row[:2] for row in attempts(dsn, IN_PYTHON[mode])] == [("cancelled", "cancelled")]
    assert ledger.count("begin")["100"] == 1


@each_shared_mode
def test_what_cannot_be_interrupted_costs_its_child(dsn, ledger, mode):
    """A job that never returns from C ends with its child: its neighbours have ten seconds, then they are released unharmed.

    New jobs go to another child meanwhile.
    """
    insert(dsn, BESIDE[mode], 1, "jsonb_build_object('number', 100, 'seconds', 6)")
    insert(dsn, BESIDE[mode], 1, "jsonb_build_object('number', 200, 'seconds', 25)")
    stuck = "jsonb_build_object('number', n, 'seconds', 600)"
    if mode == "threads":  # here the loop of all of them would stand: the others could not even end in time
        insert(dsn, IN_C[mode], 1, stuck, time_limit="1s")
    with workers(dsn, ledger.path, *SHARED[mode].slots(4), app=APP) as [worker]:
        if mode == "async":
            wait_until(lambda: len(ledger.count("begin")) == 2, timeout=30, what="the neighbours to begin")
            insert(dsn, IN_C[mode], 1, stuck, time_limit="1s")
        wait_until(lambda: "cannot be ended alone" in worker.text(), timeout=30, what="the worker to give the child up")
        insert(dsn, BESIDE[mode], 1, "jsonb_build_object('number', 300)")
        ledger.wait_for_ends(1 if mode == "async" else 2)
        wait_for_states(dsn, 60, failed=1, succeeded=3)
    assert [row[:3] for row in attempts(dsn, IN_C[mode]) if row[0] != "released"] == [
        ("failed", "timeout", "jobrunner.errors.TimeLimitExceeded")
    ]
    released = rows(
        dsn,
        "SELECT (j.args->>'number')::int, a.exit_cause FROM jobrunner.v_attempts a JOIN jobrunner.v_jobs j ON j.id = a.job_id "
        "WHERE a.outcome = 'released' ORDER BY 1",
    )
    assert released == [(number, "neighbour") for number in ((200,) if mode == "threads" else (100, 200))]
    assert rows(dsn, "SELECT DISTINCT attempt, crash_count FROM jobrunner.v_jobs WHERE state = 'succeeded'") == [(1, 0)]
    assert not set(pids_of(ledger, 300)) & set(pids_of(ledger, 1)), "the new job began in the child that was to go"
    assert ledger.count("begin")["200"] == 2
    assert not alive(pids_of(ledger, 1)[0])


@each_shared_mode
def test_a_crash_is_brought_home_to_who_caused_it(dsn, ledger, mode):
    """A segfault takes all jobs of its process with it once; after that each runs alone, and only the guilty one is quarantined."""
    insert(dsn, BESIDE[mode], 5, "jsonb_build_object('number', n, 'seconds', 3)")
    with workers(dsn, ledger.path, *SHARED[mode].slots(6), app=APP):
        wait_until(lambda: len(ledger.count("begin")) == 5, timeout=30, what="the innocents to begin")
        insert(dsn, CRASH[mode], 1, "jsonb_build_object('number', 666)")
        wait_until(lambda: ledger.count("begin")["666"] >= 2, timeout=30, what="the guilty one to begin again")
        insert(dsn, BESIDE[mode], 30, "jsonb_build_object('number', 100 + n)")
        wait_for_states(dsn, 90, succeeded=35, quarantined=1)
    assert rows(dsn, f"SELECT count(*) FROM jobrunner.v_attempts WHERE outcome = 'crashed' AND task = '{BESIDE[mode]}'") == [(5,)]
    assert rows(dsn, "SELECT DISTINCT attempt, crash_count FROM jobrunner.v_jobs WHERE state = 'succeeded'") == [(1, 0)]
    assert [row[:2] for row in attempts(dsn, CRASH[mode])] == [("crashed", "signal 11")] * 2 + [("quarantined", "signal 11")]
    assert all(count == 1 for number, count in ledger.count("begin").items() if int(number) > 100 and number != "666")
    alone = [pid for number in (1, 2, 3, 4, 5) for pid in pids_of(ledger, number)[1:]]
    assert not set(alone) & {pid for number in range(101, 131) for pid in pids_of(ledger, number)}, "a suspect ran beside others"
    assert len(pids_of(ledger, 666)) == len(set(pids_of(ledger, 666))) == 3


@each_shared_mode
def test_suspects_do_not_hold_up_the_rest(dsn, ledger, mode):
    """While suspects run for long, alone, other jobs come and go in the slots that are left."""
    insert(dsn, BESIDE[mode], 2, "jsonb_build_object('number', n, 'seconds', 60)", crash_count=1)
    insert(dsn, BESIDE[mode], 100, "jsonb_build_object('number', 100 + n)")
    with workers(dsn, ledger.path, *SHARED[mode].slots(4), app=APP):
        wait_until(lambda: states(dsn)["succeeded"] == 100, timeout=40, what="the others to be done")
        wait_until(lambda: ledger.count("begin")["1"] and ledger.count("begin")["2"], timeout=20, what="both suspects to begin")
    assert len({*pids_of(ledger, 1), *pids_of(ledger, 2), *pids_of(ledger, 101)}) == 3
    assert rows(dsn, "SELECT bool_and(started_at IS NOT NULL) FROM jobrunner.jobs WHERE crash_count = 1") == [(True,)]


def test_who_closes_the_sockets_of_all_is_found(dsn, ledger):
    """A thread that closes every descriptor makes its process mute, which is ended: that counts as a crash, and is brought home to it."""
    insert(dsn, "work", 2, "jsonb_build_object('number', 100 + n, 'seconds', 2)")
    with workers(dsn, ledger.path, "--threads", "3", app=APP):
        wait_until(lambda: len(ledger.count("begin")) == 2, timeout=30, what="the innocents to begin")
        insert(dsn, "close_everything", 1, max_crashes=2)
        wait_for_states(dsn, 60, succeeded=2, quarantined=1)
    assert [row[0] for row in attempts(dsn, "close_everything")] == ["crashed", "quarantined"]
    assert rows(dsn, "SELECT DISTINCT attempt, crash_count FROM jobrunner.v_jobs WHERE state = 'succeeded'") == [(1, 0)]
