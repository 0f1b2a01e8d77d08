"""A job written straight to psycopg inside a caller's transaction: nobody can tell it from one that went through SQLAlchemy."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobrunner import JobRunner, direct
from jobrunner.settings import parse_dsn

if TYPE_CHECKING:
    from collections.abc import Iterator

EVENTS = ("before_execute", "after_execute", "before_cursor_execute", "after_cursor_execute")


@pytest.fixture
def task(dsn):
    jobs = JobRunner(dsn=dsn, wakeups=False)

    @jobs.task
    def send(user_id: int) -> None: ...

    yield send
    jobs.close()


@pytest.fixture
def url(dsn) -> str:
    return parse_dsn(dsn, "test").sqlalchemy_url


@pytest.fixture
def engine(url) -> Iterator[sa.Engine]:
    engine = sa.create_engine(url)
    yield engine
    engine.dispose()


@pytest.fixture(params=["straight", "through SQLAlchemy"])
def session(request, engine) -> Iterator[Session]:
    """One session on each way: a listener forces the long one."""
    if request.param != "straight":
        sa.event.listen(engine, "after_cursor_execute", lambda *_: None)
    with Session(engine) as session:
        assert (direct.driver_of(session.connection()) is not None) == (request.param == "straight")
        yield session


def stored(connection) -> list[int]:
    return [row[0] for row in connection.execute("SELECT (args->>'user_id')::int FROM jobrunner.jobs ORDER BY id")]


def test_both_ways_write_the_same_rows(session, task, connection):
    """Savepoint, rollback and commit decide over the job, whichever way it took."""
    task.options(session=session).enqueue(1)
    with session.begin_nested() as savepoint:
        task.options(session=session).enqueue(2)
        savepoint.rollback()
    with session.begin_nested():
        task.options(session=session).enqueue(3)
    assert stored(connection) == []
    session.commit()
    task.options(session=session).enqueue(4)
    session.rollback()
    assert stored(connection) == [1, 3]


def test_an_error_is_sqlalchemys_on_both_ways(session, task):
    """A caller who catches SQLAlchemy's errors goes on catching them, with psycopg's inside and the statement in the message."""
    session.execute(sa.text("SET LOCAL search_path TO public"))
    session.execute(sa.text("DROP TABLE jobrunner.jobs CASCADE"))
    with pytest.raises(sa.exc.ProgrammingError, match=r"INSERT INTO jobrunner\.jobs") as caught:
        task.options(session=session).enqueue(1)
    assert type(caught.value.orig).__name__ == "UndefinedTable"
    assert not caught.value.connection_invalidated
    session.rollback()
    assert session.scalar(sa.text("SELECT to_regclass('jobrunner.jobs') IS NOT NULL"))


def test_a_lost_connection_is_invalidated_on_both_ways(session, task, connection):
    """After the server ended the caller's connection a rollback is enough to go on, on a new one."""
    pid = session.scalar(sa.text("SELECT pg_backend_pid()"))
    connection.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
    with pytest.raises(sa.exc.OperationalError) as caught:
        task.options(session=session).enqueue(1)
    assert caught.value.connection_invalidated
    session.rollback()
    task.options(session=session).enqueue(2)
    session.commit()
    assert stored(connection) == [2]


@pytest.mark.parametrize("savepoint", [False, True])
def test_a_transaction_that_must_be_rolled_back_takes_no_job(engine, task, savepoint):
    """What SQLAlchemy refuses after a failed commit or savepoint it refuses for jobs too."""
    with engine.connect() as connected:
        outer = connected.begin()
        inner = connected.begin_nested() if savepoint else None
        (inner or outer).rollback()
        assert direct.driver_of(connected) is None or savepoint
        if inner is None:
            task.options(connection=connected).enqueue(1)  # a new transaction begins by itself, as with any statement
            connected.rollback()
        else:
            task.options(connection=connected).enqueue(1)
            outer.rollback()
    with engine.connect() as connected:
        connected.begin()
        broken = connected.begin_nested()
        with pytest.raises(sa.exc.DBAPIError):
            connected.execute(sa.text("SELECT 1 / 0"))
        broken.close()
        task.options(connection=connected).enqueue(2)
        connected.rollback()


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("where", ["engine", "connection"])
def test_whoever_listens_sees_the_statement(engine, task, event, where):
    """Tracing, query counters and slow-query logs miss no job, also when they come late."""
    seen: list[Any] = []
    with engine.begin() as connected:
        task.options(connection=connected).enqueue(1)
        sa.event.listen(engine if where == "engine" else connected, event, lambda *arguments: seen.append(arguments))
        task.options(connection=connected).enqueue(2)
    assert len(seen) == 1


def test_a_handler_of_errors_is_asked(engine, task):
    """An application that turns database errors into its own gets its own."""
    sa.event.listen(engine, "handle_error", lambda context: (_ for _ in ()).throw(LookupError(str(context.original_exception))))
    with engine.connect() as connected:
        connected.execute(sa.text("DROP TABLE jobrunner.jobs CASCADE"))
        with pytest.raises(LookupError, match="does not exist"):
            task.options(connection=connected).enqueue(1)
        connected.rollback()


def test_the_log_of_statements_has_it(url, task, caplog):
    """`echo=True`, or the logger's level, shows the INSERT."""
    engine = sa.create_engine(url)
    with caplog.at_level(logging.INFO, "sqlalchemy.engine"), engine.begin() as connected:
        task.options(connection=connected).enqueue(1)
    engine.dispose()
    assert "INSERT INTO jobrunner.jobs" in caplog.text


def test_a_row_factory_of_the_caller_does_not_matter(url, task, connection):
    """The id is read by position, whatever the caller's own cursors give."""
    from psycopg.rows import tuple_row

    engine = sa.create_engine(url)

    @sa.event.listens_for(engine, "connect")
    def prepare(driver, _record):
        driver.row_factory = lambda cursor: lambda values: [*reversed(tuple_row(cursor)(values))] if len(values) > 1 else ("not", *values)

    with engine.connect() as connected:
        connected.begin()
        job = task.options(connection=connected).enqueue(1)
        connected.commit()
    engine.dispose()
    assert connection.execute("SELECT id FROM jobrunner.jobs").fetchall() == [(job.id,)]


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
def test_every_driver_writes_jobs(dsn, task, connection, driver):
    """A driver other than psycopg, or a dialect of the caller's own, goes through SQLAlchemy."""
    engine = sa.create_engine(parse_dsn(dsn, "test").sqlalchemy_url.replace("+psycopg", f"+{driver}"))
    with Session(engine) as session:
        assert (direct.driver_of(session.connection()) is not None) == (driver == "psycopg")
        task.options(session=session).enqueue(1)
        task.options(session=session).enqueue_many([(2,), (3,)])
        session.commit()
    engine.dispose()
    assert stored(connection) == [1, 2, 3]
