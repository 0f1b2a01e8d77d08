"""Where the jobs of a test are: sessions and connections of all kinds work, and what cannot work is refused with a reason."""

from __future__ import annotations

import asyncio
import socket

import psycopg
import pytest
import sqlalchemy as sa
from flask import Flask
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from jobrunner import ConfigurationError, DatabaseUnreachable, JobRunner, JobrunnerError, SchemaMissing, SchemaOutdated, SchemaTooNew
from jobrunner.errors import NotDrained
from jobrunner.inspection import get_job, list_jobs, list_queues
from jobrunner.settings import parse_dsn
from jobrunner.testing import Jobs, rolled_back
from jobrunner.testing.draining import _Next
from tests.support.playground import PLACES, place, read, shop


@pytest.fixture
def made(dsn):
    made = shop(dsn)
    yield made
    made.jobs.close()


@pytest.fixture
def engine(dsn):
    engine = sa.create_engine(parse_dsn(dsn, "test").sqlalchemy_url)
    yield engine
    engine.dispose()


# -- places that work


def test_no_database_of_its_own_is_needed(dsn):
    """A JobRunner without a DSN works in the test's transaction; nothing is started for it."""
    made = shop(None)
    with place("connection", made.jobs, dsn) as helper:
        made.add.enqueue(1)
        assert helper.drain().counts == {"succeeded": 1}
    assert made.jobs.configured_dsn() is None


def test_a_flask_app_without_a_database_extension(dsn):
    """Each job has an app context of its own, whatever the app is made of."""
    app = Flask("plain")
    app.config["JOBRUNNER_DSN"] = dsn
    jobs = JobRunner(app, wakeups=False)
    torn_down = []
    app.teardown_appcontext(lambda _error: torn_down.append(1))

    @jobs.task
    def name() -> str:
        from flask import current_app

        return current_app.name

    with Jobs(jobs) as helper:
        job = name.enqueue()
        helper.drain()
        assert job.result() == "plain"
        assert torn_down == [1]
        assert helper.perform(name) == "plain"
    jobs.close()


def test_test_and_jobs_may_share_a_session(made, engine, connection):
    """A session per thread, bound to the test's connection: a job commits in it, the test sees it, nothing is left."""
    registry = scoped_session(sessionmaker())

    @made.jobs.task
    def note(text: str) -> None:
        registry.execute(sa.text("INSERT INTO jobrunner.jobs (task) VALUES (:text)"), {"text": text})
        registry.commit()

    with rolled_back(engine) as joined:
        registry.configure(bind=joined)
        with Jobs(made.jobs, session=registry) as helper:
            registry.execute(sa.text("SELECT 1"))  # the test's own savepoint is open when the job commits
            note.enqueue("a")
            note.enqueue("b")
            assert helper.drain().counts == {"succeeded": 2}
            assert [job.task for job in helper.enqueued()] == ["a", "b"]
        registry.remove()
    assert connection.execute("SELECT count(*) FROM jobrunner.v_jobs").fetchone() == (0,)


def test_a_transactional_job_in_a_shared_session(dsn, engine):
    """A session per thread that test and jobs share works for transactional jobs too, when nothing is open in it."""
    registry = scoped_session(sessionmaker())
    with rolled_back(engine) as joined:
        registry.configure(bind=joined)
        made = shop(dsn)
        made.jobs.session = registry
        with Jobs(made.jobs) as helper:
            done = made.settle.enqueue(1)
            registry.commit()
            assert helper.drain(tasks=made.settle).counts == {"succeeded": 1}
            assert done.result() == 1
            made.settle.enqueue(2)
            with pytest.raises(JobrunnerError, match="ended or broke the test's transaction"):
                helper.drain(tasks=made.settle)
        registry.remove()
        made.jobs.close()


def test_a_shared_session_that_commits_for_real(made, engine, connection):
    """A job that commits the test's engine-bound session commits what it does with a worker: all of it; its end follows in the next."""
    with Session(engine) as session:

        @made.jobs.task
        def commits() -> None:
            session.commit()

        with Jobs(made.jobs, session=session) as helper:
            job = commits.enqueue()
            assert helper.drain().counts == {"succeeded": 1}
            assert job.result() is None
            session.commit()
    assert connection.execute("SELECT state FROM jobrunner.v_jobs").fetchall() == [("succeeded",)]


def test_a_session_that_a_job_leaves_open(made, engine):
    """What a job did in a session that it neither committed nor closed is undone, and does not stand in the way of its end."""
    left = []
    with engine.connect() as joined, joined.begin() as transaction, Jobs(made.jobs, connection=joined) as helper:

        @made.jobs.task
        def leaves() -> None:
            session = Session(joined)
            session.execute(sa.text("INSERT INTO jobrunner.jobs (task) VALUES ('x')"))
            left.append(session)

        leaves.enqueue()
        assert helper.drain().counts == {"succeeded": 1}
        assert helper.enqueued() == []
        left[0].close()
        made.add.enqueue(1)
        assert helper.drain().counts == {"succeeded": 1}
        transaction.rollback()


def test_a_job_that_breaks_the_connection_itself(made, engine):
    """A statement that fails outside of any session costs the attempt, not the test's transaction."""
    with engine.connect() as joined, joined.begin() as transaction, Jobs(made.jobs, connection=joined) as helper:

        @made.jobs.task(max_attempts=1)
        def breaks() -> None:
            joined.execute(sa.text("SELECT nothing"))

        job = breaks.enqueue()
        with pytest.raises(ProgrammingError):
            helper.drain()
        assert job.refresh().state == "failed"
        transaction.rollback()


@pytest.mark.parametrize("how", ["rollback", "close", "break"])
def test_a_job_that_ends_the_tests_transaction(made, engine, how):
    """When the outcome cannot be written because the transaction is gone or unusable, the error says that, and whose fault it is."""
    with engine.connect() as joined:
        joined.begin()
        if how == "break":
            joined.begin_nested()

        @made.jobs.task
        def ends() -> None:
            if how == "break":
                joined.execute(sa.text("SELECT nothing"))
            getattr(joined, how)()

        with Jobs(made.jobs, connection=joined) as helper:
            ends.enqueue()
            with pytest.raises(JobrunnerError, match="ended or broke the test's transaction") as caught:
                helper.drain()
        if how == "break":
            assert isinstance(caught.value.__cause__, ProgrammingError)
            assert "it had raised ProgrammingError" in str(caught.value)


def test_a_transaction_of_its_own_is_a_savepoint(made, engine):
    """A Session on the JobRunner's database commits and rolls back inside the test's transaction, as code that opens one would."""
    with rolled_back(engine) as joined, Jobs(made.jobs, connection=joined) as helper:
        for end in ("commit", "rollback", "close"):
            with Session(made.jobs.database.engine.execution_options(isolation_level="READ COMMITTED")) as session:
                for _ in range(2):
                    session.execute(sa.text("INSERT INTO jobrunner.jobs (task) VALUES (:end)"), {"end": end})
                getattr(session, end)()
        assert [job.task for job in helper.enqueued()] == ["commit", "commit"]


def test_an_idle_time_out_ends_with_its_job(made, engine):
    """A time-out that a job sets for the rest of its transaction does not end the test's transaction later."""
    with rolled_back(engine) as joined, Jobs(made.jobs, connection=joined) as helper:

        @made.jobs.task
        def sets() -> None:
            with Session(made.jobs.database.engine) as session:
                session.execute(sa.text("SET LOCAL idle_in_transaction_session_timeout = '5s'"))
                session.commit()

        sets.enqueue()
        before = read(helper, "SHOW idle_in_transaction_session_timeout")
        helper.drain()
        assert read(helper, "SHOW idle_in_transaction_session_timeout") == before


def test_inspection_sees_the_tests_jobs(made, dsn):
    """The verbs behind the pages read inside the test's transaction, and leave it writable."""
    for where in ("session", "psycopg2"):
        with place(where, made.jobs, dsn) as helper:
            job = made.send.enqueue(1)
            assert [row.id for row in list_jobs(made.jobs.database).items] == [job.id]
            assert [row.queue for row in list_queues(made.jobs.database)] == ["mail"]
            assert get_job(made.jobs.database, job.id).job.state == "queued"
            assert helper.drain().counts == {"succeeded": 1}
        with psycopg.connect(dsn) as other:
            assert other.execute("SELECT count(*) FROM jobrunner.v_jobs").fetchone() == (0,), "reading has committed the test's transaction"


def test_a_job_that_another_session_holds_is_left(made, dsn, connection):
    """As a worker does, a drain skips a row that somebody has locked, instead of waiting for it."""
    first, second = made.add.enqueue(1), made.add.enqueue(2)
    with psycopg.connect(dsn) as other, place("committed", made.jobs, dsn) as helper:
        other.execute("SELECT FROM jobrunner.jobs WHERE id = %s FOR UPDATE", (first.id,))
        assert helper.drain().jobs == [second]
        other.rollback()
        assert helper.drain().jobs == [first]


# -- what is refused


def test_without_a_database_there_is_no_test():
    """No DSN and no transaction: refused, and no embedded PostgreSQL is started behind the test's back."""
    made = shop(None)
    with pytest.raises(ConfigurationError, match="no database is configured for the tests"), Jobs(made.jobs):
        pass


def test_a_database_that_does_not_answer():
    """The reason, in words."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    made = shop(f"postgresql://nobody@127.0.0.1:{port}/none")
    with pytest.raises(DatabaseUnreachable, match="connection refused"), Jobs(made.jobs):
        pass


@pytest.mark.parametrize("where", PLACES)
def test_the_schema_must_fit(where, empty_dsn, fresh_dsn):
    """A schema that is missing, older or newer is refused before anything else, in every place."""
    for version, error in ((None, SchemaMissing), ("0000", SchemaTooNew), ("0001", SchemaOutdated)):
        dsn = empty_dsn if version is None else fresh_dsn
        made = shop(dsn)
        if version is not None:
            with psycopg.connect(dsn) as admin:
                admin.execute("UPDATE jobrunner.alembic_version SET version_num = %s", (version,))
        with pytest.raises(error), place(where, made.jobs, dsn):
            pass
        made.jobs.close()


def test_connections_that_cannot_be_the_tests(made, engine):
    """No transaction, none that could be, closed, another database, another driver, no connection at all: each has its sentence."""
    with engine.connect() as idle:
        refused(made, "no transaction is open", connection=idle)
    refused(made, "the connection is closed", connection=idle)
    autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
    with autocommit.connect() as automatic, automatic.begin():
        refused(made, "AUTOCOMMIT", connection=automatic)
    with Session(autocommit) as session:
        refused(made, "AUTOCOMMIT", session=session)
    lite = sa.create_engine("sqlite://")
    with lite.connect() as other, other.begin():
        refused(made, "connected to sqlite", connection=other)
    lite.dispose()
    with engine.connect() as strange, strange.begin():
        engine.dialect.driver = "pg8000"
        refused(made, "the driver pg8000", connection=strange)
    refused(made, "expected a SQLAlchemy Connection, not Engine", connection=engine)
    refused(made, "session=Engine: expected", session=engine)
    refused(made, "give one of the two", connection=strange, session=session)


def refused(made, words: str, **options) -> None:
    with pytest.raises(ConfigurationError, match=words), Jobs(made.jobs, **options):
        pass


def test_a_database_that_a_worker_serves(made, dsn, connection):
    """A drain beside a living worker would share its jobs: refused, with the worker's name."""
    connection.execute(
        "INSERT INTO jobrunner.workers (name, host, pid, kind, version, queues, tasks, slots, lease_expires_at)"
        " VALUES ('web-1', 'blade', 1, 'daemon', '0', '{}', '{}', 1, now() + interval '1 hour')"
    )
    for where in PLACES:
        with place(where, made.jobs, dsn) as helper:
            made.add.enqueue(1)
            with pytest.raises(ConfigurationError, match="the worker web-1 on blade serves this database"):
                helper.drain()
            assert len(helper.enqueued()) >= 1


def test_a_running_event_loop(made, dsn):
    """An async job inside of an event loop is refused and stays queued; in a thread of its own, and for other tasks, all is well."""
    with place("committed", made.jobs, dsn) as helper:
        job = made.asynchronous.enqueue(1)

        async def test() -> None:
            made.add.enqueue(1)
            assert helper.drain(tasks="add").counts == {"succeeded": 1}
            with pytest.raises(ConfigurationError, match="runs an event loop already"):
                helper.drain()
            with pytest.raises(ConfigurationError, match="runs an event loop already"):
                helper.perform(made.asynchronous, 1)
            assert job.refresh().state == "queued"
            assert (await asyncio.to_thread(helper.drain)).counts == {"succeeded": 1}

        asyncio.run(test())
        assert job.result() == 2


def test_a_job_that_somebody_else_took(made, dsn):
    """A job that is gone between the look and the claim is an error, since a test's database is its own."""
    with place("committed", made.jobs, dsn) as helper:
        _, drainer, _ = helper._in_use()
        with pytest.raises(NotDrained, match="was taken by somebody else"):
            drainer._claimed(_Next(10**9, "add", "default", 0, helper.clock.now(), None), 1, 0)


def test_a_helper_is_for_its_block(made, dsn):
    """Before and after its block, and beside another one, a helper is refused."""
    helper = Jobs(made.jobs)
    for _ in range(2):
        for call in (helper.drain, helper.enqueued, helper.clock.now, lambda: helper.clock.advance(hours=1), helper.immediate().__enter__):
            with pytest.raises(ConfigurationError, match="not in use"):
                call()
        assert "not in use" in repr(helper)
        with helper:
            assert "not in use" not in repr(helper)
            refused(made, "in use for .* already")
            assert read(helper, "SELECT 1") == [(1,)]
    with helper:
        made.add.enqueue(1)
        assert helper.drain().counts == {"succeeded": 1}
