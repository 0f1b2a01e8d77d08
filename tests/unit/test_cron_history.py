"""From the runs on record to starts that were missed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from jobrunner.inspection.runs import Missed, Span, learned_interval, missed

NOON = datetime(2026, 11, 25, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
HOUR_AGO = NOON - timedelta(hours=1)


def at(minutes: float) -> datetime:
    """So many minutes after noon."""
    return NOON + MINUTE * minutes


def spans(*runs: tuple[float, float]) -> list[Span]:
    """Runs given as (minute of the start, seconds)."""
    return [Span(at(start), at(start) + timedelta(seconds=seconds)) for start, seconds in runs]


@pytest.mark.parametrize(
    ("minutes", "learned"),
    [
        ([], None), ([0], None), ([0, 1], None), ([0, 1, 2], 1), ([0.01, 1.0, 2.02, 3.0], 1), ([0, 5, 10, 15], 5), ([0, 1, 2, 10, 11], 1),
        ([0, 0.01, 1, 1.01, 2, 2.01], 1), ([0, 0, 0, 5, 5, 5, 10, 10, 10], 5), ([0, 60, 120], 60),
    ],
)  # fmt: skip
def test_the_interval_is_learned_from_the_usual_gap(minutes, learned):
    """The median of the gaps in whole minutes; starts of one minute count once; two gaps are the least."""
    assert learned_interval([at(minute) for minute in minutes]) == (None if learned is None else MINUTE * learned)


def test_runs_that_came_in_time_leave_nothing_missed():
    """Short runs, runs of nearly the whole interval, and starts a few seconds off are as they should be."""
    for seconds in (0.5, 3, 55, 59):
        found = spans(*[(minute + 0.02 * (minute % 3), seconds) for minute in range(10)])
        assert missed(found, MINUTE, at(9.99), HOUR_AGO) == ()


@pytest.mark.parametrize("seconds", [1, 55])
def test_a_start_that_did_not_come(seconds):
    """A minute without a run is one missed start, however long the runs around it are."""
    found = spans((0, seconds), (1, seconds), (3, seconds), (4, seconds))
    assert missed(found, MINUTE, at(4.9), HOUR_AGO) == (Missed(found[1].end, at(3), 1),)


def test_a_long_run_covers_the_starts_within_it():
    """While a run of minutes has the slot, starts that find it taken leave no row and are not missed."""
    assert missed(spans((0, 1), (1, 300), (7, 1)), MINUTE, at(7.5), HOUR_AGO) == ()
    assert [gap.starts for gap in missed(spans((0, 1), (1, 300), (9, 1)), MINUTE, at(9.5), HOUR_AGO)] == [2]


def test_since_the_last_run():
    """Starts that should have come until now are missed; one that is due this moment may be on its way."""
    found = spans((0, 1), (1, 1))
    assert missed(found, MINUTE, at(2.1), HOUR_AGO) == ()
    assert [gap.starts for gap in missed(found, MINUTE, at(2.9), HOUR_AGO)] == [1]
    assert missed(found, MINUTE, at(5.9), HOUR_AGO) == (Missed(found[1].end, at(5.9), 4),)


def test_only_the_time_asked_about():
    """Starts missed before that time do not count, those after it do, also when the last run was long before."""
    (gap,) = missed(spans((-600, 1), (10, 1)), MINUTE, at(10.5), NOON)
    assert (gap.since, gap.until) == (NOON, at(10))
    assert gap.starts == 9


def test_no_run_at_all():
    """Without any run there is no start to count from."""
    assert missed([], MINUTE, NOON, HOUR_AGO) == ()
