"""A worker that drains leaves when nothing is due: it misses no word that something may be due again."""

from __future__ import annotations

from collections import deque
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest

from jobrunner import clock
from jobrunner.claimer import Claimer, Room
from jobrunner.jobs import Succeeded
from jobrunner.settings import parse_dsn
from jobrunner.store import Store
from jobrunner.worker.link import Link
from jobrunner.worker.supervisor import Supervisor


@pytest.fixture
def link(dsn, connection, monkeypatch):
    """Of a worker with two lanes, on a database with nothing that is due; its rounds are made by the test."""
    made = Link(parse_dsn(dsn, "a test"), [Claimer(["default"], [], 1.0) for _ in range(2)], lambda: None)
    made._maintain_at = clock.monotonic() + 1000
    monkeypatch.setattr(made, "_connected", lambda: Store(connection))
    return made


def test_an_outcome_does_not_go_before_it_is_told(link, monkeypatch):
    """Who finds nothing unwritten finds the word that something was: nobody can look between the two."""
    looks: list[bool] = []

    def look() -> None:
        looks.append(link._condition.acquire(blocking=False))
        if looks[-1]:
            link._condition.release()

    def told() -> None:
        other = Thread(target=look)
        other.start()
        other.join()

    monkeypatch.setattr(link, "_wake_main", told)
    link.exchange([Succeeded(1, 1, None, 0, 0, 1000.0)], [], [Room(0), Room(0)], 0)
    link._round()
    assert list(link.events) == [("written", 1)]
    assert looks == [False]


def test_the_end_waits_for_what_has_been_told(link):
    """With nothing unwritten and nothing due when it was looked last, a word that has not been read yet keeps the worker."""
    pool = SimpleNamespace(in_flight=lambda: iter(()), unwritten=False)
    options = SimpleNamespace(max_seconds=None, max_jobs=None, drain=True)
    worker: Any = SimpleNamespace(_signals=0, _drained=True, _ended=False, claimed_count=0, options=options, pool=pool, link=link)
    link.events = deque([("written", 1)])
    Supervisor._mind_the_end(worker, 0.0, 0.0)
    assert not worker._ended
    link.events.clear()
    Supervisor._mind_the_end(worker, 0.0, 0.0)
    assert worker._ended


def test_a_lane_that_has_not_looked_since_is_not_idle(link):
    """What was written may be due in a lane whose child has just died, and which can take nothing: it has to look first."""
    link.claimers[0].idle = True
    link.exchange([], [], [Room(0), Room(1)], 0)
    link.wake()
    link._round()
    assert not link.events
    link.exchange([], [], [Room(1), Room(1)], 0)
    link._round()
    assert [event for event, _ in link.events] == ["idle"]


def test_that_nothing_is_due_is_told_once_and_again_after_each_outcome(link):
    """An idle worker's main loop is left in peace; what was written may be due again, and who drains waits for the word that it is not."""
    link.exchange([], [], [Room(1), Room(1)], 0)
    for _ in range(3):
        link.wake()
        link._round()
    assert [event for event, _ in link.events] == ["idle"]
    link.exchange([Succeeded(1, 1, None, 0, 0, 1000.0)], [], [Room(1), Room(1)], 0)
    link.wake()
    link._round()
    assert [event for event, _ in link.events] == ["idle", "written", "idle"]
