"""Consumers of messages die by SIGKILL and stand still by SIGSTOP: no message is lost, none is given to two that are healthy."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from jobrunner import JobRunner
from tests.support.waiting import seconds_until, wait_until
from tests.support.workers import Ledger, states

pytestmark = pytest.mark.chaos

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "tests" / "support" / "consumer_app.py"


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "ledger")


@pytest.fixture
def jobs(fresh_dsn):
    runner = JobRunner(dsn=fresh_dsn)
    yield runner
    runner.close()


@contextlib.contextmanager
def consumer(dsn, ledger, lease, seconds=0.0):
    """A program that consumes the queue `emails`; killed at the end."""
    arguments = [sys.executable, str(PROGRAM), dsn, "emails", str(ledger.path), str(lease), str(seconds)]
    process = subprocess.Popen(arguments, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdin=subprocess.DEVNULL)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def has_gone_on(ledger, lines):
    """Whether more than so many events are noted, or everything is handled."""
    return len(ledger.lines()) > lines or len(ledger.count("end")) >= 200


def test_a_killed_consumers_message_is_given_again_within_its_lease(fresh_dsn, jobs, ledger):
    """kill -9 amid a message: another consumer has it within one lease; nobody else is needed for that, no worker and no daemon."""
    lease = 4
    jobs.queue("emails").put("one")
    with consumer(fresh_dsn, ledger, lease, 600) as first:
        wait_until(lambda: ledger.count("begin")["one"] == 1, timeout=60, what="the first to have it")
        with consumer(fresh_dsn, ledger, lease, 0):
            running = "SELECT count(*) FROM jobrunner.workers WHERE kind = 'consumer' AND stopped_at IS NULL"
            with jobs.database.store() as store:
                wait_until(lambda: store.connection.execute(running).fetchone() == (2,), timeout=60, what="the second to wait")
            first.kill()
            seconds = seconds_until(lambda: ledger.count("end")["one"] == 1, timeout=60, what="the second to have handled it")
            # It says so before its acknowledgement, and is killed when this block ends.
            wait_until(lambda: states(fresh_dsn) == {"succeeded": 1}, timeout=60, what="its acknowledgement")
    print(f"{seconds:.2f} s after the kill, with a lease of {lease} s")
    assert seconds < lease + 1, "later than one lease (and a second for a busy machine)"


def test_ten_kills_lose_no_message(fresh_dsn, jobs, ledger):
    """A consumer killed -9 ten times amid its work: each of 200 messages is handled, and what was acknowledged is not given again."""
    jobs.queue("emails", max_deliveries=20).put_many([f"m{number}" for number in range(200)])
    for _ in range(10):
        done = len(ledger.lines())
        with consumer(fresh_dsn, ledger, 4, 0.003) as program:
            wait_until(partial(has_gone_on, ledger, done + 30), timeout=60, what="some to be handled")
            program.kill()
    with consumer(fresh_dsn, ledger, 4, 0):
        wait_until(lambda: states(fresh_dsn) == {"succeeded": 200}, timeout=120, what="all to be acknowledged")
    assert len(ledger.count("end")) == 200
    events = [(event, number) for event, number, _, _ in ledger.lines()]
    again = [number for place, (event, number) in enumerate(events) if event == "acked" and ("begin", number) in events[place:]]
    assert again == [], "acknowledged and given again"


def test_a_consumer_that_stands_still_loses_its_message(fresh_dsn, jobs, ledger):
    """A process stopped for longer than its lease does not hold the message up, and its late acknowledgement changes nothing."""
    jobs.queue("emails").put("one")
    with consumer(fresh_dsn, ledger, 2, 10) as first:
        wait_until(lambda: ledger.count("begin")["one"] == 1, timeout=60, what="the first to have it")
        first.send_signal(signal.SIGSTOP)
        with consumer(fresh_dsn, ledger, 2, 0):
            wait_until(lambda: ledger.count("acked")["one"] == 1, timeout=60, what="the second to have handled it")
            first.send_signal(signal.SIGCONT)
            wait_until(lambda: ledger.count("lost")["one"] == 1, timeout=60, what="the first to be refused")
    assert ledger.count("acked")["one"] == 1
    assert states(fresh_dsn) == {"succeeded": 1}


def test_a_message_that_takes_longer_than_its_first_lease_is_given_once(fresh_dsn, jobs, ledger):
    """A healthy consumer with a long lease keeps its message for as long as it works, though its row lives by seconds."""
    jobs.queue("emails").put("slow")
    with consumer(fresh_dsn, ledger, 3600, 20), consumer(fresh_dsn, ledger, 1, 0):
        wait_until(lambda: ledger.count("begin")["slow"] == 1, timeout=60, what="one to have it")
        wait_until(lambda: states(fresh_dsn) == {"succeeded": 1} or ledger.count("begin")["slow"] > 1, timeout=90, what="it to be handled")
    assert ledger.count("begin")["slow"] == 1
