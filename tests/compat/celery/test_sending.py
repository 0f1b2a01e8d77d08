"""A task that is sent is one job: what the call, the route, the task and the settings say stands in its columns."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobrunner import testing
from jobrunner.compat.celery import Celery, signals, states
from jobrunner.compat.celery.exceptions import OperationalError, SoftTimeLimitExceeded
from jobrunner.errors import DuplicateReference
from tests.compat.celery.conftest import rows

PATIENCE = 60  # seconds


def test_a_task_is_one_committed_job_with_readable_arguments(app, connection):
    """`delay` commits by itself; arguments stand under the names of their parameters, what JSON lacks is tagged."""

    @app.task(name="charge")
    def charge(order_id, amount, *rest, currency="EUR", **more):
        return None

    result = charge.delay(7, Decimal("1.50"), "x", currency="USD", note=(1, 2))
    [(task, args, queue, state)] = rows(connection, "task, args, queue, state")
    assert (task, queue, state) == ("charge", "celery", "queued")
    assert args == {"order_id": 7, "amount": {"$decimal": "1.50"}, "*": ["x"], "currency": "USD", "note": {"$tuple": [1, 2]}}
    assert result.state == states.PENDING
    assert connection.execute("SELECT key FROM jobrunner.job_references WHERE space = 'celery'").fetchall() == [(result.id,)]


@pytest.mark.parametrize(("broker", "stored"), [(None, [-9, 0, 0]), ("redis://x", [9, 0, 0]), ("amqp://x", [-9, 0, 0])])
def test_priorities_keep_the_direction_of_the_broker(dsn, connection, monkeypatch, broker, stored):
    """Higher runs first, as with AMQP; with an address of Redis lower does. In the row lower runs first."""
    monkeypatch.setenv("JOBRUNNER_DSN", dsn)
    app = Celery(broker=broker or dsn)

    @app.task
    def work():
        return None

    for priority in (9, 0, None):
        work.apply_async(priority=priority)
    assert [row[0] for row in rows(connection, "priority")] == stored


def test_countdown_and_eta(app, connection):
    """A countdown is added to the database's clock; a time without a zone is UTC; both are in `request.eta` too."""

    @app.task
    def work():
        return None

    work.apply_async(countdown=3600)
    work.apply_async(eta=datetime(2031, 5, 1, 12, 0))  # noqa: DTZ001
    work.apply_async(eta=datetime(2031, 5, 1, 12, 0, tzinfo=UTC) + timedelta(hours=1))
    found = rows(connection, "run_at - created_at, run_at, meta -> 'celery' ->> 'eta'")
    assert found[0][0] == timedelta(hours=1)
    assert [row[1] for row in found[1:]] == [datetime(2031, 5, 1, 12, tzinfo=UTC), datetime(2031, 5, 1, 13, tzinfo=UTC)]
    assert [row[2] for row in found[1:]] == ["2031-05-01T12:00:00+00:00", "2031-05-01T13:00:00+00:00"]


def test_one_call_may_not_expire_though_the_others_do(app, connection):
    """`expires=None` goes before what the task says, by `apply_async` and by name."""

    @app.task(name="work", expires=60)
    def work():
        return None

    work.delay()
    work.apply_async(expires=None)
    app.send_task("work")
    app.send_task("work", expires=None)
    assert [row[0] for row in rows(connection, "meta -> 'celery' ? 'expires'")] == [True, False, True, False]


def test_headers_of_a_publish_signal_travel(app, run):
    """What an integration adds to `headers` before the publish is in the request of the worker; both signals have Celery's arguments."""
    seen: list[object] = []

    def before(sender, body, headers, routing_key, exchange, declare, properties, retry_policy, **kwargs):
        headers["sentry-trace"] = "abc"
        args, named, embedded = body
        seen.append((sender, args, named, sorted(embedded), routing_key, exchange, headers["id"] == properties["correlation_id"]))

    def after(sender, body, headers, routing_key, exchange, **kwargs):
        seen.append((sender, headers["task"], headers["retries"], routing_key))

    signals.before_task_publish.connect(before)
    signals.after_task_publish.connect(after)

    @app.task(bind=True, name="traced")
    def traced(self, a, b):
        return self.request.get("sentry-trace")

    sent = traced.delay(1, b=2)
    run()
    assert sent.get(timeout=PATIENCE) == "abc"
    embedded = ["callbacks", "chain", "chord", "errbacks"]
    assert seen == [("traced", (1,), {"b": 2}, embedded, "celery", "", True), ("traced", "traced", 0, "celery")]


def test_a_task_of_another_code_base_is_sent_by_its_name(app, dsn, connection):
    """Arguments keep their order without their names; the task's own options and routes count when it is known."""
    app.conf.task_routes = {"theirs.*": {"queue": "theirs"}}
    app.send_task("theirs.work", args=[1, "x"], kwargs={"k": (2,)}, countdown=60)

    @app.task(name="ours", time_limit=9)
    def ours(a):
        return None

    app.finalize()
    app.send_task("ours", args=[5])
    assert rows(connection, "task, queue, args, time_limit") == [
        ("theirs.work", "theirs", {"*": [1, "x"], "k": {"$tuple": [2]}}, None), ("ours", "celery", {"a": 5}, timedelta(seconds=9)),
    ]  # fmt: skip
    other = Celery("theirs", broker=dsn, set_as_current=False)

    @other.task(name="theirs.work")
    def work(number, text, k):
        return [number, text, k]

    other.finalize()
    with testing.Jobs(other.jobs, session=None) as helper:
        helper.drain(with_scheduled=True, tasks="theirs.work")
    assert rows(connection, "result")[0][0] == [1, "x", {"$tuple": [2]}]


def test_on_commit_joins_the_transaction_and_delay_does_not(app, dsn, connection):
    """The trap of seeds: a session that is rolled back takes `delay_on_commit` with it, and never `delay`; both give the id."""

    @app.task(name="work")
    def work(number):
        return number

    engine = sa.create_engine(dsn.replace("postgresql://", "postgresql+psycopg://"))
    with Session(engine) as session:
        session.execute(sa.text("SELECT 1"))
        lost = work.apply_async_on_commit((1,), session=session)
        kept = work.delay(2)
        session.rollback()
        committed = work.apply_async_on_commit((3,), session=session)
        assert committed.state == "PENDING"
        session.commit()
    engine.dispose()
    assert [row[0]["number"] for row in rows(connection, "args")] == [2, 3]
    assert len({lost.id, kept.id, committed.id}) == 3
    assert app.backend.find(lost.id) is None
    assert app.backend.find(committed.id) is not None


def test_an_id_means_one_task_at_a_time(app, run):
    """A live task's id is refused; that of a finished one may be used again, and means the new one."""

    @app.task(name="work")
    def work(number):
        return number

    work.apply_async((1,), task_id="mine")
    with pytest.raises(DuplicateReference):
        work.apply_async((2,), task_id="mine")
    run()
    assert app.AsyncResult("mine").get(timeout=PATIENCE) == 1
    work.apply_async((3,), task_id="mine")
    assert app.AsyncResult("mine").state == "PENDING"
    run()
    assert app.AsyncResult("mine").get(timeout=PATIENCE) == 3


@pytest.mark.parametrize("place", ["session", "connection"])
def test_an_id_that_is_used_again_in_a_transaction_that_rolls_back_means_what_it_meant(app, run, dsn, place):
    """The finished task keeps its id, and so its result, until the transaction of the new one has committed."""

    @app.task(name="work")
    def work(number):
        return number

    work.apply_async((1,), task_id="mine")
    run()
    engine = sa.create_engine(dsn.replace("postgresql://", "postgresql+psycopg://"))
    with Session(engine) as session:
        for commits, result in ((False, 1), (True, 3)):
            where = {"session": session} if place == "session" else {"sql_connection": session.connection()}
            work.apply_async((3,), task_id="mine", **where)
            session.commit() if commits else session.rollback()
            run()
            assert app.AsyncResult("mine").get(timeout=PATIENCE) == result
    engine.dispose()


def test_a_database_that_is_away_is_an_operational_error(monkeypatch):
    """Celery's name for it, with the reason; the password is not in it."""
    app = Celery(broker="postgresql://shop:hunter2@127.0.0.1:1/nowhere")

    @app.task
    def work():
        return 1

    with pytest.raises(OperationalError) as caught:
        work.delay()
    assert "hunter2" not in str(caught.value)


def test_limits_are_columns(app, connection):
    """Seconds of the task, of the call, of the settings; a soft limit above the hard one is a ValueError, as in Celery."""

    @app.task(time_limit=20, soft_time_limit=10)
    def work():
        return None

    work.delay()
    work.apply_async(time_limit=5, soft_time_limit=4)
    assert rows(connection, "time_limit, soft_time_limit") == [
        (timedelta(seconds=20), timedelta(seconds=10)), (timedelta(seconds=5), timedelta(seconds=4)),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="soft_time_limit must be less"):
        work.apply_async(time_limit=1, soft_time_limit=2)
    assert issubclass(SoftTimeLimitExceeded, Exception)
    assert "soft_time_limit" in str(SoftTimeLimitExceeded())


@pytest.mark.parametrize(("options", "variable", "crashes"), [
    ({}, None, 1), ({"acks_late": True}, None, 3), ({"retry_on_worker_lost": True}, None, 3), ({}, "retry", 3), ({"acks_late": True}, "celery", 3),
])  # fmt: skip
def test_how_many_crashes_a_task_may_have(app, connection, monkeypatch, options, variable, crashes):
    """One without acks_late: at most once is not silently made at least once. JOBRUNNER_CELERY_ON_CRASH=retry flips it."""
    if variable:
        monkeypatch.setenv("JOBRUNNER_CELERY_ON_CRASH", variable)

    @app.task(**options)
    def work():
        return None

    work.delay()
    assert rows(connection, "max_crashes") == [(crashes,)]


def test_a_priority_of_the_settings_is_that_of_tasks_without_one(app, connection):
    """Of tasks of this code base and of others; the task's own and the call's go before it."""
    app.conf.task_default_priority = 3

    @app.task
    def plain():
        return None

    @app.task(priority=5)
    def urgent():
        return None

    plain.delay()
    urgent.delay()
    urgent.apply_async(priority=9)
    app.send_task("of_others")
    assert [row[0] for row in rows(connection, "priority")] == [-3, -5, -9, -3]


def test_a_broker_that_is_not_used_is_spoken_of_once(dsn, monkeypatch, caplog):
    """Where there is no worker with its table the log says it, when the app is used first; a PostgreSQL address is used. No value is shown."""
    monkeypatch.setenv("JOBRUNNER_DSN", dsn)
    shop = Celery("warned", broker="redis://:hunter2@nowhere", backend="rpc://")

    @shop.task
    def add(a, b):
        return a + b

    assert caplog.messages == []
    for _ in range(2):
        assert add.delay(1, 2).state == "PENDING"
    used = Celery("used", broker=dsn, backend=dsn.replace("postgresql://", "db+postgresql+psycopg://"))
    used.send_task("other")
    assert caplog.messages == ["broker_url and result_backend of the Celery settings are not used: tasks and results are rows of PostgreSQL"]
