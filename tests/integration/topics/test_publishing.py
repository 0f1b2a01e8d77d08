"""Publishing writes an event and a job for each group that it fits, in the transaction that it belongs to, from Python and from SQL."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobrunner import ConfigurationError, Event, InvalidPayload, JobRunner, LeaseLost, SchemaError
from jobrunner.current import JobContext, running
from jobrunner.settings import parse_dsn
from jobrunner.topics import publishing
from tests.support.topics import Shop, publish

JOBS = "SELECT task, args->'event'->>'payload' FROM jobrunner.jobs ORDER BY id"
EVENTS = "SELECT name, payload FROM jobrunner.events ORDER BY position"


@pytest.fixture
def engine(dsn):
    engine = sa.create_engine(parse_dsn(dsn, "test").sqlalchemy_url)
    yield engine
    engine.dispose()


def test_an_event_becomes_a_job_of_each_group_that_it_fits(shop, connection):
    """Each group whose pattern fits gets one job, whatever other patterns of it fit too; the others get none."""
    shop.queue("billing", ["order.*", "order.paid"])
    shop.queue("mail", "*.paid")
    shop.queue("returns", "order.returned")
    shop.queue("elsewhere", "#", topic="stock")
    shop.topic.publish("order.paid", {"id": 1})
    assert connection.execute(JOBS).fetchall() == [("billing", '{"id": 1}'), ("mail", '{"id": 1}')]
    shop.drain()
    assert sorted(shop.got) == [("billing", [{"id": 1}]), ("mail", [{"id": 1}])]


def test_what_a_handler_gets(shop, connection):
    """An Event with all that was published, its place in the log and its time."""
    seen: list[Event] = []
    shop.jobs.subscribe("orders", group="all", name="all")(seen.append)
    position = shop.topic.publish("order.paid", {"id": 1, "at": date(2026, 11, 26), "sum": Decimal("1.50")}, key="7", headers={"trace": "x"})
    shop.drain()
    (event,) = seen
    assert event.published_at is not None
    assert event == Event(
        "orders", "order.paid", {"id": 1, "at": "2026-11-26", "sum": "1.50"}, "7", {"trace": "x"}, position, event.published_at
    )
    assert abs(event.published_at - datetime.now(UTC)) < timedelta(minutes=5)
    assert (event["id"], event.get("nothing", 3), "at" in event) == (1, 3, True)
    row = connection.execute("SELECT topic, name, key, payload, headers FROM jobrunner.events WHERE position = %s", (position,)).fetchone()
    assert row == ("orders", "order.paid", "7", event.payload, {"trace": "x"})


def test_the_options_of_a_subscription_are_those_of_its_jobs(shop, connection):
    """Queue, priority, attempts, backoff, limits and tags are as declared; what the publisher says of delay, ttl and priority is of this event."""
    options = {
        "queue": "money", "priority": 3, "max_attempts": 7, "backoff": "linear", "backoff_base": 2, "time_limit": "90s",
        "memory_limit": "256MB", "tags": ["a", "b"],
    }  # fmt: skip
    shop.queue("billing", **options)
    columns = "queue, priority, max_attempts, backoff, backoff_base, time_limit, memory_limit, tags"
    shop.topic.publish("order.paid")
    found = connection.execute(f"SELECT {columns}, run_at <= now(), expires_at FROM jobrunner.jobs").fetchone()
    assert found == ("money", 3, 7, "linear", timedelta(seconds=2), timedelta(seconds=90), 256_000_000, ["a", "b"], True, None)
    shop.topic.publish("order.paid", delay=60, ttl="2m", priority=-5)
    found = connection.execute(
        "SELECT priority, run_at - created_at, expires_at - created_at FROM jobrunner.jobs ORDER BY id DESC LIMIT 1"
    ).fetchone()
    assert found == (-5, timedelta(seconds=60), timedelta(minutes=2))


def test_events_of_a_key_are_in_order_within_a_group(shop, connection):
    """The jobs of a key share an ordering key, of which each group has its own: a failure in one holds up no other."""
    shop.queue("billing")
    shop.queue("mail")
    shop.topic.publish("order.paid", 1, key="7")
    shop.topic.publish("order.paid", 2)
    found = connection.execute("SELECT task, ordering_key FROM jobrunner.jobs ORDER BY id").fetchall()
    assert found == [("billing", "orders/billing/7"), ("mail", "orders/mail/7"), ("billing", None), ("mail", None)]


def test_events_of_a_key_are_worked_on_one_after_the_other(shop):
    """A job of a key that fails and waits for its next attempt holds up the later ones of its key, and only those."""
    shop.queue("billing", max_attempts=2, backoff="constant", backoff_base=0)
    shop.failing = {"bad"}
    for payload, key in (("bad", "7"), ("after", "7"), ("other", "8")):
        shop.topic.publish("order.paid", payload, key=key)
    shop.drain(raise_errors=False)
    assert [payload for payload in shop.payloads("billing") if payload != "other"] == ["bad", "bad", "after"]
    assert "other" in shop.payloads("billing")


def test_it_is_part_of_the_callers_session(shop, engine, connection):
    """In a session the event and its jobs are there when that commits, and never were when it rolls back."""
    shop.queue("billing")
    with Session(engine) as session:
        shop.topic.publish("order.paid", 1, session=session)
        assert connection.execute(EVENTS).fetchall() == []
        session.commit()
    with Session(engine) as session:
        shop.topic.publish("order.paid", 2, session=session)
        session.rollback()
    assert connection.execute(EVENTS).fetchall() == [("order.paid", 1)]
    assert connection.execute(JOBS).fetchall() == [("billing", "1")]


def test_the_apps_session_is_the_default(dsn, engine, connection):
    """Of an app with a default session publishing is part of that; session=None is a transaction of its own."""
    with Session(engine) as session:
        jobs = JobRunner(dsn=dsn, session=lambda: session, wakeups=False)
        jobs.topic("orders").publish("order.paid", 1)
        jobs.topic("orders").publish("order.paid", 2, session=None)
        assert connection.execute(EVENTS).fetchall() == [("order.paid", 2)]
        session.commit()
        assert connection.execute(EVENTS).fetchall() == [("order.paid", 1), ("order.paid", 2)]
        jobs.close()


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_it_is_part_of_the_callers_connection(shop, dsn, connection, driver):
    """In a Core connection of either driver the event is there when that commits; a savepoint that is rolled back takes it away."""
    shop.queue("billing")
    engine = sa.create_engine(parse_dsn(dsn, "test").sqlalchemy_url.replace("+psycopg", f"+{driver}"))
    with engine.connect() as core:
        with core.begin_nested() as savepoint:
            shop.topic.publish("order.paid", 1, connection=core)
            savepoint.rollback()
        assert shop.topic.publish("order.paid", {"id": 2}, key="7", headers={"a": 1}, connection=core, delay=1, ttl=9, priority=1) > 0
        assert connection.execute(EVENTS).fetchall() == []
        core.commit()
    engine.dispose()
    assert connection.execute(EVENTS).fetchall() == [("order.paid", {"id": 2})]
    assert connection.execute(JOBS).fetchall() == [("billing", '{"id": 2}')]


def test_many_events_keep_their_order(shop, connection, monkeypatch):
    """publish_many writes all of them, in their order, with positions that grow, and jobs in the same order; however they are cut into calls."""
    monkeypatch.setattr(publishing, "EVENTS_PER_CALL", 7)
    shop.queue("billing", "order.even")
    events = [(f"order.{'even' if number % 2 == 0 else 'odd'}", number) for number in range(20)]
    positions = shop.topic.publish_many([*events, {"name": "order.even", "payload": 20, "key": "k", "headers": {"h": 1}}])
    assert positions == sorted(set(positions))
    assert len(positions) == 21
    assert [payload for _, payload in connection.execute(EVENTS).fetchall()] == list(range(21))
    assert [payload for _, payload in connection.execute(JOBS).fetchall()] == [str(number) for number in range(0, 21, 2)]
    assert shop.topic.publish_many([]) == []


def test_all_or_none_of_many(shop, connection, monkeypatch):
    """One event that cannot be published leaves nothing of the others; the message names what is wrong."""
    monkeypatch.setattr(publishing, "EVENTS_PER_CALL", 1)
    for wrong in (("order.*", 2), {"name": "order.paid", "kye": 1}, "order.paid", ("order.paid",)):
        with pytest.raises(ConfigurationError):
            shop.topic.publish_many([("order.paid", 1), wrong])
    with pytest.raises(InvalidPayload, match="payload"):
        shop.topic.publish_many([("order.paid", 1), ("order.paid", {"x": float("nan")})])
    assert connection.execute(EVENTS).fetchall() == []


def test_what_is_refused(shop):
    """Options that make no sense are refused with their name, and payloads that JSON cannot hold with their path."""
    for options in (
        {"key": ""}, {"key": "x" * 256}, {"key": 7}, {"headers": ["a"]}, {"delay": -1}, {"ttl": 0}, {"priority": 40_000},
        {"session": object()}, {"connection": object()},
    ):  # fmt: skip
        with pytest.raises(ConfigurationError, match=next(iter(options))):
            shop.topic.publish("order.paid", **options)
    with pytest.raises(InvalidPayload, match=r"payload\.a"):
        shop.topic.publish("order.paid", {"a": object()})
    with pytest.raises(InvalidPayload, match="headers"):
        shop.topic.publish("order.paid", headers={"a": "\x00"})
    shop.jobs.max_payload_bytes = 10
    with pytest.raises(InvalidPayload, match="limit"):
        shop.topic.publish("order.paid", "x" * 20)


def test_plain_sql_publishes_as_well(shop, connection):
    """`SELECT jobrunner.publish(…)` is the same event, in the transaction of whoever says so."""
    shop.queue("billing", "order.*")
    shop.declare()
    with shop.elsewhere() as other:
        assert publish(other, 1) > 0
        other.rollback()
        position = publish(other, 2)
        other.commit()
    connection.execute(
        "SELECT jobrunner.publish(topic => 'orders', name => 'order.lost', payload => '{\"id\": 3}', key => 'k',"
        " headers => '{\"h\": 1}', delay => '1 min', ttl => '1 h', priority => 9)"
    )
    connection.execute("SELECT jobrunner.publish('orders', 'order.bare')")
    found = connection.execute("SELECT name, payload, key, headers FROM jobrunner.events ORDER BY position").fetchall()
    assert found == [("order.paid", 2, None, {}), ("order.lost", {"id": 3}, "k", {"h": 1}), ("order.bare", None, None, {})]
    assert connection.execute("SELECT min(position) FROM jobrunner.events").fetchone() == (position,)
    found = connection.execute("SELECT priority, ordering_key, run_at > now(), expires_at > now() FROM jobrunner.jobs ORDER BY id").fetchall()
    assert found == [(0, None, False, None), (9, "orders/billing/k", True, True), (0, None, False, None)]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("'', 'a'", "is no topic"), ("NULL, 'a'", "is no topic"), ("' a', 'a'", "is no topic"), ("'a', NULL", "no name of an event"),
        ("'a', 'a.*'", "no name of an event"), ("'a', 'a..b'", "no name of an event"), ("'a', 'a', key => ''", "key of an event"),
    ],
)  # fmt: skip
def test_plain_sql_is_checked(connection, call, said):
    """What the library refuses, the function refuses too, and says what it expected."""
    with pytest.raises(psycopg.errors.InvalidParameterValue, match=said):
        connection.execute(f"SELECT jobrunner.publish({call})")


def test_a_transaction_has_its_number_before_its_first_position(shop):
    """What a reader relies on: whoever may write a position has a number that is lower than what is given out afterwards."""
    with shop.elsewhere() as other:
        other.execute("SELECT 1")
        assert other.execute("SELECT pg_current_xact_id_if_assigned()").fetchone() == (None,)
        publish(other, 1)
        number = other.execute("SELECT pg_current_xact_id_if_assigned()::text").fetchone()
        assert other.execute("SELECT xid::text FROM jobrunner.events").fetchone() == number
    source = shop.jobs.database
    with source.store() as store:
        body = store.connection.execute("SELECT prosrc FROM pg_proc WHERE proname = 'publish_events'").fetchone()[0]
    assert body.index("PERFORM pg_current_xact_id()") < body.index("nextval")


def test_a_subscription_that_was_committed_before_misses_nothing(shop, connection):
    """Matching is done by the publishing statement: it sees what was committed before it, though its transaction began earlier."""
    with shop.elsewhere() as other:
        publish(other, 1)
        shop.queue("billing")
        shop.declare()
        publish(other, 2)
        other.commit()
    assert connection.execute(JOBS).fetchall() == [("billing", "2")]


def test_a_publisher_declares_what_its_own_code_subscribes_to(shop, connection):
    """The first event of a process that declares groups itself reaches them, without a worker that was started before."""
    shop.topic.publish("order.paid", 0)
    shop.queue("billing")
    shop.topic.publish("order.paid", 1)
    shop.queue("mail")
    shop.topic.publish("order.paid", 2)
    assert connection.execute(JOBS).fetchall() == [("billing", "1"), ("billing", "2"), ("mail", "2")]


def test_a_job_publishes_on_behalf_of_its_attempt(shop, connection):
    """What a running job publishes is its child; once it is superseded it publishes nothing any more."""
    shop.queue("billing")
    shop.declare()
    worker = connection.execute(
        "INSERT INTO jobrunner.workers (name, host, pid, kind, version, queues, tasks, slots, lease_expires_at)"
        " VALUES ('w', 'h', 1, 'test', '0', '{}', '{}', 1, now() + interval '1 h') RETURNING id"
    ).fetchone()[0]
    parent = connection.execute(
        "INSERT INTO jobrunner.jobs (task, state, lease, attempt, worker_id, claimed_at) VALUES ('t', 'running', 3, 1, %s, now()) RETURNING id",
        (worker,),
    ).fetchone()[0]
    with running(JobContext(id=parent, task="t", queue="default", attempt=1, max_attempts=5, lease=3)):
        shop.topic.publish("order.paid", 1)
    assert connection.execute("SELECT parent_id FROM jobrunner.jobs WHERE task = 'billing'").fetchall() == [(parent,)]
    superseded = JobContext(id=parent, task="t", queue="default", attempt=1, max_attempts=5, lease=2)
    with running(superseded), pytest.raises(LeaseLost):
        shop.topic.publish("order.paid", 2)
    assert connection.execute(EVENTS).fetchall() == [("order.paid", 1)]


def test_workers_are_told_after_the_commit(dsn, engine):
    """A hint goes out for each queue where a group has something to do, the log's included, when the transaction has committed."""
    made = Shop(dsn)
    made.jobs.wakeups = True
    made.queue("billing", queue="money")
    made.log("search", queue="slow")
    made.queue("returns", "order.returned", queue="none")
    with psycopg.connect(dsn, autocommit=True) as listener:
        listener.execute("LISTEN jobrunner")
        with Session(engine) as session:
            made.topic.publish("order.paid", 1, session=session)
            assert [note.payload for note in listener.notifies(timeout=0)] == []
            session.commit()
        heard: set[str] = set()
        for note in listener.notifies(timeout=60):
            heard.add(note.payload)
            if len(heard) == 2:
                break
        assert heard == {"money", "slow"}
    made.jobs.close()


def test_a_database_that_was_not_upgraded(empty_dsn):
    """Publishing where there are no topics says what to run, in a transaction of its own and in the caller's."""
    jobs = JobRunner(dsn=empty_dsn, wakeups=False)
    engine = sa.create_engine(parse_dsn(empty_dsn, "test").sqlalchemy_url)
    with pytest.raises(SchemaError, match="no topics"):
        jobs.topic("orders").publish("order.paid")
    with engine.connect() as core, pytest.raises(SchemaError, match="no topics"):
        jobs.topic("orders").publish("order.paid", connection=core)
    engine.dispose()
    jobs.close()
