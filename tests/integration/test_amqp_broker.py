"""The broker of `tests.support.amqp` does what RabbitMQ does with what the examples and their readers use of it, through pika."""

from __future__ import annotations

import pika
import pytest
from pika.exceptions import ConnectionClosedByBroker

from tests.support import amqp
from tests.support.waiting import wait_until

PATIENCE = 20  # seconds


@pytest.fixture
def connection():
    """One connection, to a broker of its own; it sends a heartbeat every half second."""
    with amqp.broker() as url:
        opened = pika.BlockingConnection(pika.URLParameters(f"{url}?heartbeat=1"))
        yield opened
        if opened.is_open:
            opened.close()


@pytest.fixture
def channel(connection):
    """A channel with the queue `orders`, whose dead letters go to `orders.dead`."""
    made = connection.channel()
    made.exchange_declare("dead", "fanout")
    made.queue_declare("orders.dead")
    made.queue_bind("orders.dead", "dead")
    made.queue_declare("orders", arguments={"x-dead-letter-exchange": "dead"})
    return made


def publish(channel, *bodies):
    """Put messages into the queue."""
    for body in bodies:
        channel.basic_publish("", "orders", body)


def given(channel, count, queue="orders"):
    """The next messages of the queue: (tag, body, whether it was delivered before)."""
    found: list[tuple[int, str, bool]] = []
    for method, _, body in channel.consume(queue, inactivity_timeout=PATIENCE):
        assert method is not None, f"{len(found)} of {count} came"
        found.append((method.delivery_tag, body.decode(), method.redelivered))
        if len(found) == count:
            return found
    return found


def waiting(channel, queue="orders"):
    """How many messages wait."""
    return channel.queue_declare(queue, passive=True).method.message_count


def test_several_are_acknowledged_at_once(channel):
    """`multiple` takes all up to that delivery and none behind it; the tag 0 takes all."""
    publish(channel, "a", "b", "c")
    tags = [tag for tag, _, _ in given(channel, 3)]
    channel.basic_ack(tags[1], multiple=True)
    channel.basic_nack(0, multiple=True)
    assert given(channel, 1)[0][1:] == ("c", True)
    channel.basic_ack(0, multiple=True)
    channel.cancel()
    assert waiting(channel) == 0


def test_several_go_back_in_their_order(channel):
    """`nack` with `multiple`: they come again, in front, and as delivered before."""
    publish(channel, "a", "b", "c")
    channel.basic_qos(prefetch_count=2)
    tags = [tag for tag, _, _ in given(channel, 2)]
    channel.basic_nack(tags[-1], multiple=True, requeue=True)
    assert [found[1:] for found in given(channel, 2)] == [("a", True), ("b", True)]


def test_a_rejected_one_is_a_dead_letter(channel):
    """`reject` without requeue, and with it."""
    publish(channel, "a", "b")
    first, second = (tag for tag, _, _ in given(channel, 2))
    channel.basic_reject(first, requeue=False)
    channel.basic_reject(second, requeue=True)
    assert given(channel, 1)[0][1:] == ("b", True)
    assert waiting(channel, "orders.dead") == 1


def test_who_cancels_is_given_nothing_more(channel):
    """What was published after that waits for somebody else."""
    tag = channel.basic_consume("orders", lambda *_: pytest.fail("delivered to nobody"))
    channel.basic_cancel(tag)
    publish(channel, "a")
    assert waiting(channel) == 1


def test_heartbeats_are_answered(connection, channel):
    """Who only waits hears that the other side is there. (pika looks for that every six seconds, and gives up at the second look.)"""
    checker = connection._impl._heartbeat_checker

    def heard():
        connection.process_data_events(time_limit=0.1)
        return checker._heartbeat_frames_received >= 2

    wait_until(heard, timeout=PATIENCE, what="two heartbeats")
    publish(channel, "a")
    assert waiting(channel) == 1


def test_what_is_not_there_is_refused(channel):
    """In words, and at once: nobody waits for an answer that does not come."""
    with pytest.raises(ConnectionClosedByBroker, match=r"NOT_IMPLEMENTED - Tx\.Select"):
        channel.tx_select()
