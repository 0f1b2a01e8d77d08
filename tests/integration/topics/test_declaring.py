"""Subscriptions are declared in code, known to the database, and removed by nobody but an operator."""

from __future__ import annotations

from datetime import UTC, datetime

import psycopg
import pytest

from jobrunner import ConfigurationError, GroupNotFound, JobRunner
from jobrunner.tasks import AsyncTask, Task
from jobrunner.topics import groups
from jobrunner.topics.declaring import LogHandler
from tests.support.topics import Shop, cursor, publish

ROWS = "SELECT group_name, mode, task, patterns, queue, max_attempts, undeclared_at IS NOT NULL FROM jobrunner.subscriptions ORDER BY group_name"


@pytest.fixture
def jobs(dsn):
    made = JobRunner(dsn=dsn, wakeups=False, name="shop")
    yield made
    made.close()


def test_what_the_decorator_gives(jobs):
    """In queue mode a task, an async one for a coroutine; in log mode a handler. Each can be called as the function that it was."""

    @jobs.subscribe("orders", "order.*")
    def paid(event):
        return event

    @jobs.subscribe("orders")
    async def later(event):
        return event

    @jobs.subscribe("orders", mode="log", name="index.all")
    def index(batch):
        return len(batch)

    assert (type(paid), type(later), type(index)) == (Task, AsyncTask, LogHandler)
    assert (paid("x"), index([1, 2]), index.__name__) == ("x", 2, "index")
    assert jobs.registry.names() == ["index.all", "later", "paid"]
    assert {key: value.patterns for key, value in jobs.subscriptions.items()} == {
        ("orders", "paid"): ("order.*",), ("orders", "later"): ("#",), ("orders", "index.all"): ("#",),
    }  # fmt: skip


def test_one_function_may_have_several_subscriptions(shop, connection):
    """In queue mode a subscribed function can be subscribed to another topic as well: it is one task."""
    handler = shop.queue("billing", "order.paid")
    assert shop.jobs.subscribe("stock", "item.#", group="billing", queue="stock")(handler) is handler
    shop.declare()
    shop.topic.publish("order.paid", 1)
    shop.jobs.topic("stock").publish("item.gone", 2)
    found = connection.execute("SELECT task, queue FROM jobrunner.jobs ORDER BY id").fetchall()
    assert found == [("billing", "default"), ("billing", "stock")]
    shop.drain()
    assert shop.payloads("billing") == [1, 2]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mode": "push"}, "mode"), ({"start": "now"}, "start"), ({"start": datetime(2026, 1, 1)}, "time zone"), ({"batch": 0}, "batch"),  # noqa: DTZ001
        ({"batch": True}, "batch"), ({"on_failure": "ignore"}, "on_failure"), ({"unique": True}, "unique"), ({"group": ""}, "group"),
        ({"queu": "x"}, "queu"), ({"max_attempts": 0}, "max_attempts"), ({"transactional": 1}, "transactional"),
        ({"start": "latest"}, "start.*read the log"), ({"batch": 5}, "batch.*read the log"), ({"on_failure": "skip"}, "on_failure.*read the log"),
    ],
)  # fmt: skip
def test_options_that_make_no_sense(jobs, options, said):
    """They are refused at the decorator's own line, with their name."""
    with pytest.raises(ConfigurationError, match=said):
        jobs.subscribe("orders", **options)
    assert jobs.subscriptions == {}


def test_functions_that_cannot_be_handlers(jobs):
    """A function has to take one argument, and a session by keyword where there is to be one; a task is one already."""

    def none() -> None: ...

    def two(_event, _more) -> None: ...

    async def slow(_batch, *, session) -> None: ...

    def plain(_batch) -> None: ...

    @jobs.task
    def task(_event) -> None: ...

    for function in (none, two, task, 7, JobRunner):
        for mode in ("queue", "log"):
            with pytest.raises(ConfigurationError):
                jobs.subscribe("orders", mode=mode)(function)
    for mode in ("queue", "log"):
        with pytest.raises(ConfigurationError, match="async def"):
            jobs.subscribe("orders", mode=mode, transactional=True)(slow)
        with pytest.raises(ConfigurationError, match="session"):
            jobs.subscribe("orders", mode=mode, transactional=True)(plain)
    with pytest.raises(ConfigurationError, match="lambda"):
        jobs.subscribe("orders")(lambda event: event)
    assert jobs.subscriptions == {}


def test_a_group_has_one_function(jobs):
    """A second function of a group is refused with the first one's name; the same one again, as in an app factory, is not."""

    def make():
        def handler(event):
            return event

        return handler

    jobs.subscribe("orders", group="billing")(make())
    jobs.subscribe("orders", group="billing")(make())

    def other(event):
        return event

    with pytest.raises(ConfigurationError, match="handler"):
        jobs.subscribe("orders", group="billing")(other)
    jobs.subscribe("stock", group="billing")(other)


def test_the_database_learns_what_is_declared(shop, connection):
    """Patterns, task and policy are there after it was told; telling it once more writes nothing."""
    shop.queue("billing", ["order.*", "stock.#"], queue="money", max_attempts=9)
    shop.log("search", batch=7, on_failure="skip")
    shop.declare()
    assert connection.execute(ROWS).fetchall() == [
        ("billing", "queue", "billing", ["order.*", "stock.#"], "money", 9, False),
        ("search", "log", "search", ["#"], "default", 5, False),
    ]
    found = connection.execute("SELECT matcher IS NULL, app, batch_size, on_failure, xmin::text FROM jobrunner.subscriptions").fetchall()
    assert [row[:4] for row in found] == [(False, "shop", 100, "stop"), (True, "shop", 7, "skip")]
    shop.declare()
    assert connection.execute("SELECT xmin::text FROM jobrunner.subscriptions").fetchall() == [row[4:] for row in found]


def test_what_is_declared_no_longer_is_marked_and_goes_on(shop, dsn, connection):
    """Nothing is dropped silently: such a group still gets its events, shows as undeclared, and is as before once it is declared again."""
    shop.queue("billing")
    shop.queue("mail")
    shop.declare()
    newer = Shop(dsn)
    newer.queue("mail")
    newer.declare()
    assert [row[0] for row in connection.execute(ROWS).fetchall() if row[-1]] == ["billing"]
    publish(connection, 1)
    assert connection.execute("SELECT task FROM jobrunner.jobs ORDER BY task").fetchall() == [("billing",), ("mail",)]
    shop.declare()
    assert [row[0] for row in connection.execute(ROWS).fetchall() if row[-1]] == []


def test_applications_do_not_mark_each_others_groups(shop, dsn, connection):
    """Two applications on one database know nothing of each other's subscriptions."""
    shop.queue("billing")
    shop.declare()
    other = JobRunner(dsn=dsn, wakeups=False, name="other")
    with shop.elsewhere() as somebody:
        from jobrunner import subscriptions

        subscriptions.declare(subscriptions.Direct(somebody), other.rules_name, [], complete=True)
        somebody.commit()
    assert [row[-1] for row in connection.execute(ROWS).fetchall()] == [False]


def test_an_operator_removes_a_group(shop, connection):
    """Unsubscribed, it gets no further event; jobs that are written stay, and its place in the log is forgotten."""
    shop.queue("billing")
    shop.log("search")
    shop.topic.publish("order.paid", 1)
    for group in ("billing", "search"):
        assert groups.unsubscribe(shop.jobs.database, "orders", group)
        assert not groups.unsubscribe(shop.jobs.database, "orders", group)
    publish(connection, 2)
    assert connection.execute("SELECT args->'event'->'payload' FROM jobrunner.jobs").fetchall() == [(1,)]
    assert connection.execute("SELECT count(*) FROM jobrunner.cursors").fetchone() == (0,)


def test_a_pattern_that_is_none_is_refused_by_the_database_too(connection):
    """Another language declares by the same function, and hears what is wrong."""
    declared = '[{"topic": "t", "group_name": "g", "mode": "queue", "task": "x", "patterns": ["a*"]}]'
    with pytest.raises(psycopg.errors.InvalidParameterValue, match=r"'a\*' is no pattern"):
        connection.execute("SELECT jobrunner.declare_subscriptions('go', %s, false)", (declared,))
    assert connection.execute("SELECT jobrunner.declare_subscriptions('go', %s, false)", (declared.replace("a*", "a.*"),)).fetchone() == (1,)


def test_where_a_new_group_begins(shop, connection):
    """`earliest` is what is kept, `latest` what comes after, an instant what was published from then on; the cursor stays when it is known."""
    publish(connection, 1)
    between = connection.execute("SELECT clock_timestamp()").fetchone()[0].astimezone(UTC)
    publish(connection, 2)
    shop.log("all")
    shop.log("new", start="latest")
    shop.log("half", start=between)
    shop.declare()
    publish(connection, 3)
    shop.drain_until("all", 1, 2, 3)
    shop.drain_until("new", 3)
    shop.drain_until("half", 2, 3)
    before = cursor(connection, "all")
    shop.declare()
    assert cursor(connection, "all") == before


def test_verbs_about_groups_that_are_not_there(shop):
    """Rewinding nobody, or a group of jobs, is an error that says what there is."""
    shop.queue("billing")
    shop.declare()
    with pytest.raises(GroupNotFound, match="serch"):
        shop.topic.rewind("serch", "earliest")
    with pytest.raises(ConfigurationError, match="queue mode"):
        shop.topic.rewind("billing", "earliest")
    for wrong in ("yesterday", -1, True, None, datetime(2026, 1, 1)):  # noqa: DTZ001
        with pytest.raises(ConfigurationError, match="rewind"):
            shop.topic.rewind("billing", wrong)
