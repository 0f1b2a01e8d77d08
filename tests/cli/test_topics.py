"""`jobrunner topics`: groups are declared, listed, rewound, resumed and removed; events are published."""

from __future__ import annotations

import json

import pytest

from tests.support.cli import Program
from tests.support.topics import Shop, publish
from tests.support.waiting import wait_until

ITEM = {
    "topic", "group", "mode", "patterns", "task", "queue", "app", "on_failure", "declared_at", "undeclared_at", "position", "stopped_at",
    "problem", "job_id", "moved_at", "delivered_count", "fence_xid", "skipped_count", "lag", "exact", "oldest_at", "state",
}  # fmt: skip
SUBSCRIBING = """
from flask import Flask
from jobrunner import JobRunner

app = Flask("shop")
jobs = JobRunner(app)


@jobs.subscribe("orders", "order.*", group="billing")
def on_paid(event):
    print(event)


@jobs.subscribe("orders", mode="log", group="search")
def index(batch):
    print(batch)
"""


@pytest.fixture
def shop(dsn):
    made = Shop(dsn)
    yield made
    made.jobs.close()


@pytest.fixture
def subscribing(tmp_path, dsn):
    """`jobrunner` beside an application that subscribes."""
    (tmp_path / "app.py").write_text(SUBSCRIBING)
    return Program(tmp_path, dsn)


def items(program, *arguments):
    return {item["group"]: item for item in program("topics", "list", *arguments, "--json").json["items"]}


def test_sync_tells_the_database(subscribing, connection):
    """What the code declares is there without a worker, and shows in the list; a second time nothing changes."""
    assert subscribing("topics", "sync", "--json").json == {"declared": 2, "changed": 2}
    assert subscribing("topics", "sync", "--json").json == {"declared": 2, "changed": 0}
    found = items(subscribing)
    assert {group: (item["mode"], item["patterns"], item["task"], item["app"]) for group, item in found.items()} == {
        "billing": ("queue", ["order.*"], "on_paid", "shop"), "search": ("log", ["#"], "index", "shop"),
    }  # fmt: skip
    assert set(found["search"]) == ITEM
    listed = subscribing("topics", "list")
    assert [line.split()[:4] for line in listed.out.splitlines()[:3]] == [
        ["TOPIC", "GROUP", "MODE", "STATE"], ["orders", "billing", "queue", "active"], ["orders", "search", "log", "active"],
    ]  # fmt: skip


def test_lag_and_one_topic(reader, shop, connection):
    """The list says how many events a group has yet to have and since when; with a topic it is about that one."""
    shop.log("search", "order.paid")
    shop.log("stock", topic="stock")
    shop.declare()
    for number in range(3):
        publish(connection, number)
    publish(connection, 0, "order.lost")
    found = items(reader, "orders")
    assert set(found) == {"search"}
    assert (found["search"]["lag"], found["search"]["exact"], found["search"]["position"]) == (3, True, 0)
    assert found["search"]["oldest_at"] is not None


def test_publishing(reader, shop, connection):
    """An event from the command line needs no application; the payload is JSON, of an argument or of stdin."""
    shop.queue("billing")
    shop.declare()
    made = reader("topics", "publish", "orders", "order.paid", '{"id": 1}', "--key", "7", "--header", "a=b=c", "--in", "1m", "--ttl", "1h", "--priority", "4")
    position = int(made.out)
    found = connection.execute("SELECT position, name, payload, key, headers FROM jobrunner.events").fetchall()
    assert found == [(position, "order.paid", {"id": 1}, "7", {"a": "b=c"})]
    assert connection.execute("SELECT priority, run_at > now(), expires_at > now() FROM jobrunner.jobs").fetchall() == [(4, True, True)]
    assert json.loads(reader("topics", "publish", "orders", "order.bare", "-", "--json", stdin="[1]").out)["position"] > position
    assert connection.execute("SELECT payload FROM jobrunner.events WHERE name = 'order.bare'").fetchall() == [([1],)]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("publish", "orders", "order.*"), 2), (("publish", "orders", "order.paid", "{"), 2), (("publish", "orders", "a", "--header", "x"), 2),
        (("rewind", "orders", "--group", "none", "--to", "earliest"), 6), (("rewind", "orders", "--group", "billing", "--to", "earliest"), 2),
        (("rewind", "orders", "--group", "billing", "--to", "whenever"), 2), (("resume", "orders", "--group", "none"), 6),
        (("unsubscribe", "orders", "--group", "none"), 6), (("rewind", "orders", "--to", "earliest"), 2),
    ],
)  # fmt: skip
def test_what_cannot_be_done(reader, shop, arguments, code):
    """Each refusal has its exit code, and says what to do."""
    shop.queue("billing")
    shop.declare()
    said = reader("topics", *arguments, ok=None)
    assert said.code == code, said
    assert said.err


def test_rewinding(reader, shop, connection):
    """To an instant, a position, the earliest or the latest; the answer says from where to where."""
    shop.log("search")
    shop.declare()
    published = [publish(connection, number) for number in range(3)]
    shop.drain_until("search", 0, 1, 2)
    end = shop.group("search").position
    for to, expected in (("earliest", 0), (str(published[1]), published[1] - 1), ("2026-11-01T00:00Z", 0), ("latest", published[-1])):
        done = reader("topics", "rewind", "orders", "--group", "search", "--to", to, "--json").json
        assert done["position"] == expected
    assert end >= published[-1]
    said = reader("topics", "rewind", "orders", "--group", "search", "--to", "2026-11-01T00:00Z")
    assert (said.out, "published from 2026-11-01T00:00:00+00:00 on" in said.err) == ("", True)
    assert "published" not in reader("topics", "rewind", "orders", "--group", "search", "--to", "earliest").err


def test_a_stopped_group(reader, shop, connection):
    """It is in the list with its job and the command that lets it go on, exit 1; resumed, it is active."""
    shop.log("search", max_attempts=1)
    shop.topic.publish("order.paid", 1)
    shop.failing = {1}
    shop.drain_until_stopped("search")
    listed = reader("topics", "list", ok=None)
    assert listed.code == 1
    assert "stopped" in listed.out
    assert f"jobrunner jobs show {shop.group('search').job_id}" in listed.out
    assert "jobrunner topics resume orders --group search" in listed.out
    assert reader("topics", "resume", "orders", "--group", "search", "--json").json == {"resumed": True}
    assert reader("topics", "resume", "orders", "--group", "search", "--json").json == {"resumed": False}
    reader("topics", "list")


def test_what_the_words_below_the_table_say(reader, shop, connection):
    """A group that no code declares, that waits for a transaction, or has gone past events, has a line that says so."""
    shop.log("search", on_failure="skip", max_attempts=1)
    shop.topic.publish("order.paid", 1)
    shop.failing = {1}
    shop.drain_to_the_end("search")
    assert "search: went past 1 failed deliver" in reader("topics", "list").out
    with shop.elsewhere() as slow:
        slow.execute("SELECT pg_current_xact_id()")
        publish(connection, 2)
        shop.drain()
        assert "waits for transaction" in reader("topics", "list").out
    shop.jobs.subscriptions.clear()
    shop.declare()
    assert "declares it no longer" in reader("topics", "list").out


def test_unsubscribing(reader, shop, connection):
    """The group is gone, and gets no further event."""
    shop.queue("billing")
    shop.declare()
    reader("topics", "unsubscribe", "orders", "--group", "billing")
    publish(connection, 1)
    assert connection.execute("SELECT count(*) FROM jobrunner.jobs").fetchone() == (0,)
    assert items(reader) == {}


def test_a_worker_declares_at_its_start_and_delivers(subscribing, connection):
    """`work --drain` tells the database what its application subscribes to, and runs until the log is delivered as well."""
    subscribing("work", "--drain")
    assert set(items(subscribing)) == {"billing", "search"}
    publish(connection, 1)

    def delivered():
        subscribing("work", "--drain")
        return items(subscribing)["search"]["lag"] == 0

    wait_until(delivered, timeout=120, what="the log to be delivered")
    found = connection.execute("SELECT DISTINCT task, state FROM jobrunner.job_history ORDER BY task").fetchall()
    assert found == [("index", "succeeded"), ("on_paid", "succeeded")]
