"""The clock of `testing.Jobs`: what waits for a later time runs when the test says it is that time, and what is written then is dated so."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from jobrunner import ConfigurationError
from jobrunner.errors import NotDrained
from tests.support.playground import place, read, shop

HOUR = timedelta(hours=1)
RUN_AT = "SELECT run_at FROM jobrunner.jobs WHERE id = %s"


@pytest.fixture
def made(dsn):
    made = shop(dsn)
    yield made
    made.jobs.close()


@pytest.fixture(params=["committed", "session", "psycopg2"])
def helper(request, made, dsn):
    with place(request.param, made.jobs, dsn) as helper:
        yield helper


def test_the_clock_is_the_databases_until_it_is_moved(helper):
    """Before the first move it tells `now()`; after it, it stands still."""
    assert not helper.clock.moved
    assert abs(helper.clock.now() - datetime.now(UTC)) < timedelta(minutes=1)
    moved = helper.clock.advance(hours=1)
    assert helper.clock.moved
    assert helper.clock.now() == moved
    assert helper.clock.advance(HOUR) == moved + HOUR
    assert helper.clock.travel_to(moved + 3 * HOUR) == helper.clock.now() == moved + 3 * HOUR


def test_a_delayed_job_runs_when_its_time_has_come(made, helper):
    """Not a second before, and exactly then; its row keeps the time it was enqueued for."""
    job = made.add.options(delay=3600).enqueue(1)
    run_at = read(helper, RUN_AT, job.id)[0][0]
    assert len(helper.drain()) == 0
    helper.clock.travel_to(run_at - timedelta(seconds=1))
    assert [waiting.state for waiting in helper.enqueued()] == ["scheduled"]
    assert len(helper.drain()) == 0
    helper.clock.advance(seconds=1)
    assert [waiting.state for waiting in helper.enqueued()] == ["queued"]
    assert helper.drain().counts == {"succeeded": 1}
    assert read(helper, "SELECT run_at FROM jobrunner.v_jobs WHERE id = %s", job.id) == [(run_at,)]


def test_a_job_for_a_moment(made, helper):
    """`run_at` and `travel_to` speak of the same time, years ahead too."""
    made.add.options(run_at=datetime(2040, 1, 1, tzinfo=UTC)).enqueue(1)
    helper.clock.travel_to(datetime(2039, 12, 31, tzinfo=UTC))
    assert len(helper.drain()) == 0
    helper.clock.travel_to(datetime(2040, 1, 1, tzinfo=UTC))
    assert len(helper.drain()) == 1


def test_snoozes_and_retries_are_counted_from_the_moved_clock(made, helper):
    """A job that snoozes an hour after the clock went on is due an hour later on that clock, to the microsecond; so are retries."""
    now = helper.clock.advance(days=3)
    job = made.steer.enqueue("snooze")
    assert helper.drain().counts == {"snoozed": 1}
    assert read(helper, RUN_AT, job.id) == [(now + HOUR,)]
    helper.clock.advance(minutes=59, seconds=59, microseconds=999_999)
    assert len(helper.drain()) == 0
    helper.clock.advance(microseconds=1)
    assert helper.drain().counts == {"snoozed": 1}
    assert read(helper, RUN_AT, job.id) == [(now + 2 * HOUR,)]


def test_a_failing_job_through_all_its_attempts(made, helper):
    """Retries come after the backoff of the row: 30 s here, without waiting a moment."""
    made.flaky.enqueue(2)
    outcomes = []
    for _ in range(3):
        began = helper.clock.now()
        outcomes += [attempt.outcome for attempt in helper.drain(raise_errors=False).attempts]
        ended = helper.clock.now()  # later than it began the first time, when the clock is still the database's
        helper.clock.travel_to(began + timedelta(seconds=29))
        assert len(helper.drain()) == 0
        helper.clock.travel_to(ended + timedelta(seconds=30))
    assert outcomes == ["retried", "retried", "succeeded"]
    assert made.seen == [1, 2, 3]


def test_what_is_enqueued_under_a_moved_clock_is_dated_by_it(made, helper):
    """A delay counts from the clock, `created_at` is its time, jobs of jobs too; an explicit `run_at` is what the app said."""
    now = helper.clock.advance(days=1)
    at = now + 7 * HOUR
    plain, later = made.add.enqueue(1), made.add.options(delay=60).enqueue(2)
    exact = made.add.options(run_at=at).enqueue(3)
    many = made.send.options(delay=60).enqueue_many([(1,), (2,)])
    made.parent.enqueue(1)
    rows = dict(read(helper, "SELECT id, ARRAY[created_at, run_at] FROM jobrunner.jobs"))
    expected = {plain.id: now, later.id: now + timedelta(minutes=1), exact.id: at, **dict.fromkeys(many, now + timedelta(minutes=1))}
    assert {job_id: rows[job_id] for job_id in expected} == {job_id: [now, run_at] for job_id, run_at in expected.items()}
    assert helper.drain().counts == {"succeeded": 3}
    helper.assert_enqueued(made.add, (2,), delay=60, within=0)


def test_a_unique_job_that_was_there_keeps_its_times(made, helper):
    """Enqueueing the same again under a later clock changes nothing about the job that waits, alone or in a batch."""
    first = made.once.enqueue(1)
    before = read(helper, "SELECT created_at, run_at FROM jobrunner.jobs WHERE id = %s", first.id)
    now = helper.clock.advance(days=1)
    assert not made.once.enqueue(1).created
    ids = made.once.enqueue_many([(1,), (2,)])
    assert ids[0] == first.id
    assert read(helper, "SELECT created_at, run_at FROM jobrunner.jobs WHERE id = %s", first.id) == before
    assert read(helper, "SELECT created_at, run_at FROM jobrunner.jobs WHERE id = %s", ids[1]) == [(now, now)]


def test_scheduled_jobs_on_request(made, helper):
    """`with_scheduled` runs what waits for later too, soonest first, and takes the clock along."""
    began = helper.clock.now()
    made.add.options(delay=7200).enqueue(2)
    made.add.options(delay=3600).enqueue(1)
    made.flaky.options(delay=5400).enqueue(1)
    drained = helper.drain(with_scheduled=True, raise_errors=False)
    assert drained.counts == {"succeeded": 3, "retried": 1}
    assert made.seen == [(1, 2), 1, 2, (2, 2)]
    assert timedelta(hours=2) <= helper.clock.now() - began < timedelta(hours=2, minutes=1)
    made.steer.enqueue("snooze")
    with pytest.raises(NotDrained):
        helper.drain(with_scheduled=True, limit=5)


def test_a_time_from_the_hosts_clock_is_due(made, helper):
    """`run_at=datetime.now(UTC)` runs at once, also in a transaction that began earlier; a short retry does not."""
    made.add.options(run_at=datetime.now(UTC)).enqueue(1)
    made.steer.enqueue("retry")
    assert helper.drain().counts == {"succeeded": 1, "retried": 1}


def test_the_clock_refuses_to_go_back(helper):
    """Nonsense is refused, with what was given."""
    now = helper.clock.advance(hours=1)
    for call, words in (
        (lambda: helper.clock.advance(seconds=-1), "not negative"),
        (lambda: helper.clock.advance(fortnights=1), "fortnights"),
        (helper.clock.advance, "takes a timedelta or its keywords"),
        (lambda: helper.clock.advance(HOUR, hours=1), "takes a timedelta or its keywords"),
        (lambda: helper.clock.travel_to(now - HOUR), "that is past"),
        (lambda: helper.clock.travel_to(now.replace(tzinfo=None)), "with a time zone"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            call()
    assert helper.clock.now() == now
