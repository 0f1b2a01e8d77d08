"""Messages between connections of one process: what is put, how it is routed, given, acknowledged and given back."""

from __future__ import annotations

import os
import threading
import time

import psycopg
import pytest
from kombu import Connection, Consumer, Exchange, Producer, Queue
from kombu.exceptions import ChannelError

from jobrunner.compat.kombu.intake import ConsumerLost
from tests.support.celeries import url_of
from tests.support.waiting import wait_until

QUEUE = Queue("orders", Exchange("shop", type="direct"), routing_key="order")
PATIENCE = 30  # seconds for what takes milliseconds
NEVER = 60.0  # seconds between two looks: whatever comes within PATIENCE came by a hint


def publish(connection, body, queue=QUEUE, **options):
    """Publish to a queue's exchange."""
    producer = Producer(connection, exchange=queue.exchange, routing_key=options.pop("routing_key", queue.routing_key))
    producer.publish(body, declare=[queue], **options)


def consume(connection, count, queue=QUEUE, *, prefetch=0, ack=True):
    """Consume until `count` messages came; gives (body, message) in their order."""
    got = []

    def take(body, message):
        got.append((body, message))
        if ack:
            message.ack()

    with Consumer(connection, [queue], callbacks=[take], accept=["json", "text/plain", "application/data"], prefetch_count=prefetch or None):
        deadline = time.monotonic() + PATIENCE
        while len(got) < count and time.monotonic() < deadline:
            drain(connection, 1.0)
    assert len(got) >= count, [body for body, _ in got]
    return got


def drain(connection, timeout=0.0):
    """One `drain_events`; whether something came."""
    try:
        connection.drain_events(timeout=timeout)
    except TimeoutError:
        return False
    return True


def test_what_is_put_comes_out(connect):
    """Text in every script, headers and binary bodies arrive as they were sent."""
    connection = connect()
    publish(connection, {"name": "Ünïcödé \0 \U0001f600", "nan": [1, None]}, headers={"trace": "1"})
    publish(connection, b"\x00\xff\xfe", content_type="application/data", content_encoding="binary")
    publish(connection, {"long": "x" * 300_000}, compression="zlib")
    first, second, third = consume(connection, 3)
    assert first[0] == {"name": "Ünïcödé \0 \U0001f600", "nan": [1, None]}
    assert first[1].headers == {"trace": "1"}
    assert bytes(second[0]) == b"\x00\xff\xfe"
    assert third[0] == {"long": "x" * 300_000}


def test_a_text_body_can_be_read_in_the_table(connect, connection):
    """An operator reads what a task was sent with."""
    publish(connect(), [[42], {}, {}])
    assert connection.execute("SELECT message->>'body' FROM jobrunner.broker_messages").fetchall() == [("[[42], {}, {}]",)]


def test_publishing_is_committed_when_it_returns_and_gone_when_acknowledged(connect, connection):
    """A message is one row from its publish to its acknowledgement."""
    one, count = connect(), "SELECT count(*) FROM jobrunner.broker_messages"
    publish(one, 1)
    assert connection.execute(count).fetchone() == (1,)
    consume(one, 1)
    assert connection.execute(count).fetchone() == (0,)


@pytest.mark.parametrize(("order", "expected"), [("highest_first", [9, 4, 4, 0]), ("lowest_first", [0, 4, 4, 9])])
def test_the_order_of_priorities(connect, order, expected):
    """The highest first, as RabbitMQ does, or the lowest, as Redis; in each, the oldest first."""
    connection = connect(priority_order=order)
    for priority in (4, 0, 9, 4):
        publish(connection, priority, priority=priority)
    assert [body for body, _ in consume(connection, 4)] == expected


def test_one_drain_delivers_several(connect):
    """What waits is delivered in bulk, not one message a look."""
    connection, got = connect(), []
    for number in range(10):
        publish(connection, number)
    with Consumer(connection, [QUEUE], callbacks=[lambda body, _: got.append(body)], no_ack=True):
        drain(connection, PATIENCE)
    assert got == list(range(10))


@pytest.mark.parametrize(
    ("pattern", "fitting", "others"),
    [
        ("#", ["", "a", "a.b.c"], []),
        ("task.*", ["task.sent"], ["task", "task.sent.late", "atask.sent", "taskxsent"]),
        ("task.#", ["task", "task.sent", "task.sent.late"], ["tasks", "a.task"]),
        ("#.late", ["late", "a.late", "a.b.late"], ["late.a", "blate"]),
        ("a.#.b", ["a.b", "a.x.b", "a.x.y.b"], ["a", "a.bb"]),
        ("a+b.(c)", ["a+b.(c)"], ["aab.c"]),
    ],
)
def test_topics(connect, pattern, fitting, others):
    """`*` is one word and `#` any number of them, none included; everything else is itself."""
    connection, exchange = connect(), Exchange("events", type="topic")
    queue = Queue("listener", exchange, routing_key=pattern)
    queue(connection).declare()
    for key in [*fitting, *others]:
        Producer(connection, exchange=exchange).publish([key], routing_key=key)
    assert sorted(body for body, _ in consume(connection, len(fitting), queue)) == sorted([key] for key in fitting)
    assert queue(connection).queue_declare(passive=True).message_count == 0


@pytest.mark.parametrize(("delay", "late"), [(600, True), ("600", True), (0, False), (-5, False), ("soon", False), (10**15, True)])
def test_a_message_waits_for_its_delay_in_the_table(connect, connection, delay, late):
    """`DelaySeconds`, which applications of Kombu's SQS and pgmq transports give, holds here too; nonsense is no delay, as there."""
    publish(connect(), {"n": 1}, DelaySeconds=delay)
    (waits,) = connection.execute("SELECT available_at > now() + interval '590 s' FROM jobrunner.broker_messages").fetchone()
    assert waits is late
    bound = QUEUE(connect().default_channel)
    if late:
        assert bound.get() is None
        connection.execute("UPDATE jobrunner.broker_messages SET available_at = now()")
    assert bound.get().payload == {"n": 1}


def test_a_broadcast_reaches_every_queue_once(connect):
    """Each queue of a fanout gets a copy, however often it is bound and whatever the key, bound by whichever process."""
    connection, exchange = connect(), Exchange("all", type="fanout")
    queues = [Queue(name, exchange) for name in ("one", "two")]
    for queue in queues:
        queue(connect()).declare()
    queues[0](connection).bind_to(exchange, routing_key="again")
    Producer(connect(), exchange=exchange).publish("hello", routing_key="any")
    for queue in queues:
        assert [body for body, _ in consume(connection, 1, queue)] == ["hello"]
        assert queue(connection).queue_declare(passive=True).message_count == 0


def test_a_message_that_is_given_back_is_the_next(connect):
    """Rejected for requeue it keeps its place, and says that it was delivered before."""
    connection = connect()
    publish(connection, 1)
    publish(connection, 2)
    first = QUEUE(connection).get()
    assert not first.delivery_info["redelivered"]
    first.requeue()
    again = QUEUE(connection).get()
    assert (again.payload, again.delivery_info["redelivered"]) == (1, True)
    again.reject()
    last = QUEUE(connection).get()
    assert last.payload == 2
    last.ack()
    assert QUEUE(connection).get() is None


def test_a_closed_connection_gives_back(connect):
    """What was not acknowledged is there for others when its connection closes, in its place, without a lease going by."""
    holder, other = connect(lease=600.0), connect()
    for number in range(5):
        publish(other, number)
    consume(holder, 5, ack=False)
    assert QUEUE(other).get() is None
    holder.release()
    assert [body for body, _ in consume(other, 5)] == list(range(5))


def test_an_acknowledgement_of_somebody_else_s_message_changes_nothing(connect, connection):
    """When a lease has run out and another consumer was given the message, the first one's acknowledgement is refused, and it is told."""
    holder, other = connect(lease=600.0), connect(lease=600.0)
    publish(other, "once")
    [(_, held)] = consume_holding(holder)
    connection.execute("UPDATE jobrunner.broker_consumers SET lease = interval '1 ms', lease_expires_at = now() - interval '1 s'")
    connection.execute(statement("broker_rescue"), {"most": 10})
    [(_, again)] = consume_holding(other)
    held.ack()
    assert connection.execute("SELECT count(*) FROM jobrunner.broker_messages").fetchone() == (1,)
    publish(other, "for nobody")
    with pytest.raises(ConsumerLost):
        wait_until(lambda: drain(holder, 1.0) and False, timeout=PATIENCE, what="the holder to be told")
    again.ack()
    assert connection.execute("SELECT message->>'body' FROM jobrunner.broker_messages").fetchall() == [("for nobody",)]


def consume_holding(connection):
    """Consume one message, and go on consuming without acknowledging it."""
    got = []
    Consumer(connection, [QUEUE], callbacks=[lambda body, message: got.append((body, message))], prefetch_count=5).consume()
    wait_until(lambda: drain(connection, 1.0) or got, timeout=PATIENCE, what="a message")
    return got


def statement(name):
    """A statement as psycopg takes it."""
    from jobrunner import statements

    return statements.load(name)


def test_an_idle_consumer_hears_of_a_message(connect):
    """A hint wakes who waits: nobody looks for a minute, and the message is there at once."""
    listener, sender, got = connect(polling_interval=NEVER), connect(), []
    with Consumer(listener, [QUEUE], callbacks=[lambda body, _: got.append(body)], no_ack=True):
        assert not drain(listener, 0.5)
        wait_until(lambda: listener.transport.surroundings.keeper.hears, timeout=PATIENCE, what="the keeper to listen")
        drain(listener, 0.1)
        publish(sender, "now")
        assert drain(listener, PATIENCE)
    assert got == ["now"]


def test_a_consumer_that_does_not_listen_finds_a_message(connect):
    """Without LISTEN, as through a pooler, looking is enough."""
    listener, got = connect(listen=False, polling_interval=0.05), []
    with Consumer(listener, [QUEUE], callbacks=[lambda body, _: got.append(body)], no_ack=True):
        assert not drain(listener, 0.2)
        assert not listener.transport.surroundings.keeper.hears
        publish(connect(), "later")
        assert drain(listener, PATIENCE)
    assert got == ["later"]


def test_a_full_window_waits_for_room_and_not_for_the_next_look(connect):
    """With one message at a time, acknowledged by another thread, a hundred take no hundred looks of a minute."""
    connection, sender = connect(polling_interval=NEVER), connect()
    done: list[int] = []
    for number in range(100):
        publish(sender, number)

    def work(body, message):
        done.append(body)
        message.ack()

    def take(body, message):
        threading.Timer(0.001, work, (body, message)).start()

    with Consumer(connection, [QUEUE], callbacks=[take], prefetch_count=1):
        deadline = time.monotonic() + PATIENCE
        while len(done) < 100 and time.monotonic() < deadline:
            drain(connection, 1.0)
    assert done == list(range(100))


def test_the_window_is_never_exceeded(connect):
    """With a prefetch count, no more messages are with a consumer than that."""
    connection = connect()
    for number in range(10):
        publish(connection, number)
    got = []
    with Consumer(connection, [QUEUE], callbacks=[lambda _body, message: got.append(message)], prefetch_count=3):
        assert drain(connection, 5.0)
        assert not drain(connection, 0.3)
        assert len(got) == 3
        got[0].ack()
        assert drain(connection, 5.0)
        assert len(got) == 4


def test_counting_and_purging(connect):
    """A passive declaration counts what waits, those for later too; a purge removes it and leaves what is held."""
    connection = connect()
    with pytest.raises(ChannelError, match="404"):
        QUEUE(connection).queue_declare(passive=True)
    for number in range(4):
        publish(connection, number)
    publish(connection, 5, headers={"task": "later", "id": "1", "eta": "2100-01-01T00:00:00+00:00"})
    held = QUEUE(connection).get()
    assert QUEUE(connection).queue_declare(passive=True).message_count == 4
    assert QUEUE(connection).purge() == 4
    assert QUEUE(connection).queue_declare(passive=True).message_count == 0
    held.requeue()
    assert QUEUE(connection).queue_declare(passive=True).message_count == 1


def test_a_message_to_a_queue_nobody_declared_is_kept(connect, connection):
    """It waits for somebody to consume it, for a week; a routing key that leads nowhere is nobody's."""
    one = connect()
    Producer(one).publish("direct", routing_key="unknown")
    Producer(one, exchange=Exchange("shop", type="direct")).publish("nowhere", routing_key="nowhere")
    assert connection.execute("SELECT name, expires FROM jobrunner.broker_queues").fetchall()[0][0] == "unknown"
    assert [body for body, _ in consume(connect(), 1, Queue("unknown"))] == ["direct"]


def test_a_child_leaves_the_parent_s_messages_alone(connect, connection):
    """A forked child that publishes, and ends, uses a connection of its own and gives nothing of the parent's back."""
    one = connect(lease=600.0)
    publish(one, "held")
    [(_, held)] = consume_holding(one)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            publish(one, "of the child")
            with Connection(one.as_uri()) as other:
                publish(other, "of another connection of the child")
            one.release()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert connection.execute("SELECT consumer_id IS NOT NULL FROM jobrunner.broker_messages ORDER BY id").fetchone() == (True,)
    held.ack()
    consume(one, 2)
    assert connection.execute("SELECT count(*) FROM jobrunner.broker_messages").fetchone() == (0,)


def test_what_could_not_be_acknowledged_is_acknowledged_later(connect, connection):
    """An acknowledgement in an outage is kept and made up for; nobody is given the message."""
    one = connect(lease=3.0)
    publish(one, "once")
    [(_, held)] = consume_holding(one)
    broker = one.transport.surroundings.broker
    run, refusing = broker._run, [True]

    def cut(name, parameters):
        if refusing[0]:
            raise psycopg.OperationalError("server closed the connection unexpectedly")
        return run(name, parameters)

    broker._run = cut
    held.ack()
    assert connection.execute("SELECT count(*) FROM jobrunner.broker_messages").fetchone() == (1,)
    refusing[0] = False
    gone = "SELECT count(*) = 0 FROM jobrunner.broker_messages"
    wait_until(lambda: connection.execute(gone).fetchone() == (True,), timeout=PATIENCE, what="the message to be gone")


def test_what_was_given_without_our_knowledge_is_given_back(connect, connection):
    """A claim whose answer got lost leaves nothing stuck: the next look gives it back, and it is delivered."""
    one, broken, got = connect(lease=600.0), [True], []
    publish(one, "once")
    Consumer(one, [QUEUE], callbacks=[lambda body, _: got.append(body), lambda _, message: message.ack()], prefetch_count=1).consume()
    broker = one.transport.surroundings.broker
    run = broker._run

    def lose_the_answer(name, parameters):
        rows = run(name, parameters)
        if name == "broker_claim" and rows and broken.pop():
            broken.append(False)
            raise psycopg.OperationalError("server closed the connection unexpectedly")
        return rows

    broker._run = lose_the_answer
    wait_until(lambda: drain(one, 1.0) or got, timeout=PATIENCE, what="the message")
    assert got == ["once"]
    assert connection.execute("SELECT count(*) FROM jobrunner.broker_messages").fetchone() == (0,)


def test_two_consumers_share_a_queue(connect, dsn):
    """Of two consumers of one queue each message goes to one."""
    sender = connect()
    got: dict[str, list[int]] = {"one": [], "two": []}
    for number in range(200):
        publish(sender, number)

    def work(name):
        with Connection(url_of(dsn)) as own, Consumer(
            own, [QUEUE], callbacks=[lambda body, _: got[name].append(body), lambda _, message: message.ack()], prefetch_count=2
        ):
            while sum(map(len, got.values())) < 200:
                drain(own, 0.2)

    threads = [threading.Thread(target=work, args=(name,)) for name in got]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert sorted(got["one"] + got["two"]) == list(range(200))
