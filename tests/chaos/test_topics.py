"""Topics with real workers: killed amid a batch, several at once, rewound while they deliver, far behind, and idle."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path

import psycopg
import pytest

from jobrunner import JobRunner
from tests.support.topics import EFFECTS, positions
from tests.support.waiting import seconds_until, wait_until
from tests.support.workers import Ledger, rows, states, workers

pytestmark = pytest.mark.chaos

APP = str(Path(__file__).parents[1] / "support" / "topics_app.py")
EVENTS = 2000
MANY = 100_000
FAST = ("--lease", "2s", "--poll", "200ms", "-c", "2")
SLOWLY = {"JOBRUNNER_CHAOS_SECONDS": "0.02"}


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "ledger")


@pytest.fixture
def connection(fresh_dsn):
    with psycopg.connect(fresh_dsn, autocommit=True) as opened:
        opened.execute("CREATE TABLE effects (position bigint)")
        yield opened


def publish(connection, count, name="'order.paid'"):
    """So many events in one transaction, by plain SQL."""
    query = f"SELECT jobrunner.publish('orders', {name}, to_jsonb(n)) FROM generate_series(1, %s) AS n"
    return [position for (position,) in connection.execute(query, (count,)).fetchall()]


def declare(dsn, ledger):
    """A worker that finds nothing to do has told the database of the application's groups."""
    with workers(dsn, ledger.path, "--drain", app=APP) as [worker]:
        assert worker.wait() == 0


def indexed(ledger):
    """What the group in log mode got, in order, each position the first time."""
    return list(dict.fromkeys(int(number) for what, number, _, _ in ledger.lines() if what == "indexed"))


def at_the_end(dsn, group="ledger"):
    query = f"SELECT count(*) FROM jobrunner.events e, jobrunner.cursors c WHERE c.group_name = '{group}' AND e.position > c.position"
    return rows(dsn, query) == [(0,)]


def wait_for_more(ledger, noted):
    wait_until(lambda: len(ledger.lines()) > noted, timeout=90, what="a handler to be called")


def wait_for_moment(moment):
    wait_until(lambda: time.monotonic() >= moment, timeout=30, what="a moment")


def took_until_indexed(ledger, position):
    """Seconds until a group that reads the log has had an event."""
    return seconds_until(lambda: ledger.count("indexed")[str(position)], timeout=60, what="the event")


def test_kills_amid_batches_lose_no_event(fresh_dsn, connection, ledger):
    """Workers killed -9 again and again amid batches: each group gets every event, in order; effects with the group's step are there once."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    moments = random.Random(seed)
    declare(fresh_dsn, ledger)
    wanted = publish(connection, EVENTS)
    for _ in range(8):
        noted = len(ledger.lines())
        with workers(fresh_dsn, ledger.path, *FAST, app=APP, environment=SLOWLY) as [worker]:
            wait_for_more(ledger, noted)
            wait_for_moment(time.monotonic() + moments.uniform(0, 0.2))
            worker.kill()
    with workers(fresh_dsn, ledger.path, *FAST, app=APP):
        wait_until(lambda: at_the_end(fresh_dsn) and at_the_end(fresh_dsn, "search"), timeout=120, what="both groups to be at the end")
        wait_until(lambda: len(ledger.count("billed")) == EVENTS, timeout=120, what="each event to be billed")
    assert indexed(ledger) == wanted
    assert connection.execute(EFFECTS).fetchall() == [(position,) for position in wanted]
    assert states(fresh_dsn).keys() == {"succeeded"}


def test_two_workers_and_publishers_at_once(fresh_dsn, connection, ledger):
    """Two workers, and publishers whose transactions commit in another order than they published: every event once, in the log's order."""
    declare(fresh_dsn, ledger)
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")

    def publishing(number):
        chance = random.Random(seed + number)
        with psycopg.connect(fresh_dsn) as own:
            for _ in range(40):
                publish(own, chance.randrange(1, 10))
                own.execute("SELECT pg_sleep(%s)", (chance.uniform(0, 0.03),))
                own.rollback() if chance.random() < 0.2 else own.commit()

    with workers(fresh_dsn, ledger.path, *FAST, count=2, app=APP):
        threads = [threading.Thread(target=publishing, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wanted = positions(connection)
        wait_until(lambda: at_the_end(fresh_dsn) and at_the_end(fresh_dsn, "search"), timeout=120, what="both groups to be at the end")
        wait_until(lambda: len(indexed(ledger)) == len(wanted), timeout=60, what="the ledger to have all of them")
    assert indexed(ledger) == wanted
    assert ledger.count("indexed").most_common(1)[0][1] == 1, "nobody was killed, so nothing came twice"
    assert connection.execute(EFFECTS).fetchall() == [(position,) for position in wanted]


def test_rewound_while_workers_deliver(fresh_dsn, connection, ledger):
    """A group that is rewound amid its deliveries gets everything from there on again; its effects are those of whole passes."""
    declare(fresh_dsn, ledger)
    wanted = publish(connection, 500)
    jobs = JobRunner(dsn=fresh_dsn)
    with workers(fresh_dsn, ledger.path, *FAST, app=APP, environment=SLOWLY):
        wait_until(lambda: connection.execute("SELECT count(*) FROM effects").fetchone()[0] >= 200, timeout=90, what="some effects")
        rewound = jobs.topic("orders").rewind("ledger", "earliest")
        before = connection.execute("SELECT count(*) FROM effects WHERE position <= %s", (rewound.was,)).fetchone()[0]
        wait_until(lambda: at_the_end(fresh_dsn), timeout=120, what="the group to be at the end")
    jobs.close()
    assert rewound.position == 0
    again = [position for position in wanted if position <= rewound.was]
    assert before == len(again), "what had been committed until then is what the cursor said"
    assert connection.execute(EFFECTS).fetchall() == [(position,) for position in sorted(wanted + again)]


def test_a_hundred_thousand_events(fresh_dsn, connection, ledger):
    """A group that is 100,000 events behind gets all of them in order, while workers also do other work."""
    declare(fresh_dsn, ledger)
    publish(connection, MANY, "'stock.moved'")
    began = time.monotonic()
    with workers(fresh_dsn, ledger.path, "-c", "2", app=APP):
        wait_until(lambda: at_the_end(fresh_dsn) and at_the_end(fresh_dsn, "search"), timeout=300, what="both groups to be at the end")
        seconds = time.monotonic() - began
        wait_until(lambda: ledger.count("indexed").total() == MANY, timeout=60, what="the ledger to have all of them")
    print(f"{2 * MANY / seconds:,.0f} events/s for two groups on this machine; {rows(fresh_dsn, 'SELECT count(*) FROM jobrunner.v_jobs')} jobs")
    wanted = positions(connection)
    assert indexed(ledger) == wanted
    assert connection.execute(EFFECTS).fetchall() == [(position,) for position in wanted]


def test_an_idle_system_delivers_at_once(fresh_dsn, connection, ledger):
    """Published by the library, an event is handed over in a moment, not with the next poll."""
    declare(fresh_dsn, ledger)
    jobs = JobRunner(dsn=fresh_dsn)
    with workers(fresh_dsn, ledger.path, "-c", "2", "--poll", "30s", app=APP):
        wait_until(lambda: rows(fresh_dsn, "SELECT count(*) FROM jobrunner.v_workers WHERE state = 'alive'") == [(1,)], timeout=60, what="a worker")
        wait_until(
            lambda: jobs.topic("orders").publish("order.paid") and ledger.count("indexed"), timeout=60, what="the worker to listen and deliver"
        )
        took = sorted(took_until_indexed(ledger, jobs.topic("orders").publish("order.paid")) for _ in range(20))
    jobs.close()
    print(f"publish to handler: median {took[10] * 1000:.0f} ms, slowest {took[-1] * 1000:.0f} ms")
    assert took[10] < 1, "a poll is 30 s"


def test_what_a_long_transaction_does(fresh_dsn, connection, ledger):
    """While an older transaction is open nothing of the log is handed over and nothing is tried; once it is over, with the next look, all is."""
    declare(fresh_dsn, ledger)
    with workers(fresh_dsn, ledger.path, *FAST, app=APP), psycopg.connect(fresh_dsn) as slow:
        slow.execute("SELECT pg_current_xact_id()")
        wanted = publish(connection, 10)
        wait_until(lambda: len(ledger.count("billed")) == 10, timeout=60, what="the group in queue mode, which waits for nobody")
        waiting = "SELECT count(*) FROM jobrunner.cursors WHERE fence_xid IS NOT NULL"
        wait_until(lambda: rows(fresh_dsn, waiting) == [(2,)], timeout=60, what="both groups to wait")
        wait_for_moment(time.monotonic() + 2)  # ten polls
        assert indexed(ledger) == []
        assert rows(fresh_dsn, "SELECT count(*) FROM jobrunner.v_jobs WHERE task = 'search'") == [(1,)]
        slow.rollback()
        seconds = seconds_until(lambda: len(indexed(ledger)) == 10, timeout=60, what="the events")
        print(f"handed over {seconds * 1000:.0f} ms after the transaction had ended; workers look every 200 ms")
    assert indexed(ledger) == wanted
