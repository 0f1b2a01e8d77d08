"""When the next look at a job is due: often at first, four times a second at last, and together with others."""

from __future__ import annotations

import itertools

import pytest

from jobrunner.watching import LONGEST_PAUSE, TICK, Waiting, _next_look

SECOND = round(1 / TICK)  # in ticks


def looks(since: int, ticks: int, deadline: int | None = None) -> list[int]:
    """The ticks at which a job is looked at, when every look takes no time."""
    waiting = Waiting(1, None, seen=False)
    waiting.since = since * TICK + TICK / 4
    waiting.deadline = None if deadline is None else deadline * TICK + TICK / 4
    found = [since]
    while found[-1] < since + ticks and (deadline is None or found[-1] <= deadline):
        found.append(_next_look(waiting, found[-1]))
    return found


@pytest.mark.parametrize("since", [0, 1, 77, 1_000_003])
def test_pauses_grow_with_the_time_waited(since):
    """The first looks are a tick apart; later ones come within a quarter of the time waited so far, and after a second every 256 ms."""
    found = looks(since, 10 * SECOND)
    pauses = [after - before for before, after in itertools.pairwise(found)]
    assert pauses[:7] == [1] * 7
    assert all(1 <= pause <= max(1, (at - since) // 4) for at, pause in zip(found, pauses, strict=False))
    late = [pause for at, pause in zip(found, pauses, strict=False) if at > since + 2 * SECOND]
    assert set(late) == {LONGEST_PAUSE}
    assert 0.24 < LONGEST_PAUSE * TICK < 0.26
    assert len(found) < 80


def test_those_who_wait_long_are_looked_for_together():
    """However many began to wait at whatever time, after a second there are four looks a second for all of them."""
    ticks = {tick for since in range(1000) for tick in looks(since, 5 * SECOND) if 3 * SECOND <= tick < 4 * SECOND}
    assert len(ticks) == 4


@pytest.mark.parametrize("deadline", [0, 1, 5, 700, 5003])
def test_the_last_look_comes_when_the_time_is_up(deadline):
    """The last look is the first one after the deadline, less than a tick later, so that a job that ended meanwhile is seen."""
    found = looks(0, 100 * SECOND, deadline)
    assert found[-1] == deadline + 1
    assert found[-2] <= deadline
