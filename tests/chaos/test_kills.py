"""Workers and their parts die by SIGKILL, SIGSEGV and SIGSTOP: nothing acknowledged is lost, nobody else pays."""

from __future__ import annotations

import os
import random
import signal
import time

import pytest

from jobrunner.worker import procfs
from tests.support.modes import each_mode
from tests.support.waiting import seconds_until, wait_until
from tests.support.workers import Ledger, alive, insert, rows, states, wait_for_states, workers

pytestmark = pytest.mark.chaos


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "ledger")


def _wait_for_moment(moment):
    wait_until(lambda: time.monotonic() >= moment, timeout=5, what="a random moment")


def test_twenty_kills_lose_no_job(fresh_dsn, ledger):
    """A worker killed -9 twenty times at random moments loses none of 2,000 jobs, and each of them runs."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    moments = random.Random(seed)
    insert(fresh_dsn, "work", 2000, "jsonb_build_object('number', n, 'seconds', 0.005)")
    for _ in range(20):
        done = sum(ledger.count("end").values())
        with workers(fresh_dsn, ledger.path, "--lease", "2s", "-c", "2") as [worker]:
            ledger.wait_for_ends(done + 1)
            pause = time.monotonic() + moments.uniform(0, 0.3)
            _wait_for_moment(pause)
            worker.kill()
    with workers(fresh_dsn, ledger.path, "--lease", "2s", "-c", "2"):
        wait_for_states(fresh_dsn, 60, succeeded=2000)
    assert len(ledger.count("end")) == 2000
    assert rows(fresh_dsn, "SELECT max(attempt) FROM jobrunner.v_jobs") == [(1,)], "a crash of the worker used up an attempt"


@each_mode
def test_rescued_within_a_lease_and_a_poll(fresh_dsn, ledger, mode):
    """The job of a worker killed -9 begins again elsewhere within one lease plus one poll."""
    insert(fresh_dsn, mode.task, 1, "jsonb_build_object('number', n, 'seconds', 60)")
    with workers(fresh_dsn, ledger.path, *mode.slots(2), "--lease", "3s", "--poll", "1s", count=2) as both:
        wait_until(lambda: ledger.count("begin")["1"] == 1, timeout=20, what="the job to begin")
        holder = rows(fresh_dsn, "SELECT pid FROM jobrunner.v_workers w JOIN jobrunner.v_jobs j ON j.worker_id = w.id")[0][0]
        next(worker for worker in both if worker.process.pid == holder).kill()
        seconds = seconds_until(lambda: ledger.count("begin")["1"] == 2, timeout=60, what="the job to begin again")
        assert seconds < 3 + 1 + 1, "later than lease + poll (and a second for a busy machine)"


def test_default_settings_after_a_kill(fresh_dsn, ledger):
    """kill -9 amid 200 jobs of 50 ms at default settings: all done within 35 s of the restart; only those in flight run twice."""
    insert(fresh_dsn, "work", 200, "jsonb_build_object('number', n, 'seconds', 0.05)")
    with workers(fresh_dsn, ledger.path) as [worker]:
        wait_until(lambda: sum(ledger.count("end").values()) >= 80, timeout=60, what="the middle of the work")
        below = worker.descendants()
        worker.kill()
        wait_until(lambda: not any(map(alive, below)), timeout=20, what="the children, which may still begin what they have, to be gone")
    lines = ledger.lines()
    begun, ended = [n for event, n, *_ in lines if event == "begin"], [n for event, n, *_ in lines if event == "end"]
    slots = os.cpu_count() or 1
    # in flight: begun and not ended, or ended so lately (the last one or two of each slot) that its outcome was on its way
    in_flight = (set(begun) - set(ended)) | set(ended[-3 * slots :])
    restarted = time.monotonic()
    with workers(fresh_dsn, ledger.path):
        wait_for_states(fresh_dsn, 35, succeeded=200)
        seconds = time.monotonic() - restarted
    again = {number for number, count in ledger.count("begin").items() if count > 1}
    print(
        f"done {seconds:.1f} s after the restart; ran again: {len(again)} of {len(in_flight)} in flight; lost: {200 - len(ledger.count('end'))}"
    )
    assert len(ledger.count("end")) == 200
    assert again <= in_flight


@each_mode
def test_paused_past_its_lease(fresh_dsn, ledger, mode):
    """A worker stopped past its lease and continued: its children are dead, its late writes are refused, the job is another's."""
    insert(fresh_dsn, mode.task, 1, "jsonb_build_object('number', n, 'seconds', 6)")
    with workers(fresh_dsn, ledger.path, "--lease", "2s", *mode.slots(1)) as [first]:
        wait_until(lambda: ledger.count("begin")["1"] == 1, timeout=20, what="the job to begin")
        child = ledger.lines()[0][2]
        first.signal(signal.SIGSTOP)
        with workers(fresh_dsn, ledger.path, *mode.slots(1)) as [second]:
            wait_until(lambda: not alive(child), timeout=10, what="the template to end the children of a worker that stands still")
            wait_until(lambda: ledger.count("begin")["1"] == 2, timeout=15, what="the job to begin elsewhere")
            first.signal(signal.SIGCONT)
            wait_until(lambda: "lease lost" in first.text(), timeout=10, what="the first worker to see that its lease is lost")
            wait_for_states(fresh_dsn, 30, succeeded=1)
            assert ledger.count("end")["1"] == 1, "the superseded attempt went on to its end"
            assert rows(fresh_dsn, "SELECT lease, attempt FROM jobrunner.v_jobs") == [(2, 1)]
            wait_until(lambda: "worker registered again" in first.text(), timeout=30, what="the first worker to register again")
            insert(fresh_dsn, mode.task, 4)
            wait_for_states(fresh_dsn, 20, succeeded=5)
            assert second.stop() == 0
        assert first.stop() == 0


def test_segfault_is_quarantined(fresh_dsn, ledger):
    """A job that segfaults runs `max_crashes` times and is quarantined; no other job loses an attempt."""
    insert(fresh_dsn, "once", 150)
    insert(fresh_dsn, "segfault", 3)
    insert(fresh_dsn, "once", 150, "jsonb_build_object('number', n + 1000)")
    with workers(fresh_dsn, ledger.path, "-c", "2"):
        wait_for_states(fresh_dsn, 60, succeeded=300, quarantined=3)
    assert all(ledger.count("begin")[str(number)] in {3, 4} for number in (1, 2, 3))  # `once` 1 to 3 began once each too
    assert all(count == 1 for count in ledger.count("end").values()), "an innocent job ran twice"
    found = rows(
        fresh_dsn, "SELECT outcome, exit_cause, count(*) FROM jobrunner.v_attempts WHERE task = 'segfault' GROUP BY 1, 2 ORDER BY 1"
    )
    assert found == [("crashed", "signal 11", 6), ("quarantined", "signal 11", 3)]
    assert rows(fresh_dsn, "SELECT DISTINCT attempt FROM jobrunner.v_jobs WHERE task = 'once'") == [(1,)]


def test_exit_behind_pythons_back(fresh_dsn, ledger):
    """`os._exit(0)` in a task is a crash, not a success."""
    insert(fresh_dsn, "leave", 1, "jsonb_build_object('status', 0)", max_crashes=2)
    with workers(fresh_dsn, ledger.path, "--drain", "-c", "1") as [worker]:
        assert worker.wait() == 0
    assert states(fresh_dsn) == {"quarantined": 1}
    assert rows(fresh_dsn, "SELECT exit_cause FROM jobrunner.v_attempts") == [("exit 0",), ("exit 0",)]


def test_worker_killed_leaves_no_process(fresh_dsn, ledger):
    """When a worker is killed -9, its template and children are gone soon, with what their jobs started."""
    pid_file = ledger.path.with_name("pid")
    insert(fresh_dsn, "spawn_and_sleep", 1, f"jsonb_build_object('pid_file', '{pid_file}')")
    with workers(fresh_dsn, ledger.path, "-c", "2") as [worker]:
        wait_until(lambda: pid_file.exists() and pid_file.read_text(), timeout=20, what="the job to start its process")
        wait_until(lambda: len(worker.descendants()) >= 4, timeout=20, what="template, two children and the job's own process")
        below = worker.descendants()
        worker.kill()
        wait_until(lambda: not any(map(alive, below)), timeout=5, what="every process of the worker to be gone")


@each_mode
def test_template_killed(fresh_dsn, ledger, mode):
    """When the template is killed, the worker starts another and the jobs are done."""
    insert(fresh_dsn, mode.task, 40, "jsonb_build_object('number', n, 'seconds', 0.05)")
    with workers(fresh_dsn, ledger.path, *mode.slots(2)) as [worker]:
        wait_until(lambda: sum(ledger.count("end").values()) >= 5, timeout=20, what="some jobs to be done")
        [template] = procfs.children(worker.process.pid)
        os.kill(template, signal.SIGKILL)
        wait_for_states(fresh_dsn, 30, succeeded=40)
        wait_until(lambda: "template process died" in worker.text(), timeout=20, what="the worker to see that it is dead")
        assert worker.stop() == 0
