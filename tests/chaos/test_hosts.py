"""Workers on several hosts, one of which loses its network without anybody being told."""

from __future__ import annotations

import signal

import pytest

from tests.support import hosts
from tests.support.waiting import wait_until
from tests.support.workers import APP, Ledger, Worker, alive, insert, rows, wait_for_states

pytestmark = pytest.mark.chaos

LEASE = 3  # seconds
LONG = 8  # seconds of a job: longer than lease and rescue together
SLOTS = 2


def jobs(seconds):
    """Arguments that number the jobs of this batch."""
    return f"jsonb_build_object('number', n + (SELECT count(*) FROM jobrunner.v_jobs), 'seconds', {seconds})"


@pytest.mark.parametrize("place", [pytest.param(hosts.namespace, marks=pytest.mark.needs("root", "netns")), hosts.behind_proxy])
def test_a_host_that_loses_its_network(fresh_dsn, tmp_path, place):
    """Its children are dead before its jobs run again on the other host; back again it takes new jobs, and nothing has run to its end twice."""
    ledger = Ledger(tmp_path / "ledger")
    options = ("-c", str(SLOTS), "--no-listen", "--poll", "200ms")
    with place(fresh_dsn, 0) as one, place(fresh_dsn, 1) as other:
        lost = Worker(one.dsn, ledger.path, *options, "--lease", f"{LEASE}s", app=APP, within=one.within)
        kept = Worker(other.dsn, ledger.path, *options, app=APP, within=other.within)  # its lease outlives a stall
        started = (lost, kept)
        try:
            wait_until(lambda: all("worker started" in worker.text() for worker in started), timeout=60, what="both workers")
            insert(fresh_dsn, "work", 2 * SLOTS, jobs(LONG))
            wait_until(lambda: sum(ledger.count("begin").values()) == 2 * SLOTS, timeout=60, what="all jobs to have begun")
            below = lost.descendants()
            cut_off = {number: pid for _, number, pid, _ in ledger.lines() if pid in below}
            assert len(cut_off) == SLOTS
            one.cut()
            wait_until(lambda: all(ledger.count("begin")[number] == 2 for number in cut_off), timeout=60, what="the jobs to begin again")
            assert not [pid for pid in cut_off.values() if alive(pid)], "the fence: dead before anybody else ran their jobs"
            assert "lease lost: killing all children" in lost.text()
            wait_for_states(fresh_dsn, 60, succeeded=2 * SLOTS)
            one.mend()
            wait_until(lambda: "worker registered again" in lost.text(), timeout=90, what="the lost worker to be back")
            assert kept.stop() == 0
            insert(fresh_dsn, "work", 5, jobs(0))
            wait_for_states(fresh_dsn, 60, succeeded=2 * SLOTS + 5)
            assert lost.stop() == 0
        finally:
            for worker in started:
                worker.signal(signal.SIGKILL)
                worker.process.wait()
    assert set(ledger.count("end").values()) == {1}
    assert {number for number, count in ledger.count("begin").items() if count > 1} == set(cut_off)
    again = "SELECT args->>'number' FROM jobrunner.v_jobs WHERE lease > 1"
    assert {number for (number,) in rows(fresh_dsn, again)} == set(cut_off), "only what was cut off was given away"
