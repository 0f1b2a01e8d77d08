"""`rate_limit` spaces the starts of a task in one worker."""

from __future__ import annotations

import os
import threading
from types import SimpleNamespace

import pytest

from jobrunner.compat.celery.app.rates import Rates, interval_of
from jobrunner.compat.celery.exceptions import ImproperlyConfigured
from jobrunner.compat.celery.worker import began
from tests.compat.celery.conftest import rows


@pytest.mark.parametrize(
    ("rate", "seconds"), [(None, None), (0, None), ("0/m", None), (10, 0.1), (0.5, 2), ("10/s", 0.1), ("10/m", 6), ("100/h", 36), ("4", 0.25)]
)
def test_rates_are_read_as_celery_reads_them(rate, seconds):
    """A number a second, or one with its unit; 0 and nothing are no limit."""
    assert interval_of(rate) == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize("rate", ["10/d", "many", "1/2/s"])
def test_a_rate_that_makes_no_sense_ends_the_start(app, rate):
    """Not the first task that has it, which may come days later."""

    @app.task(rate_limit=rate)
    def work():
        return None

    with pytest.raises(ImproperlyConfigured, match="rate_limit="):
        began(app)


def test_moments_are_shared_by_processes_and_threads():
    """No two of them get the same one, however they come; one task does not wait for another."""
    rates = Rates(["one", "other"])
    taken: list[float] = []
    read, write = os.pipe()
    for _ in range(2):
        if os.fork() == 0:
            for _ in range(20):
                rates.reserve("one", 100)
            os.write(write, b"x")
            os._exit(0)
    others = [threading.Thread(target=lambda: taken.extend(rates.reserve("one", 100) for _ in range(20))) for _ in range(2)]
    for other in others:
        other.start()
    for other in others:
        other.join(60)
    assert len(os.read(read, 1) + os.read(read, 1)) == 2
    for _ in range(2):
        os.wait()
    os.close(read)
    os.close(write)
    assert rates.reserve("one", 100) == pytest.approx(8000, abs=60)
    assert len({round(pause / 100) for pause in taken}) == 40
    assert rates.reserve("other", 100) == 0


def test_turns_that_were_missed_are_not_taken_all_at_once(monkeypatch):
    """One that comes at its turn goes before those that wait, an interval after the last; what a worker finds overdue it spreads anew."""
    now = [1000.0]
    monkeypatch.setattr("jobrunner.compat.celery.app.rates.time", SimpleNamespace(monotonic=lambda: now[0]))
    rates = Rates(["one"])
    assert [rates.reserve("one", 60) for _ in range(4)] == [0, 60, 120, 180]
    now[0] = 1061  # the second, a little late
    assert rates.reserve("one", 60, has_waited=True) == 0
    now[0] = 1120  # the third, in time: it waits in its slot
    assert rates.reserve("one", 60, has_waited=True) == 1
    assert rates.reserve("one", 60) == 120
    now[0] = 5000
    anew = Rates(["one"])
    assert [anew.reserve("one", 60, has_waited=True) for _ in range(3)] == [0, 60, 120]
    assert anew.reserve("one", 60) == 180
    assert [anew.reserve("made after the file", 60) for _ in range(2)] == [0, 60]


def test_tasks_that_are_too_early_keep_their_turn(app, run, connection):
    """They are put off to moments one interval apart, once each; a short pause is waited for in the slot; every attempt has a turn."""
    seen = []

    @app.task(rate_limit="1/m", bind=True)
    def work(self, fails=False):
        seen.append(self.request.retries)
        if fails and not self.request.retries:
            raise self.retry(countdown=0)

    @app.task(rate_limit="1000/s")
    def quick():
        seen.append("quick")

    for _ in range(3):
        work.delay()
    for _ in range(5):
        quick.delay()
    run(later=False)
    assert seen == [0, *["quick"] * 5]
    query = "SELECT round(extract(epoch FROM run_at - now()) / 60)::int FROM jobrunner.jobs WHERE state = 'queued' ORDER BY id"
    assert connection.execute(query).fetchall() == [(1,), (2,)]
    run()
    outcomes = "SELECT outcome, count(*) FROM jobrunner.v_attempts GROUP BY 1 ORDER BY 1"
    assert connection.execute(outcomes).fetchall() == [("snoozed", 2), ("succeeded", 8)]
    work.delay(fails=True)
    run()
    assert seen[-2:] == [0, 1]
    assert connection.execute(outcomes).fetchall() == [("retried", 1), ("snoozed", 4), ("succeeded", 9)]
    assert [row[0] for row in rows(connection, "state")] == ["succeeded"] * 9
