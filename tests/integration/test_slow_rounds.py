"""What a worker makes of a database that answers slowly: fewer and larger statements, and more work in hand."""

from __future__ import annotations

import pytest

from jobrunner import clock
from jobrunner.claimer import Claimer, Room
from jobrunner.jobs import Succeeded
from jobrunner.settings import parse_dsn
from jobrunner.store import Store
from jobrunner.worker.link import _LINGER, _MOST_LINGER, Link
from tests.support.rows import Scene
from tests.support.workers import insert

TASK = "send"


class Slow:
    """The clock, and how long a write takes by it."""

    def __init__(self):
        self.now, self.write_takes = clock.monotonic(), 0.0


@pytest.fixture
def slow(monkeypatch):
    made = Slow()
    monkeypatch.setattr(clock, "monotonic", lambda: made.now)
    return made


@pytest.fixture
def link(dsn, connection, monkeypatch, slow):
    made = Link(parse_dsn(dsn, "a test"), [Claimer(["default"], [TASK], 1.0)], lambda: None)
    made.join_as(Scene(connection).worker())
    made._maintain_at = slow.now + 1000
    write = made.finisher.write

    def written(store, outcomes):
        write(store, outcomes)
        slow.now += slow.write_takes

    monkeypatch.setattr(made.finisher, "write", written)
    monkeypatch.setattr(made, "_connected", lambda: Store(connection))
    return made


def an_end():
    """Of a job that is long gone: it is refused, which takes as long as any other."""
    return [Succeeded(1, 1, None, 0, 0, 1000.0)]


@pytest.mark.parametrize(("took", "waits"), [(0.0, _LINGER), (0.02, 0.02), (5.0, _MOST_LINGER)])
def test_outcomes_wait_for_others_as_long_as_the_last_took_to_write(link, slow, took, waits):
    """Outcomes of a stream are held for as long as writing takes, so that half of the time at most is spent on it; within bounds."""
    slow.write_takes = took
    link.exchange(an_end(), [], [Room(0)], 0)
    link._round()
    link.exchange(an_end(), [], [Room(0)], 0, may_wait=True)
    assert link._patience() == pytest.approx(waits)


def test_a_claim_tells_how_long_its_round_took(link, slow, dsn):
    """The writing of outcomes before it counts: the jobs of the next claim will wait for that as well."""
    insert(dsn, TASK, 1, queue="default")
    slow.write_takes = 0.5
    link.exchange(an_end(), [], [Room(1)], 0)
    link._round()
    (_, jobs, seconds) = next(value for event, value in link.events if event == "claimed")
    assert [len(lane) for lane in jobs] == [1]
    assert seconds == pytest.approx(0.5)


def test_a_claim_tells_how_long_others_were_in_the_way(link, slow, dsn):
    """The time outside a closed gate counts for the claim that comes in, and for no later one, which may be another lane's."""
    claimer = link.claimers[0]
    for waited, told in ((0.3, 0.3), (0.0, 0.0)):
        insert(dsn, TASK, 1, queue="default")
        claimer.waited = 0.0
        claim = claimer.claim

        def claimed(store, worker_id, room, claim=claim, waited=waited):
            jobs = claim(store, worker_id, room)
            claimer.waited = waited
            return jobs

        claimer.claim = claimed
        claimer.wake()
        link.events.clear()
        link.exchange([], [], [Room(1)], link._claims)
        link._round()
        (_, jobs, seconds) = next(value for event, value in link.events if event == "claimed")
        assert [len(lane) for lane in jobs] == [1]
        assert seconds == pytest.approx(told)
        claimer.claim = claim
