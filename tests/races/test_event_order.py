"""Publishers, subscribers and readers in every order of their commits: nobody misses an event, and nobody gets one out of turn."""

from __future__ import annotations

import itertools
import random
import threading

import psycopg
import pytest

from jobrunner.places import OwnTransaction
from jobrunner.topics.reading import Reader
from tests.support.topics import Shop, positions, publish
from tests.support.waiting import wait_until


@pytest.fixture
def shop(dsn):
    made = Shop(dsn)
    yield made
    made.jobs.close()


def read(reader):
    """What the group gets next; it is moved on."""
    at = reader.standing()
    batch = reader.next(at)
    if batch is None:
        return []
    assert reader.move(batch)
    return [event.position for event in batch.events]


def read_until(reader, got, count):
    """Read on until so many are there."""

    def enough():
        got.extend(read(reader))
        return len(got) >= count

    wait_until(enough, timeout=90, what=f"{count} events")


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_any_order_of_commits(shop, dsn, connection, order):
    """Three transactions publish in turn and commit in any order: after each commit the reader has a prefix of the log, at the end all of it."""
    shop.log("search")
    shop.declare()
    reader = Reader(OwnTransaction(shop.jobs.database), "orders", "search", None)
    opened = [psycopg.connect(dsn) for _ in range(3)]
    try:
        published = [publish(each, number) for number in range(2) for each in opened]
        got = []
        for done, index in enumerate(order):
            got += read(reader)
            opened[index].commit()
            still_open = {published[place] for place in range(6) if place % 3 in order[done + 1 :]}
            got += read(reader)
            assert got == published[: len(got)]
            assert not still_open or len(got) <= min(published.index(position) for position in still_open)
        read_until(reader, got, 6)
        assert got == published == positions(connection)
    finally:
        for each in opened:
            each.close()


def test_readers_beside_publishers(shop, dsn, connection):
    """While transactions of all lengths publish, commit and roll back, a reader gets every event that stays, each once, in the log's order."""
    shop.log("search", batch=7)
    shop.declare()
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")

    def publishing(number):
        chance = random.Random(seed + number)
        with psycopg.connect(dsn) as own:
            for _ in range(60):
                if chance.random() < 0.3:
                    own.execute("SELECT pg_current_xact_id()")
                    own.execute("SELECT pg_sleep(%s)", (chance.uniform(0, 0.01),))
                for _ in range(chance.randrange(1, 4)):
                    publish(own, number)
                    own.execute("SELECT pg_sleep(%s)", (chance.uniform(0, 0.005),))
                own.rollback() if chance.random() < 0.25 else own.commit()

    threads = [threading.Thread(target=publishing, args=(number,)) for number in range(5)]
    reader = Reader(OwnTransaction(shop.jobs.database), "orders", "search", None)
    got = []
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        got += read(reader)
    wanted = positions(connection)
    read_until(reader, got, len(wanted))
    assert got == wanted


def test_subscribing_beside_publishers(shop, dsn, connection):
    """A group that is declared while others publish has the events of every statement that began after its commit, and none twice."""
    shop.queue("billing")
    committed = threading.Event()
    after = []

    def publishing(number):
        with psycopg.connect(dsn) as own:
            for _ in range(150):
                known = committed.is_set()
                position = publish(own, number)
                own.commit()
                if known:
                    after.append(position)

    threads = [threading.Thread(target=publishing, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(positions(connection)) > 50, timeout=60, what="some events")
    shop.declare()
    committed.set()
    for thread in threads:
        thread.join()
    found = [position for (position,) in connection.execute("SELECT (args->'event'->>'position')::bigint FROM jobrunner.jobs").fetchall()]
    assert len(found) == len(set(found))
    assert set(after) <= set(found)


def test_publishers_do_not_wait_for_each_other(shop, dsn, connection):
    """An open transaction that has published to every kind of group holds up no other publisher."""
    shop.queue("billing")
    shop.log("search")
    shop.declare()
    with shop.elsewhere() as slow:
        publish(slow, 1)
        connection.execute("SET lock_timeout = '100ms'")
        for number in range(5):
            publish(connection, number)
            with shop.jobs.database.store() as store:
                store.connection.execute("SELECT * FROM jobrunner.start_deliveries('{default}', '{search}')")
    assert len(positions(connection)) == 5


def test_declaring_at_once(shop, dsn, connection):
    """Workers that start together declare one after the other; the database has each group once."""
    for number in range(6):
        shop.queue(f"q{number}")
        shop.log(f"l{number}")
    threads = [threading.Thread(target=shop.declare) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert connection.execute("SELECT count(*), count(DISTINCT group_name) FROM jobrunner.subscriptions").fetchone() == (12, 12)
    assert connection.execute("SELECT count(*) FROM jobrunner.cursors").fetchone() == (6,)


def test_looking_at_once(shop, dsn, connection):
    """Many workers that look at the same moment enqueue one job for each group."""
    groups = [f"g{number}" for number in range(4)]
    for group in groups:
        shop.log(group)
    shop.topic.publish("order.paid", 1)
    started: list[tuple[int]] = []

    def look():
        with psycopg.connect(dsn, autocommit=True) as own:
            for _ in range(20):
                started.extend(own.execute("SELECT started FROM jobrunner.start_deliveries('{default}', %s)", (groups,)).fetchall())

    threads = [threading.Thread(target=look) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(number for (number,) in started) == 4
    assert connection.execute("SELECT count(*) FROM jobrunner.jobs").fetchone() == (4,)
