"""Groups that read the log: every event once and in order, and effects that commit with the group's step."""

from __future__ import annotations

import contextlib
import itertools

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from jobrunner import ConfigurationError, JobrunnerError, testing
from jobrunner.settings import parse_dsn
from jobrunner.topics import delivering, groups, reading
from jobrunner.worker.deliveries import start
from tests.support.topics import EFFECTS, cursor, positions, publish
from tests.support.waiting import wait_until

NOW = {"max_attempts": 2, "backoff": "constant", "backoff_base": 0}


def test_events_come_in_order_in_batches(shop, connection):
    """A group gets every event that fits, in the order of the log, at most `batch` at once, and its cursor ends behind the last."""
    shop.log("search", "order.#", batch=3)
    shop.topic.publish_many([("order.paid", number) for number in range(7)] + [("stock.gone", "x"), ("order.lost", 7)])
    shop.jobs.topic("elsewhere").publish("order.paid", "y")
    shop.drain_until("search", *range(8))
    assert [len(payloads) for _, payloads in shop.got] == [3, 3, 2]
    assert cursor(connection, "search") >= positions(connection)[-2]
    assert (shop.group("search").lag, shop.group("search").delivered_count) == (0, 8)
    assert len(shop.drain()) == 0, "nothing is left to do"


def test_one_job_delivers_all_that_is_there(shop, connection):
    """A job goes on from batch to batch, and says in its result how far it came."""
    shop.log("search", batch=2)
    shop.topic.publish_many([("order.paid", number) for number in range(9)])
    shop.drain_until("search", *range(9))
    found = connection.execute("SELECT task, args, state, result FROM jobrunner.job_history ORDER BY id DESC LIMIT 1").fetchone()
    assert found[:3] == ("search", {"topic": "orders", "group": "search"}, "succeeded")
    assert found[3] == {"delivered": 9, "position": cursor(connection, "search")}


def test_groups_are_on_their_own(shop):
    """Each group has its own place; one that has stopped does not keep another from its events."""
    shop.log("bad", "order.*", **NOW | {"max_attempts": 1})
    shop.topic.publish("order.paid", 1)
    shop.failing = {1}
    shop.drain_until_stopped("bad")
    shop.failing = set()
    shop.log("good")
    shop.topic.publish("stock", 2)
    shop.drain_until("good", 1, 2)
    assert shop.payloads("bad") == [1]


def test_a_transaction_that_is_open_holds_back_what_came_after(shop, connection):
    """What was published after an event whose transaction is still open waits for it, although it was committed before; none is lost."""
    shop.log("search")
    shop.declare()
    publish(connection, 1)
    shop.drain_until("search", 1)
    with shop.elsewhere() as slow:
        publish(slow, 2)
        publish(connection, 3)
        shop.drain()
        assert shop.payloads("search") == [1], "3 is there to be seen, and 2 may still come before it"
        assert shop.group("search").state == "waiting"
        shop.drain()
        assert shop.payloads("search") == [1]
        publish(slow, 4)
        slow.commit()
        publish(connection, 5)
    shop.drain_until("search", 1, 2, 3, 4, 5)


def test_a_transaction_that_began_early_and_published_late(shop, connection):
    """A transaction with an old number may publish last: its event comes last, and no event of a younger transaction is skipped for it.

    An order by the transactions' numbers would deliver it first, and then take the younger one's for gone by.
    """
    shop.log("search")
    shop.declare()
    with shop.elsewhere() as old, shop.elsewhere() as young:
        old.execute("SELECT pg_current_xact_id()")
        publish(young, 1)
        publish(old, 2)
        old.commit()
        shop.drain()
        assert shop.payloads("search") == [], "1 may still come before 2"
        young.commit()
    shop.drain_until("search", 1, 2)


def test_an_event_that_was_rolled_back_is_no_gap(shop, connection):
    """A position that will never be filled holds nobody up once its transaction is over."""
    shop.log("search")
    shop.declare()
    with shop.elsewhere() as other:
        publish(other, "never")
        publish(connection, 1)
        shop.drain()
        assert shop.payloads("search") == []
    shop.drain_until("search", 1)


def test_a_long_transaction_costs_one_job_and_no_attempts(shop, connection):
    """While something is waited for there is no job that tries again and again: the next one is enqueued when the transaction is over."""
    shop.log("search")
    shop.declare()
    with shop.elsewhere() as slow:
        slow.execute("SELECT pg_current_xact_id()")
        publish(connection, 1)
        for _ in range(5):
            shop.drain()
        assert connection.execute("SELECT count(*) FROM jobrunner.job_history").fetchone() == (1,)
        assert connection.execute("SELECT count(*) FROM jobrunner.job_attempts").fetchone() == (0,)
        assert connection.execute("SELECT count(*) FROM jobrunner.jobs").fetchone() == (0,)
    shop.drain_until("search", 1)


def test_a_number_of_another_server_is_no_reason_to_wait(shop, connection):
    """A database that was restored from a dump has numbers of transactions that its server has not given out yet: they decide nothing."""
    shop.log("search")
    shop.topic.publish("order.paid", 1)
    connection.execute("UPDATE jobrunner.cursors SET fence_position = 1, fence_xid = '9000000000000000'")
    connection.execute("UPDATE jobrunner.events SET xid = '9000000000000000'")
    shop.drain_until("search", 1)


def test_a_handler_with_a_session_has_its_effects_exactly_once(shop, connection, effects):
    """What a transactional handler writes commits with the group's step, or not at all: after failures each event has one effect."""
    shop.log("ledger", transactional=True, batch=2, **NOW | {"max_attempts": 9})
    failures = itertools.cycle([False, True, True, False])

    def fail_now_and_then():
        if next(failures):
            raise ValueError("now")

    shop.meanwhile = fail_now_and_then
    shop.topic.publish_many([("order.paid", number) for number in range(9)])
    shop.drain_to_the_end("ledger")
    assert len(shop.got) > 5, "some of it failed"
    assert connection.execute(EFFECTS).fetchall() == [(position,) for position in positions(connection)]


def test_a_group_that_wants_few_of_many_moves_on(shop, connection, monkeypatch):
    """Events that are not for a group cost it no job each: a job moves it over many, and it finds the one that is."""
    monkeypatch.setattr(reading, "SPAN", 100)
    shop.log("rare", "order.rare")
    shop.topic.publish_many([("order.paid", number) for number in range(990)])
    for _ in range(3):
        shop.drain()
    assert connection.execute("SELECT count(*) FROM jobrunner.job_history").fetchone() == (0,)
    shop.topic.publish_many([("order.paid", number) for number in range(990, 1500)])
    shop.topic.publish("order.rare", "found")
    shop.drain_until("rare", "found")
    assert cursor(connection, "rare") >= positions(connection)[-1]


def test_a_job_gives_up_its_slot_after_a_while(shop, connection, monkeypatch):
    """A long replay is many jobs, one after the other, so that deploys and other groups get their turn."""
    monkeypatch.setattr(delivering, "BUDGET", 0.0)
    shop.log("search", batch=2)
    shop.topic.publish_many([("order.paid", number) for number in range(6)])
    shop.drain_until("search", *range(6))
    found = connection.execute("SELECT result->>'delivered' FROM jobrunner.job_history WHERE result IS NOT NULL ORDER BY id").fetchall()
    assert found == [("2",)] * 3


def test_what_another_has_moved_on_is_not_moved_twice(shop, connection, effects):
    """A delivery that finds its group moved by somebody else has no effect: what it wrote is rolled back, and it goes on from there."""
    shop.log("ledger", transactional=True)
    shop.topic.publish("order.paid", 1)
    faster = iter(["UPDATE jobrunner.cursors SET position = 1000000000, rewind_count = rewind_count + 1"])
    shop.meanwhile = lambda: [connection.execute(statement) for statement in faster]
    shop.drain_until_called(1)
    shop.drain()
    assert connection.execute(EFFECTS).fetchall() == []
    assert shop.payloads("ledger") == [1]


def test_a_superseded_attempt_does_not_move_its_group(shop, connection, effects):
    """A delivery whose job is another attempt's by now has no effect, though nobody has moved the group."""
    shop.log("ledger", transactional=True)
    shop.topic.publish("order.paid", 1)
    shop.meanwhile = lambda: connection.execute("UPDATE jobrunner.jobs SET lease = lease + 1")
    with contextlib.suppress(JobrunnerError):
        shop.drain_until_called(1)
    assert connection.execute(EFFECTS).fetchall() == []
    assert cursor(connection, "ledger") == 0


def test_a_group_without_its_row_delivers_nothing(shop, connection):
    """A job whose group was removed while it waited ends in order."""
    shop.log("search")
    shop.topic.publish("order.paid", 1)
    with shop.jobs.database.store() as store:
        assert start(store.connection, ["default"], ["search"]) == (1, True)
    groups.unsubscribe(shop.jobs.database, "orders", "search")
    shop.jobs.subscriptions.clear()
    shop.drain()
    assert shop.got == []
    assert connection.execute("SELECT state, result FROM jobrunner.job_history").fetchall() == [("succeeded", None)]


def test_a_group_has_one_job_at_a_time(shop, connection):
    """However often and by however many workers is looked, a group that is behind has one job."""
    shop.log("search")
    shop.topic.publish("order.paid", 1)
    with shop.jobs.database.store() as store, shop.jobs.database.store() as other:
        for each in (store, other, store):
            start(each.connection, ["default"], ["search"])
        assert start(store.connection, ["default"], ["search"]) == (0, True)
        assert start(store.connection, ["elsewhere"], ["search"]) == (0, False)
        assert start(store.connection, ["default"], ["unknown"]) == (0, False)
    assert connection.execute("SELECT task, unique_key FROM jobrunner.jobs").fetchall() == [("search", "orders/search")]


def test_an_async_handler(shop):
    """A coroutine may read the log as well."""
    got: list[int] = []

    @shop.jobs.subscribe("orders", mode="log")
    async def index(batch):
        got.extend(event.payload for event in batch)

    shop.topic.publish("order.paid", 1)
    wait_until(lambda: (shop.drain(), got == [1])[1], timeout=90, what="the event to be delivered")


def test_in_a_rolled_back_test(shop, dsn, connection):
    """In a test's own transaction the log is delivered as well, though nothing of it is ever committed, and leaves no trace."""
    shop.log("search")
    shop.queue("billing")
    engine = sa.create_engine(parse_dsn(dsn, "test").sqlalchemy_url)
    for _ in range(2):
        shop.got.clear()
        with Session(engine) as session, testing.Jobs(shop.jobs, session=session) as helper:
            shop.topic.publish("order.paid", 1, session=session)
            helper.drain()
            assert sorted(shop.got) == [("billing", [1]), ("search", [1])]
            session.rollback()
    assert connection.execute("SELECT count(*) FROM jobrunner.events").fetchone() == (0,)
    assert connection.execute("SELECT count(*) FROM jobrunner.subscriptions").fetchone() == (0,)
    engine.dispose()


def test_a_handler_of_the_log_cannot_be_subscribed_again(shop):
    """It has one group; a function that is to read two topics is decorated twice by two names."""
    handler = shop.log("search")
    assert handler.task.name == "search"
    with pytest.raises(ConfigurationError):
        shop.jobs.subscribe("stock", mode="log")(handler)


def test_a_session_on_another_database(shop, connection, empty_dsn):
    """A transactional handler cannot commit its writes there together with the group's step: it is told so, and the group stays."""
    engine = sa.create_engine(parse_dsn(empty_dsn, "test").sqlalchemy_url)
    with engine.begin() as core:
        core.exec_driver_sql("CREATE TABLE effects (position bigint)")
    shop.log("ledger", transactional=True, max_attempts=1)
    shop.topic.publish("order.paid", 1, session=None)
    shop.jobs.session = scoped_session(sessionmaker(engine))
    with testing.Jobs(shop.jobs, session=None) as helper, pytest.raises(ConfigurationError, match="database of the topics"):
        wait_until(helper.drain, timeout=90, what="the handler to be refused")
    assert cursor(connection, "ledger") == 0
    shop.jobs.session.remove()
    engine.dispose()
