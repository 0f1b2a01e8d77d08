"""Jobs written in a caller's Session or Connection exist exactly when that commits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker

from jobrunner import ConfigurationError, InvalidPayload, JobRunner
from jobrunner.settings import parse_dsn

if TYPE_CHECKING:
    from collections.abc import Iterator


def send(user_id: int, *, loud: bool = False) -> str:
    return str(user_id) + "!" * loud


def build(dsn: str, **options: Any) -> JobRunner:
    options = {"wakeups": False, **options}
    jobs = JobRunner(dsn=dsn, **options)
    jobs.task(send)
    return jobs


@pytest.fixture
def jobs(dsn) -> Iterator[JobRunner]:
    jobs = build(dsn)
    yield jobs
    jobs.close()


@pytest.fixture
def task(jobs):
    return jobs.registry.get("send")


@pytest.fixture
def engine(dsn) -> Iterator[sa.Engine]:
    engine = sa.create_engine(parse_dsn(dsn, "test").sqlalchemy_url)
    yield engine
    engine.dispose()


def count(connection) -> Any:
    return connection.execute("SELECT count(*) FROM jobrunner.jobs").fetchone()[0]


def row(connection, job_id: int, *columns: str) -> Any:
    return connection.execute(f"SELECT {', '.join(columns)} FROM jobrunner.jobs WHERE id = %s", (job_id,)).fetchone()


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "test_orders"
    id: Mapped[int] = mapped_column(primary_key=True)


@pytest.mark.parametrize("many", [False, True])
def test_a_session_decides_over_its_jobs(task, connection, engine, many):
    """Nothing is visible before the session commits; after a rollback nothing ever was."""

    def write(session):
        if many:
            return list(task.options(session=session).enqueue_many([(number,) for number in range(700)]))
        return [task.options(session=session).enqueue(1).id]

    with Session(engine) as session:
        write(session)
        assert count(connection) == 0
        session.rollback()
        assert count(connection) == 0
        ids = write(session)
        assert count(connection) == 0
        session.commit()
    assert count(connection) == len(ids)


@pytest.mark.parametrize("many", [1, 700])
def test_a_connection_decides_over_its_jobs(task, connection, engine, many):
    """The same for a Core connection, with COPY inside the caller's transaction."""
    with engine.connect() as connected:
        task.options(connection=connected).enqueue_many([(number,) for number in range(many)])
        task.options(connection=connected).enqueue(1)
        connected.rollback()
        assert count(connection) == 0
        with connected.begin():
            task.options(connection=connected).enqueue_many([(number,) for number in range(many)])
            assert count(connection) == 0
    assert count(connection) == many


def test_savepoints_are_respected(task, connection, engine):
    """A savepoint that is rolled back takes its jobs with it, and only those."""
    with Session(engine) as session:
        keep = [task.options(session=session).enqueue(1).id]
        with session.begin_nested() as savepoint:
            task.options(session=session).enqueue(2)
            task.options(session=session).enqueue_many([(number,) for number in range(600)])
            savepoint.rollback()
        with session.begin_nested():
            keep.append(task.options(session=session).enqueue(3).id)
        session.commit()
    assert [found[0] for found in connection.execute("SELECT id FROM jobrunner.jobs ORDER BY id")] == keep


def test_a_refused_batch_leaves_the_callers_transaction_alone(task, connection, engine):
    """InvalidPayload comes before anything is sent, so the caller may go on."""
    with Session(engine) as session:
        kept = task.options(session=session).enqueue(1)
        with pytest.raises(InvalidPayload):
            task.options(session=session).enqueue_many([*[(number,) for number in range(700)], ("x",)])
        with pytest.raises(InvalidPayload):
            task.options(session=session).enqueue("x")
        session.commit()
    assert row(connection, kept.id, "task") == ("send",)


def test_the_default_session_is_resolved_at_each_call(dsn, connection, engine):
    """With JobRunner(session=…) every enqueue goes to the session of the moment; `session=None` asks for an own transaction."""
    registry = scoped_session(sessionmaker(engine))
    jobs = build(dsn, session=registry)
    task = jobs.registry.get("send")
    task.enqueue(1)
    task.enqueue_many([(2,)])
    assert count(connection) == 0
    own = task.options(session=None).enqueue(3)
    assert count(connection) == 1
    with engine.begin() as connected:
        task.options(connection=connected).enqueue(4)
    assert count(connection) == 2
    registry.rollback()
    registry.remove()
    assert count(connection) == 2
    task.enqueue(5)
    registry.commit()
    registry.remove()
    assert count(connection) == 3
    assert own.refresh().state == "queued"
    jobs.close()


def test_flask_sqlalchemy_writes_both_or_neither(dsn, connection):
    """A view that writes its own row and a job in `db.session` has both after commit, none after an error."""
    app = Flask("shop")
    app.config["SQLALCHEMY_DATABASE_URI"] = parse_dsn(dsn, "test").sqlalchemy_url
    db = SQLAlchemy(app, model_class=Base)
    jobs = JobRunner(app, session=db.session, wakeups=False)
    task = jobs.task(send)
    with app.app_context():
        db.metadata.create_all(db.engine, tables=[db.metadata.tables["test_orders"]])

    @app.post("/orders/<int:number>/<outcome>")
    def order(number, outcome):
        db.session.add(Order(id=number))
        task.enqueue(number)
        if outcome == "error":
            db.session.rollback()
            return "no"
        db.session.commit()
        return "yes"

    client = app.test_client()
    client.post("/orders/1/error")
    assert (count(connection), connection.execute("SELECT count(*) FROM test_orders").fetchone()[0]) == (0, 0)
    client.post("/orders/2/fine")
    assert connection.execute("SELECT args->>'user_id', (SELECT id FROM test_orders) FROM jobrunner.jobs").fetchall() == [("2", 2)]
    with app.app_context():
        assert jobs.dsn.origin == "SQLALCHEMY_DATABASE_URI of the Flask config"
        db.session.remove()
        connection.execute("DROP TABLE test_orders")
        db.engine.dispose()
    jobs.close()


def test_other_things_than_sessions_are_refused(task, engine):
    """A wrong object in `session=` or `connection=` is named, with the right one."""
    with pytest.raises(ConfigurationError, match="session=Engine"):
        task.options(session=engine).enqueue(1)
    with pytest.raises(ConfigurationError, match="connection=Session"), Session(engine) as session:
        task.options(connection=session).enqueue(1)
