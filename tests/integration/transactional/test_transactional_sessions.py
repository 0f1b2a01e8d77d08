"""Transactional tasks in the sessions that applications have, and what stands in their way: dead connections, locks, isolation."""

from __future__ import annotations

import psycopg
import pytest
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from jobrunner import Cancel, JobRunner, current_job
from jobrunner.jobs import LogLine, Note
from jobrunner.settings import parse_dsn
from tests.support.attempts import Attempts, Notes
from tests.support.settling import EFFECT, effects, failure, register, states
from tests.support.waiting import wait_until


def test_the_applications_own_session(dsn, connection):
    """With JobRunner(app, session=db.session) body and application code share one session; each job begins with a clean one."""
    app = Flask("shop")
    app.config["SQLALCHEMY_DATABASE_URI"] = parse_dsn(dsn, "test").sqlalchemy_url
    db = SQLAlchemy(app)
    jobs = JobRunner(app, session=db.session, wakeups=False)
    seen = []

    @jobs.task
    def child() -> None: ...

    @jobs.task(transactional=True)
    def settle(number: int, *, session: Session) -> None:
        seen.append(session is db.session())
        db.session.execute(EFFECT, {"number": number})
        child.enqueue()
        if number == 1:
            raise Cancel

    attempts = Attempts(jobs, dsn)
    for number in (1, 2):
        settle.options(session=None).enqueue(number)
        attempts.run()
    assert seen == [True, True]
    assert effects(connection) == [2]
    assert states(connection) == {"running": 1, "succeeded": 1, "queued": 1}
    with app.app_context():
        db.engine.dispose()
    attempts.close()


@pytest.mark.parametrize("how", ["remove", "close"])
def test_a_session_that_the_body_gives_up(dsn, connection, engine, how):
    """After session.remove() the body writes somewhere else: refused. session.close() is a rollback, and what follows commits."""
    registry = scoped_session(sessionmaker(engine))
    jobs = JobRunner(dsn=dsn, session=registry, wakeups=False)

    @jobs.task(transactional=True)
    def settle(*, session: Session) -> None:
        registry.execute(EFFECT, {"number": 1})
        registry.remove() if how == "remove" else registry.close()
        registry.execute(EFFECT, {"number": 2})

    attempts = Attempts(jobs, dsn)
    settle.options(session=None).enqueue()
    line = attempts.run()
    registry.remove()
    if how == "remove":
        assert "gave up its session (session.remove())" in failure(line)[2]
        assert effects(connection) == []
    else:
        assert line[2] == "done"
        assert effects(connection) == [2]
    attempts.close()


def test_a_function_that_makes_sessions(dsn, connection, engine):
    """`session=` may be a function; the session that it makes for the job is closed with the job."""
    made = []

    def make() -> Session:
        made.append(Session(engine))
        return made[-1]

    jobs = JobRunner(dsn=dsn, session=make, wakeups=False)

    @jobs.task(transactional=True)
    def settle(*, session: Session) -> None:
        session.execute(EFFECT, {"number": 1})

    attempts = Attempts(jobs, dsn)
    settle.options(session=None).enqueue()
    assert attempts.run()[2] == "done"
    assert effects(connection) == [1]
    assert engine.pool.checkedout() == 0
    attempts.close()


def test_sessions_that_cannot_keep_the_promise(dsn, empty_dsn, connection):
    """A session in autocommit, on another database or on none is refused, before the body has written where that is possible."""
    url, other = parse_dsn(dsn, "test").sqlalchemy_url, parse_dsn(empty_dsn, "test").sqlalchemy_url
    autocommit, elsewhere = sa.create_engine(url, isolation_level="AUTOCOMMIT"), sa.create_engine(other)
    with elsewhere.begin() as connected:
        connected.execute(sa.text("CREATE TABLE test_effects (number integer)"))
    for make, words in (
        (lambda: Session(autocommit), "isolation_level='AUTOCOMMIT'"),
        (lambda: Session(elsewhere), "needs the application's session on the database of the jobs"),
        (Session, "has no database for the tables of jobs"),
    ):
        jobs = JobRunner(dsn=dsn, session=make, wakeups=False)

        @jobs.task(transactional=True)
        def settle(*, session: Session) -> None:
            session.execute(EFFECT, {"number": 1})

        attempts = Attempts(jobs, dsn)
        settle.options(session=None).enqueue()
        assert words in failure(attempts.run())[2]
        attempts.close()
    assert effects(connection) == []
    with psycopg.connect(empty_dsn) as there:
        assert effects(there) == []
    autocommit.dispose()
    elsewhere.dispose()


def test_a_connection_that_died_in_the_pool_costs_no_attempt(jobs, attempts, connection):
    """After a restart of the server, or of a pooler, the next transactional job succeeds at its first attempt."""

    def body(session, child):
        session.execute(EFFECT, {"number": 1})
        return session.scalar(sa.text("SELECT pg_backend_pid()"))

    settle = register(jobs, body)
    first = settle.enqueue()
    assert attempts.run()[2] == "done"
    pid = first.result(timeout=1)
    settle.enqueue()
    connection.execute("SELECT pg_terminate_backend(%s)", (pid,))
    gone = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s"
    wait_until(lambda: connection.execute(gone, (pid,)).fetchone() == (0,), timeout=10, what="the backend to be gone")
    assert attempts.run()[2] == "done"
    assert effects(connection) == [1, 1]


def test_locks_of_an_attempt_that_stands_still_are_taken_away(jobs, attempts, connection, dsn):
    """An earlier attempt that holds a row for ever, its process frozen, does not keep the next one waiting: its session is ended."""
    connection.execute("INSERT INTO test_effects VALUES (7)")
    change = sa.text("UPDATE test_effects SET number = number + 1")

    def body(session, child):
        session.execute(change)

    settle = register(jobs, body)
    settle.enqueue()
    claimed = attempts.claim()
    with psycopg.connect(dsn) as frozen:
        frozen.execute("SELECT set_config('application_name', %s, true)", (f"jobrunner job {claimed.id} lease {claimed.lease}",))
        frozen.execute(change.text)
        attempts.supersede(claimed)
        assert attempts.run(claimed._replace(lease=claimed.lease + 1))[2] == "done"
        with pytest.raises(psycopg.OperationalError):
            frozen.execute("SELECT 1")
        frozen.close()
    assert effects(connection) == [8]


def test_the_server_shows_which_job_holds_a_transaction(jobs, attempts, connection):
    """pg_stat_activity names job and lease while the transaction is open, and no longer than that."""
    shown = "SELECT application_name FROM pg_stat_activity WHERE pid = %s"
    pids = []

    def body(session, child):
        pids.append(session.scalar(sa.text("SELECT pg_backend_pid()")))
        return connection.execute(shown, (pids[0],)).fetchone()[0]

    job = register(jobs, body).enqueue()
    attempts.run()
    assert job.result(timeout=1) == f"jobrunner job {job.id} lease 1"
    assert connection.execute(shown, (pids[0],)).fetchone() == ("jobrunner",)


def test_times_are_those_of_the_end(jobs, attempts, connection):
    """A job whose transaction was long has begun when it began and finished when it finished, not when its transaction began."""

    def body(session, child):
        session.execute(sa.text("SELECT pg_sleep(0.4)"))

    register(jobs, body).enqueue()
    attempts.run()
    [(run, early)] = connection.execute(
        "SELECT finished_at - started_at BETWEEN interval '0.35 s' AND interval '10 s', started_at < created_at FROM jobrunner.job_history"
    ).fetchall()
    assert (run, early) == (True, False)


def test_last_words_are_in_the_history(jobs, attempts, connection):
    """The last progress is written with the job's end, also what was held back; nothing is said after it."""
    voice = Notes()

    def body(session, child):
        for number in range(1000):
            current_job().progress(number / 1000, f"row {number}")

    register(jobs, body).enqueue()
    assert attempts.run(voice=voice)[2] == "done"
    assert connection.execute("SELECT progress, progress_text FROM jobrunner.job_history").fetchall() == [(0.999, "row 999")]
    assert len(voice.heard) < 300


def test_above_read_committed_the_conflict_is_explained(dsn, connection, engine):
    """Under REPEATABLE READ a write about the job while it runs makes its end fail, with a note that says why; nothing is committed."""
    jobs = JobRunner(dsn=dsn, session=lambda: Session(engine.execution_options(isolation_level="REPEATABLE READ")), wakeups=False)

    @jobs.task(transactional=True)
    def settle(*, session: Session) -> None:
        session.execute(EFFECT, {"number": 1})
        connection.execute("UPDATE jobrunner.jobs SET progress = 0.5")

    attempts = Attempts(jobs, dsn)
    settle.options(session=None).enqueue()
    line = attempts.run()
    assert "SerializationFailure" in failure(line)[2]
    assert "Above READ COMMITTED" in line[5]
    assert effects(connection) == []
    attempts.close()


def test_the_job_of_another_application_is_no_child(jobs, attempts, connection, fresh_dsn):
    """A task that enqueues for another JobRunner, on another database, writes there at once: no parent, no fence, not this session."""
    other = JobRunner(dsn=fresh_dsn, wakeups=False)

    @other.task
    def elsewhere() -> None: ...

    def body(session, child):
        elsewhere.enqueue()
        elsewhere.enqueue_many([()])

    register(jobs, body).enqueue()
    assert attempts.run()[2] == "done"
    with psycopg.connect(fresh_dsn) as there:
        assert there.execute("SELECT parent_id FROM jobrunner.jobs").fetchall() == [(None,), (None,)]
    other.close()


def test_what_an_attempt_said_just_before_its_end_is_kept(jobs, attempts, connection):
    """Lines and progress that the worker writes after the job has ended itself belong to it; those of other leases do not."""

    def body(session, child): ...

    register(jobs, body).enqueue()
    claimed = attempts.claim()
    attempts.run(claimed)
    lines = [LogLine(claimed.id, lease, 1, 20, "shop", f"lease {lease}", 1.0) for lease in (claimed.lease, claimed.lease + 1)]
    assert attempts.store.log(lines) == 1
    assert connection.execute("SELECT message, attempt FROM jobrunner.job_logs").fetchall() == [("lease 1", 1)]
    notes = [Note(claimed.id, lease, 0.5) for lease in (claimed.lease, claimed.lease + 1)]
    assert attempts.store.note(notes) == {(claimed.id, claimed.lease)}
