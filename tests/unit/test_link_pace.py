"""When the link writes: what is alone at once, what belongs to a stream of short jobs with others, and never much later."""

from __future__ import annotations

import pytest

from jobrunner import clock
from jobrunner.claimer import Claimer, Room
from jobrunner.jobs import Succeeded
from jobrunner.settings import parse_dsn
from jobrunner.worker.link import _ENOUGH, _LINGER, CROWD_SLACK, MAINTENANCE_SLACK, Link

NOTHING = [Room(0)]


@pytest.fixture
def now(monkeypatch):
    """The link's clock; a list of one moment."""
    moment = [1000.0]
    monkeypatch.setattr(clock, "monotonic", lambda: moment[0])
    return moment


@pytest.fixture
def link(now):
    made = Link(parse_dsn("postgresql://127.0.0.1:1/none", "here"), [Claimer(["default"], [], 1.0)], lambda: None)
    made._maintain_at = now[0] + 1.0
    return made


def ended(count):
    """Outcomes of jobs that returned."""
    return [Succeeded(number, 1, None, 0, 0, 1000.0) for number in range(count)]


def test_what_is_alone_is_written_at_once(link):
    """Without more to come soon there is nothing to wait for."""
    link.exchange(ended(1), [], NOTHING, 0)
    assert link._has_work()


def test_outcomes_of_a_stream_wait_for_others_and_not_for_long(link, now):
    """They are written a few milliseconds later, whether more come or not, and the thread wakes up for that by itself."""
    link.exchange(ended(1), [], NOTHING, 0, may_wait=True)
    assert not link._has_work()
    assert link._patience() == pytest.approx(_LINGER)
    now[0] += _LINGER / 2
    link.exchange(ended(1), [], NOTHING, 0, may_wait=True)
    assert link._patience() == pytest.approx(_LINGER / 2)
    now[0] += _LINGER / 2 + 1e-6
    assert link._has_work()


def test_room_that_may_not_be_used_wakes_nobody(link):
    """Slots that are about to come free are no reason to claim while few jobs are due: the thread sleeps until maintenance."""
    link.exchange([], [], [Room(2, early=2)], 0)
    assert not link._has_work()
    assert link._patience() == pytest.approx(1.0 + MAINTENANCE_SLACK)
    link.claimers[0]._full = True
    assert link._has_work()
    assert link._patience() == 0.0


def test_so_many_outcomes_do_not_wait(link):
    """A statement for several hundred is wide enough."""
    link.exchange(ended(_ENOUGH), [], NOTHING, 0, may_wait=True)
    assert link._has_work()


def test_outcomes_that_wait_are_written_when_the_stream_ends(link):
    """The main loop says that nothing more will come soon: what waits is due at once."""
    link.exchange(ended(3), [], NOTHING, 0, may_wait=True)
    assert not link._has_work()
    link.exchange([], [], NOTHING, 0)
    assert link._has_work()


def test_a_claim_takes_the_outcomes_along(link):
    """When jobs are wanted the round begins, and writes what waits before it claims."""
    link.exchange(ended(3), [], [Room(10)], 0, may_wait=True)
    assert link._has_work()


def test_the_same_room_is_no_news(link, monkeypatch):
    """The main loop says how much it can take in each turn; the thread is roused when that has changed."""
    roused: list[None] = []
    monkeypatch.setattr(link._condition, "notify", lambda: roused.append(None))
    link.exchange([], [], [Room(10)], 0)
    link.exchange([], [], [Room(10)], 0)
    assert len(roused) == 1
    link.exchange([], [], [Room(9)], 0)
    link.exchange([], [], NOTHING, 0)
    assert len(roused) == 2


def test_maintenance_goes_with_a_claim_unless_a_job_could_be_cancelled(link):
    """An idle worker looks for lost ones when it looks for jobs anyway; one that holds a job looks in time for whoever cancels it."""
    assert link._patience() == pytest.approx(1.0 + MAINTENANCE_SLACK)
    link.claimers[0]._crowded = 1  # others look as well
    assert link._patience() == pytest.approx(1.0 + CROWD_SLACK)
    link._held[1] = 1
    assert link._patience() == pytest.approx(1.0)
