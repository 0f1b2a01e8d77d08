"""The database goes away in the middle: workers wait for it, and neither lose nor double what they run."""

from __future__ import annotations

import contextlib
import time
from urllib.parse import quote

import psycopg
import pytest
from kombu import Connection, Queue
from psycopg.conninfo import conninfo_to_dict

from jobrunner import migrate
from tests.support.celeries import PATIENCE, celery_worker
from tests.support.waiting import wait_until

PAUSE = 0.5  # seconds between two cuts: to connect, claim and acknowledge takes a few milliseconds
CONNECTIONS = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = current_database()"


@pytest.mark.chaos
def test_a_restart_of_the_server_in_the_middle(durable_server, shop):
    """Tasks run on while the server restarts; each ends once, is acknowledged, and begins no second time."""
    dsn = durable_server.dsn("postgres")
    migrate.upgrade(dsn)
    own = shop(dsn=dsn, task_acks_late=True, broker_transport_options={"lease": 60.0})
    for number in range(8):
        own.send("sell", number, 3.0)
    with celery_worker(own, "one", "-c", "2"):
        wait_until(lambda: len(own.ledger.count("start")) >= 2, timeout=PATIENCE, what="tasks to run")
        down_at = len(own.ledger.count("end"))
        durable_server.stop(mode="fast")
        wait_until(lambda: len(own.ledger.count("end")) > down_at, timeout=PATIENCE, what="a task to end while the server is away")
        durable_server.start()
        own.ledger.wait_for_ends(8, PATIENCE)
        own.wait_until_empty()
    assert own.ledger.count("start") == {str(number): 1 for number in range(8)}
    assert own.ledger.count("end") == {str(number): 1 for number in range(8)}


@pytest.mark.chaos
@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_producer_outlives_a_restart(durable_server, shop, mode):
    """The next task after a restart is sent on a new connection, once, without an error for the caller."""
    dsn = durable_server.dsn("postgres")
    migrate.upgrade(dsn)
    own = shop(dsn=dsn)
    own.send("sell", 1)
    durable_server.stop(mode=mode)
    durable_server.start()
    own.send("sell", 2)
    assert own.rows("SELECT count(*) FROM jobrunner.broker_messages") == [(2,)]


@pytest.mark.chaos
def test_every_connection_cut_again_and_again(shop):
    """While all connections of the worker are ended over and over, each task ends once."""
    own = shop(task_acks_late=True, broker_transport_options={"lease": 60.0})
    with celery_worker(own, "one", "-c", "2"), psycopg.connect(own.dsn, autocommit=True) as operator:
        for number in range(40):
            own.send("sell", number, 0.1)

        cut_at = [0.0]

        def cut_and_look():
            if time.monotonic() >= cut_at[0] + PAUSE:
                operator.execute(CONNECTIONS)
                cut_at[0] = time.monotonic()
            return sum(own.ledger.count("end").values()) >= 40

        wait_until(cut_and_look, timeout=PATIENCE * 2, what="all tasks to have ended")
        own.wait_until_empty()
    assert own.ledger.count("start") == {str(number): 1 for number in range(40)}


def parts_of(dsn):
    """User, percent-encoded host, port and database of a test server's address, which is on a local socket."""
    found = conninfo_to_dict(dsn)
    return found["user"], quote(str(found["host"]), safe=""), found["port"], found["dbname"]


@pytest.fixture
def two(durable_server, fresh_dsn):
    """Two servers with our schema: the first can be stopped."""
    dsn = durable_server.dsn("postgres")
    migrate.upgrade(dsn)
    return dsn, fresh_dsn


@pytest.mark.chaos
def test_kombu_takes_the_next_of_several_addresses(durable_server, two):
    """When the first does not answer, a publish goes to the second, and a consumer is told, so that Kombu changes."""
    first, second = ["jobrunner://{}@{}:{}/{}".format(*parts_of(dsn)) for dsn in two]
    with Connection([first, second]) as connection:
        producer = connection.Producer()
        producer.publish(1, routing_key="orders")
        consumer = connection.Consumer([Queue("orders")], callbacks=[lambda *_: None])
        consumer.consume()
        durable_server.stop(mode="fast")
        with pytest.raises(connection.connection_errors):
            wait_until(lambda: not _drains(connection), timeout=PATIENCE, what="the consumer to be told")
        producer.publish(2, routing_key="orders", retry=True, retry_policy={"max_retries": 5, "interval_start": 0})
        assert "orders" in {name for (name,) in rows(two[1], "SELECT name FROM jobrunner.broker_queues")}
        assert rows(two[1], "SELECT message->>'body' FROM jobrunner.broker_messages") == [("2",)]


@pytest.mark.chaos
def test_several_hosts_in_one_address(durable_server, two):
    """PostgreSQL's client library finds the host that answers: a consumer and a producer go on, and Kombu hears nothing of it."""
    (user, one, port, _), (_, other, other_port, database) = map(parts_of, two)
    with psycopg.connect(two[0], autocommit=True) as operator:
        operator.execute(f'CREATE DATABASE "{database}"')
    migrate.upgrade(durable_server.dsn(str(database)))
    got: list[int] = []
    with Connection(f"jobrunner://{user}@{one},{other}:{port},{other_port}/{database}") as connection:
        producer = connection.Producer()
        with connection.Consumer([Queue("orders")], callbacks=[lambda body, _: got.append(body)], no_ack=True):
            for number in (1, 2):
                producer.publish(number, routing_key="orders")
                wait_until(lambda: _drains(connection) and len(got) == number, timeout=PATIENCE, what="the message")  # noqa: B023  called at once
                durable_server.stop(mode="fast")
    assert got == [1, 2]


def _drains(connection):
    with contextlib.suppress(TimeoutError):
        connection.drain_events(timeout=0.5)
    return True


def rows(dsn, query):
    """Rows of a query."""
    with psycopg.connect(dsn) as connection:
        return connection.execute(query).fetchall()
