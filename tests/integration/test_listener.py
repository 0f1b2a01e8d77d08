"""The worker's listener on a real connection: it wakes for its queues only, comes back after a broken connection, and rests in between."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from jobrunner.settings import CHANNEL, parse_dsn
from jobrunner.worker import listener as module
from jobrunner.worker.listener import Listener
from tests.support.waiting import wait_until

PATIENCE = 20  # seconds
REST = 3.0  # seconds
STILL = 1  # times that a thread may go to sleep then: it may have been on its way to


@pytest.fixture
def woken():
    """Counts wake-ups."""
    return threading.Semaphore(0)


@pytest.fixture
def listener(dsn, woken):
    """One that listens for `mail`; what it says of the time before it listened is heard already."""
    own = Listener(parse_dsn(dsn, "a test"), {"mail"}, woken.release)
    own.start()
    assert own.listening.wait(PATIENCE)
    assert woken.acquire(timeout=PATIENCE)
    yield own
    own.stop()
    own.join(PATIENCE)
    assert not own.is_alive()


def tell(connection, queue):
    """A wake-up for a queue, committed."""
    connection.execute("SELECT pg_notify(%s, %s)", (CHANNEL, queue))


def sleeps(thread):
    """How often the thread has gone to sleep by itself."""
    status = Path(f"/proc/self/task/{thread.native_id}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("voluntary_ctxt")).split()[1])


def test_it_wakes_for_its_queues_only(connection, listener, woken):
    """A wake-up for another queue is not one, and those that come in one packet are one or more."""
    tell(connection, "reports")
    assert not woken.acquire(timeout=0.5)
    for queue in ("reports", "mail", "mail"):
        tell(connection, queue)
    assert woken.acquire(timeout=PATIENCE)


def test_it_listens_again_after_its_connection_was_ended(connection, listener, woken, monkeypatch):
    """An administrator ends the session: it is noticed at once, and what was enqueued meanwhile is looked for."""
    monkeypatch.setattr(module, "_RETRY", 0.1)
    ours = "FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'jobrunner-listener'"
    connection.execute(f"SELECT pg_terminate_backend(pid) {ours}")
    assert woken.acquire(timeout=PATIENCE)
    wait_until(listener.listening.is_set, timeout=PATIENCE, what="it listens again")
    tell(connection, "mail")
    assert woken.acquire(timeout=PATIENCE)


@pytest.mark.needs("linux")
def test_it_rests_while_nobody_enqueues(listener):
    """A thread that looks in now and then costs each idle worker; this one is told when it is to stop."""
    before = sleeps(listener)
    listener.join(REST)  # which nothing ends
    assert listener.is_alive()
    assert sleeps(listener) - before <= STILL
