"""Ordering keys under real workers: failures, crashes and kill -9 change neither the order of a key nor that one job of it runs at a time."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import psycopg
import pytest

from jobrunner.claimer import RESCAN
from tests.support.rows import Scene
from tests.support.waiting import wait_until
from tests.support.workers import Ledger, alive, states, wait_for_states, workers

pytestmark = pytest.mark.chaos

APP = str(Path(__file__).parents[1] / "support" / "ordered_app.py")
KEYS, OF_EACH = 6, 25
INSERT = (
    "INSERT INTO jobrunner.jobs (task, args, ordering_key, max_attempts, max_crashes, backoff, backoff_base, backoff_jitter) "
    "SELECT 'step', jsonb_build_object('key', 'k' || n %% %(keys)s, 'number', n / %(keys)s, 'seconds', %(seconds)s::float8, "
    "'fails', CASE WHEN n %% 17 = 5 THEN 1 WHEN n %% 23 = 7 THEN -1 WHEN n %% 29 = 3 THEN 9 ELSE 0 END), "
    "'k' || n %% %(keys)s, 3, 3, 'constant', interval '50 ms', 0 FROM generate_series(0, %(keys)s * %(each)s - 1) AS n ORDER BY n"
)


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "ledger")


def put(dsn, seconds, keys=KEYS, each=OF_EACH):
    """Jobs of several keys, some of which fail, die, or fail for good."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(INSERT, {"keys": keys, "each": each, "seconds": seconds})


def events_of(ledger, key):
    """(event, number) of one key, in the order in which they were noted."""
    return [(event, int(number.split("/")[1])) for event, number, _, _ in ledger.lines() if number.split("/")[0] == key]


def has_more(ledger, lines):
    """Whether so many events are noted."""
    return len(ledger.lines()) >= lines


def are_gone(pids):
    """Whether none of these processes runs."""
    return not any(map(alive, pids))


def assert_in_order(ledger, keys=KEYS):
    """Of each key the numbers only ever grow, and a job begins when the one before has said its last word."""
    for number in range(keys):
        events = events_of(ledger, f"k{number}")
        order = [which for _, which in events]
        assert order == sorted(order), f"k{number}: {events}"
        assert set(order) == set(range(max(order) + 1))


def test_failures_and_crashes_keep_the_order(fresh_dsn, ledger):
    """Two workers with two slots each: jobs that fail are tried again before those behind them begin, and one that failed for good lets them go."""
    put(fresh_dsn, 0.001)
    with workers(fresh_dsn, ledger.path, "-c", "2", app=APP, count=2):
        wait_until(lambda: sum(states(fresh_dsn)[word] for word in ("succeeded", "failed")) == KEYS * OF_EACH, timeout=120, what="all to be over")
    assert_in_order(ledger)
    assert states(fresh_dsn)["failed"] > 0


def test_kills_keep_the_order(fresh_dsn, ledger):
    """Workers killed -9 amid jobs of keys: what ran is run again before anything behind it begins."""
    put(fresh_dsn, 0.02)
    for round_number in range(4):
        with workers(fresh_dsn, ledger.path, "-c", "2", "--lease", "2s", app=APP) as [worker]:
            done = len(ledger.lines())
            wait_until(partial(has_more, ledger, done + 12), timeout=60, what=f"some work in round {round_number}")
            below = worker.descendants()
            worker.kill()
            wait_until(partial(are_gone, below), timeout=20, what="its children to be gone")
    with workers(fresh_dsn, ledger.path, "-c", "2", "--lease", "2s", app=APP):
        wait_until(
            lambda: not any(states(fresh_dsn)[word] for word in ("queued", "running", "retrying", "scheduled")), timeout=120, what="all to be over"
        )
    assert_in_order(ledger)


def test_the_next_of_a_key_does_not_wait_for_a_look_at_everything(fresh_dsn, ledger):
    """A chain of short jobs of one key is worked off job behind job: the worker that ended one takes the next at once."""
    chain = 60
    with psycopg.connect(fresh_dsn, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO jobrunner.jobs (task, args, ordering_key) SELECT 'step', jsonb_build_object('key', 'k0', 'number', n), 'k0'"
            " FROM generate_series(0, %s - 1) AS n",
            (chain,),
        )
    with workers(fresh_dsn, ledger.path, "-c", "2", "--no-listen", app=APP):
        wait_for_states(fresh_dsn, 60, succeeded=chain)
    with psycopg.connect(fresh_dsn) as connection:
        seconds = Scene(connection).one("SELECT extract(epoch FROM max(finished_at) - min(finished_at)) FROM jobrunner.job_history")
    pause = float(seconds) / (chain - 1)
    print(f"{pause * 1000:.1f} ms from one end to the next")
    assert pause < RESCAN / 2, "as if each waited for the next look"
    assert_in_order(ledger, keys=1)
