"""What goes by itself: messages with a time to live, unused queues, messages of queues that are gone, consumers whose lease ended."""

from __future__ import annotations

import pytest
from kombu import Consumer, Exchange, Producer, Queue

from tests.support.waiting import wait_until

PATIENCE = 30  # seconds for what takes about one
QUICK = {"lease": 1.0}  # seconds; the keeper's rounds are three in it


def names(connection):
    """The queues there are."""
    return {name for (name,) in connection.execute("SELECT name FROM jobrunner.broker_queues").fetchall()}


@pytest.fixture
def keeping(connect):
    """A consumer of another queue, whose keeper sweeps."""
    one = connect(**QUICK)
    with Consumer(one, [Queue("kept", Exchange("kept"))], callbacks=[lambda *_: None], no_ack=True):
        yield one


def test_a_message_whose_time_is_up_is_given_to_nobody(keeping, connect, connection):
    """By its own expiration or its queue's time to live it goes, but for a task of Celery, which Celery itself revokes."""
    one = connect()
    short = Queue("short", Exchange("short"), routing_key="short", message_ttl=0.1)
    Producer(one, exchange=short.exchange, routing_key="short").publish("queue's", declare=[short])
    plain = Queue("plain", Exchange("plain"), routing_key="plain")
    producer = Producer(one, exchange=plain.exchange, routing_key="plain")
    producer.publish("own", expiration=0.1, declare=[plain])
    producer.publish("stays", expiration=600)
    producer.publish("task", expiration=0.1, headers={"task": "shop.sell", "id": "1"})
    bodies = "SELECT message->>'body' FROM jobrunner.broker_messages ORDER BY id"
    wait_until(lambda: connection.execute(bodies).fetchall() == [("stays",), ("task",)], timeout=PATIENCE, what="only these two to be left")
    assert short(one).get() is None
    assert plain(one).get(no_ack=True).payload == "stays"


def test_an_unused_queue_goes_with_all_that_is_in_it(keeping, connect, connection):
    """A queue with `expires` that nobody uses is removed, with its bindings and messages; one that never expires stays."""
    one = connect()
    brief = Queue("brief", Exchange("e"), routing_key="k", expires=0.2)
    Producer(one, exchange=brief.exchange, routing_key="k").publish("x", declare=[brief, Queue("lasting", Exchange("e"), routing_key="l")])
    wait_until(lambda: "brief" not in names(connection), timeout=PATIENCE, what="the queue to go")
    assert {"lasting", "kept"} <= names(connection)
    assert connection.execute("SELECT count(*) FROM jobrunner.broker_messages").fetchone() == (0,)
    assert connection.execute("SELECT queue FROM jobrunner.broker_bindings WHERE exchange = 'e'").fetchall() == [("lasting",)]


def test_what_is_sent_to_an_undeclared_queue_has_its_whole_week(connect, connection):
    """The queue goes a week after the last message and not after the first, whose time the later ones would share."""
    producer = Producer(connect())
    producer.publish("first", routing_key="unknown")
    connection.execute("UPDATE jobrunner.broker_queues SET expires_at = now() + interval '1 minute' WHERE name = 'unknown'")
    producer.publish("last", routing_key="unknown")
    left = "SELECT expires_at > now() + interval '6 days' FROM jobrunner.broker_queues WHERE name = 'unknown'"
    assert connection.execute(left).fetchone() == (True,)


def test_a_queue_stays_while_it_is_consumed_from(keeping, connect, connection):
    """An expiring and an auto-delete queue live as long as their consumer, and not longer."""
    one = connect(**QUICK)
    queues = [Queue("brief", Exchange("e"), routing_key="b", expires=0.2), Queue("own", Exchange("e"), routing_key="o", auto_delete=True)]
    with Consumer(one, queues, callbacks=[lambda *_: None], no_ack=True):
        before = connection.execute("SELECT now()").fetchone()
        renewed = "SELECT count(*) = 2 FROM jobrunner.broker_queues WHERE name IN ('brief', 'own') AND expires_at > %s + interval '3 s'"
        wait_until(lambda: connection.execute(renewed, before).fetchone() == (True,), timeout=PATIENCE, what="both to be kept")
    wait_until(lambda: not {"brief", "own"} & names(connection), timeout=PATIENCE, what="both to go")


def test_a_queue_that_was_taken_from_under_its_consumer_comes_back(connect, connection):
    """Whoever removes it, the next heartbeat declares and binds it again."""
    one, got = connect(**QUICK), []
    queue = Queue("mine", Exchange("e", type="topic"), routing_key="task.#")
    with Consumer(one, [queue], callbacks=[lambda body, _: got.append(body)], no_ack=True):
        connection.execute("WITH unbound AS (DELETE FROM jobrunner.broker_bindings) DELETE FROM jobrunner.broker_queues")
        bound = "SELECT count(*) FROM jobrunner.broker_bindings WHERE queue = 'mine'"
        wait_until(lambda: connection.execute(bound).fetchone() == (1,), timeout=PATIENCE, what="the binding to be back")
        Producer(connect(), exchange=queue.exchange).publish("hello", routing_key="task.sent")
        wait_until(lambda: _drain(one) or got, timeout=PATIENCE, what="the message")
    assert got == ["hello"]


@pytest.mark.parametrize("no_ack", [False, True])
def test_a_queue_that_is_consumed_from_is_not_deleted_if_unused(connect, connection, no_ack):
    """A consumer of another process is known when it acknowledges, one of the same connection always; without them the queue goes."""
    one, got = connect(**QUICK), []
    queue = Queue("used", Exchange("e"), routing_key="u")
    other = one.channel() if no_ack else connect().channel()
    with Consumer(one, [queue], callbacks=[lambda body, _: got.append(body)], no_ack=no_ack) as consumer:
        Producer(one, exchange=queue.exchange, routing_key="u").publish("x", declare=[queue])
        wait_until(lambda: _drain(one) or got, timeout=PATIENCE, what="the message")
        queue(other).delete(if_unused=True)
        assert "used" in names(connection)
    consumer.channel.close()
    queue(other).delete(if_unused=True)
    assert "used" not in names(connection)


@pytest.mark.parametrize("reason", ["if_empty", "if_unused"])
def test_a_queue_that_was_left_alone_is_declared_and_bound_anew_as_it_was(connect, connection, reason):
    """Its channel knows its properties and its bindings until it is really deleted."""
    channel = connect(**QUICK).channel()
    queue = Queue("left", Exchange("e"), routing_key="l", expires=600)
    queue(channel).declare()
    if reason == "if_empty":
        Producer(channel, exchange=queue.exchange, routing_key="l").publish("x")
    else:
        connection.execute(
            "INSERT INTO jobrunner.broker_consumers (host, pid, queues, lease, lease_expires_at)"
            " VALUES ('h', 1, '{left}', interval '1 minute', now() + interval '1 minute')"
        )
    queue(channel).delete(**{reason: True})
    assert "left" in names(connection)
    connection.execute("WITH unbound AS (DELETE FROM jobrunner.broker_bindings) DELETE FROM jobrunner.broker_queues")
    channel._restore_queues(["left"])
    expires = "SELECT expires > interval '5 minutes' FROM jobrunner.broker_queues WHERE name = 'left'"
    assert connection.execute(expires).fetchone() == (True,)
    bindings = "SELECT exchange, routing_key FROM jobrunner.broker_bindings WHERE queue = 'left'"
    assert connection.execute(bindings).fetchall() == [("e", "l")]
    connection.execute("DELETE FROM jobrunner.broker_consumers")
    queue(channel).delete()
    channel._restore_queues(["left"])
    assert connection.execute(bindings).fetchall() == []


def test_messages_without_a_queue_are_swept(keeping, connection):
    """What was on its way to a queue when that was deleted is no row for ever."""
    connection.execute("INSERT INTO jobrunner.broker_messages (queue, message) SELECT 'gone', '{}' FROM generate_series(1, 5)")
    connection.execute("INSERT INTO jobrunner.broker_messages (queue, message) VALUES ('kept', '{\"properties\": {}, \"body\": \"x\"}')")
    left = "SELECT queue FROM jobrunner.broker_messages"
    wait_until(lambda: connection.execute(left).fetchall() == [("kept",)], timeout=PATIENCE, what="those of the unknown queue to go")


def test_messages_of_a_dead_consumer_come_back(keeping, connect, connection):
    """Those of a consumer whose lease ended, and those of one that is no more at all."""
    connection.execute("INSERT INTO jobrunner.broker_queues (name) VALUES ('orders')")
    [(dead,)] = connection.execute(
        "INSERT INTO jobrunner.broker_consumers (host, pid, queues, lease, lease_expires_at)"
        " VALUES ('h', 1, '{orders}', interval '1 ms', now() - interval '1 s') RETURNING id"
    ).fetchall()
    connection.execute(
        "INSERT INTO jobrunner.broker_messages (queue, message, consumer_id, claimed_at, lease)"
        " SELECT 'orders', '{}', id, now(), 1 FROM unnest(%s::bigint[]) AS id",
        ([dead, 10**15],),
    )
    free = "SELECT count(*) FROM jobrunner.broker_messages WHERE consumer_id IS NULL"
    wait_until(lambda: connection.execute(free).fetchone() == (2,), timeout=PATIENCE, what="both to come back")
    assert connection.execute("SELECT count(*) FROM jobrunner.broker_consumers WHERE id = %s", (dead,)).fetchone() == (0,)


def _drain(connection):
    try:
        connection.drain_events(timeout=0.5)
    except TimeoutError:
        return False
    return True
