"""A transactional task's writes, the jobs it enqueues and the end of its job are one transaction, whatever its body does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from jobrunner import Cancel, Fail, JobRunner, Retry, Snooze, current_job
from jobrunner.current import JobContext, running
from jobrunner.errors import ConfigurationError, LeaseLost
from jobrunner.jobs import LogLine, Note
from jobrunner.settings import parse_dsn
from jobrunner.worker import transactions
from tests.support.attempts import Attempts, Notes
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

EFFECT = sa.text("INSERT INTO test_effects VALUES (:number)")


@pytest.fixture(autouse=True)
def _effects(connection) -> Iterator[None]:
    connection.execute("SET lock_timeout = '10s'")  # a test that leaves a transaction open fails here instead of standing still
    connection.execute("CREATE TABLE test_effects (number integer)")
    yield
    connection.execute("DROP TABLE test_effects")


@pytest.fixture
def jobs(dsn) -> JobRunner:
    return JobRunner(dsn=dsn, wakeups=False)


@pytest.fixture
def attempts(jobs, dsn) -> Iterator[Attempts]:
    opened = Attempts(jobs, dsn)
    yield opened
    opened.close()


@pytest.fixture
def engine(dsn) -> Iterator[sa.Engine]:
    made = sa.create_engine(parse_dsn(dsn, "test").sqlalchemy_url)
    yield made
    made.dispose()


def effects(connection) -> list[int]:
    return [row[0] for row in connection.execute("SELECT number FROM test_effects ORDER BY number")]


def states(connection) -> dict[str, int]:
    return dict(connection.execute("SELECT state, count(*) FROM jobrunner.v_jobs GROUP BY state").fetchall())


def register(jobs, body, **options: Any):
    """A transactional task `settle` that runs `body(session)`, and a plain one to enqueue."""

    @jobs.task
    def child(number: int) -> None: ...

    @jobs.task(transactional=True, **options)
    def settle(*, session: Session) -> Any:
        return body(session, child)

    return settle


def failure(line) -> tuple[str, str, str]:
    """Ending, type and message of an attempt that did not succeed."""
    return line[2], line[3], line[4]


def test_writes_children_and_end_are_there_together(jobs, attempts, connection):
    """Before the commit nothing is visible; after it the effect, the child with its parent, and the job's end with its result."""
    seen = []

    def body(session, child):
        session.execute(EFFECT, {"number": 1})
        child.enqueue(1)
        child.enqueue_many([(number,) for number in range(600)])
        session.flush()
        seen.append((effects(connection), states(connection)))
        return {"settled": 1}

    job = register(jobs, body).enqueue()
    assert attempts.run()[2] == "done"
    assert seen == [([], {"running": 1})]
    assert effects(connection) == [1]
    assert states(connection) == {"succeeded": 1, "queued": 601}
    assert connection.execute("SELECT DISTINCT parent_id FROM jobrunner.jobs").fetchall() == [(job.id,)]
    assert job.result(timeout=1) == {"settled": 1}


@pytest.mark.parametrize("many", [1, 3, 600])
def test_a_superseded_attempt_leaves_nothing(jobs, attempts, connection, many):
    """An attempt that is superseded amid its body commits nothing, its children neither; the row is the other attempt's."""

    def body(session, child):
        session.execute(EFFECT, {"number": 1})
        child.enqueue_many([(number,) for number in range(many)])
        attempts.supersede(claimed)

    register(jobs, body).enqueue()
    claimed = attempts.claim()
    assert failure(attempts.run(claimed))[1] == "jobrunner.errors.LeaseLost"
    assert effects(connection) == []
    assert connection.execute("SELECT state, lease FROM jobrunner.v_jobs").fetchall() == [("running", 2)]


def test_a_superseded_attempt_enqueues_nothing(jobs, attempts, connection):
    """Enqueueing from a superseded attempt raises LeaseLost: one, a unique one, few and many, in the job's transaction or their own."""
    raised: list[tuple[int, int]] = []

    def body(session, child):
        attempts.supersede(claimed)
        for own in ({}, {"session": None}):
            for call in (
                lambda own=own: child.options(**own).enqueue(1),
                lambda own=own: child.options(unique=True, **own).enqueue(1),
                lambda own=own: child.options(unique=True, **own).enqueue_many([(1,), (2,)]),
                lambda own=own: child.options(**own).enqueue_many([(1,), (2,)]),
                lambda own=own: child.options(**own).enqueue_many([(number,) for number in range(600)]),
            ):
                with pytest.raises(LeaseLost) as refusal:
                    call()
                raised.append((refusal.value.job_id, refusal.value.lease))

    register(jobs, body).enqueue()
    claimed = attempts.claim()
    attempts.run(claimed)
    assert raised == [(claimed.id, claimed.lease)] * 10
    assert states(connection) == {"running": 1}


class Superseding(Mapping[str, int]):
    """The arguments of a call; another attempt takes the job over in the moment in which they are read."""

    def __init__(self, take_over: Callable[[], None]) -> None:
        self._take_over = take_over

    def __getitem__(self, name: str) -> int:
        self._take_over()
        return len(name)

    def __iter__(self) -> Iterator[str]:
        return iter(["number"])

    def __len__(self) -> int:
        return 1


def test_superseded_amid_a_long_copy(jobs, attempts, connection):
    """An attempt that is superseded while it copies children in a transaction of their own has written none of them."""
    copying = []

    def take_over():
        copying.append(connection.execute("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'COPY jobrunner.jobs%'").fetchone())
        attempts.supersede(claimed)

    def body(session, child):
        calls = [*[(number,) for number in range(1200)], Superseding(take_over)]
        with pytest.raises(LeaseLost):
            child.options(session=None).enqueue_many(calls)

    register(jobs, body).enqueue()
    claimed = attempts.claim()
    attempts.run(claimed)
    assert copying == [(1,)]
    assert states(connection) == {"running": 1}


@pytest.mark.parametrize(
    ("control", "ending"),
    [(Retry(delay=5), "retry"), (Snooze(5), "snooze"), (Cancel("gone"), "abort"), (Fail("no"), "fail"), (ValueError("x"), "retry")],
    ids=["Retry", "Snooze", "Cancel", "Fail", "ValueError"],
)
def test_what_the_body_raises_rolls_back(jobs, attempts, connection, control, ending):
    """Whatever ends the body without its return takes its writes and its children with it."""

    def body(session, child):
        session.execute(EFFECT, {"number": 1})
        child.enqueue(1)
        raise control

    register(jobs, body).enqueue()
    assert attempts.run()[2] == ending
    assert effects(connection) == []
    assert states(connection) == {"running": 1}


def test_a_result_that_cannot_be_stored_rolls_back(jobs, attempts, connection):
    """A result that is too large, or no JSON, fails the attempt and leaves no effect."""
    results: list[Any] = ["x" * 2_000_000, object()]

    def body(session, child):
        session.execute(EFFECT, {"number": 1})
        return results.pop(0)

    settle = register(jobs, body)
    for words in ("2,000,002 bytes", "cannot be stored"):
        settle.enqueue()
        ending, error, message = failure(attempts.run())
        assert (ending, error) == ("retry", "jobrunner.errors.InvalidPayload")
        assert words in message or "return value" in message
    assert effects(connection) == []


@pytest.mark.parametrize("swallow", [False, True])
@pytest.mark.parametrize("how", ["session.commit", "with session.begin", "connection"])
def test_a_body_cannot_commit(jobs, attempts, connection, how, swallow):
    """A commit by the body is refused before it happens and fails the attempt, also when the body swallows the refusal."""

    def commit(session):
        if how == "session.commit":
            session.execute(EFFECT, {"number": 1})
            session.commit()
        elif how == "connection":
            session.execute(EFFECT, {"number": 1})
            session.connection().get_transaction().commit()
        else:
            with session.begin():
                session.execute(EFFECT, {"number": 1})

    def body(session, child):
        try:
            commit(session)
        except Exception:
            if not swallow:
                raise

    register(jobs, body).enqueue()
    ending, error, message = failure(attempts.run())
    assert (ending, error) == ("retry", "jobrunner.errors.ConfigurationError")
    assert "tried to commit; nothing was committed" in message
    assert effects(connection) == []
    assert states(connection) == {"running": 1}


def test_a_transaction_ended_by_sql_fails_the_job(jobs, attempts, connection):
    """COMMIT as an SQL text cannot be prevented; it is found, and the job fails at once, so that no second attempt repeats the writes."""

    def body(session, child):
        session.execute(EFFECT, {"number": 1})
        session.execute(sa.text("COMMIT"))
        session.execute(EFFECT, {"number": 2})

    register(jobs, body).enqueue()
    ending, error, message = failure(attempts.run())
    assert (ending, error) == ("fail", "jobrunner.Fail")
    assert "ended its transaction by an SQL statement" in message
    assert effects(connection) == [1]


def test_rollback_and_savepoints_are_the_bodys_own(jobs, attempts, connection):
    """What the body rolls back is gone, what it does afterwards commits with the job; savepoints work, one left open is released."""

    def body(session, child):
        session.execute(EFFECT, {"number": 1})
        child.enqueue(1)
        session.rollback()
        session.execute(EFFECT, {"number": 2})
        with session.begin_nested():
            session.execute(EFFECT, {"number": 3})
        with session.begin_nested() as savepoint:
            session.execute(EFFECT, {"number": 4})
            savepoint.rollback()
        with pytest.raises(sa.exc.DataError), session.begin_nested():
            session.execute(sa.text("SELECT 1 / 0"))
        session.begin_nested()
        session.execute(EFFECT, {"number": 5})

    register(jobs, body).enqueue()
    assert attempts.run()[2] == "done"
    assert effects(connection) == [2, 3, 5]
    assert states(connection) == {"succeeded": 1}


def test_an_error_that_the_body_swallowed_cannot_be_committed_over(jobs, attempts, connection):
    """After a failed statement outside of a savepoint the transaction is void: the attempt fails, whatever the body returns."""

    def body(session, child):
        session.execute(EFFECT, {"number": 1})
        with pytest.raises(sa.exc.DataError):
            session.execute(sa.text("SELECT 1 / 0"))

    register(jobs, body).enqueue()
    assert "InFailedSqlTransaction" in failure(attempts.run())[2]
    assert effects(connection) == []


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


def test_a_rehearsal_commits_without_a_job(jobs, connection):
    """`jobrunner run` gives the body a session, commits what it wrote, and refuses its commits as a worker does."""

    def body(session, child):
        session.execute(EFFECT, {"number": 1})
        return "written"

    settle = register(jobs, body)
    context = JobContext(id=0, task="settle", queue="default", attempt=1, max_attempts=1, lease=0)
    with running(context):
        assert transactions.rehearse(jobs, context, lambda session: settle(session=session)) == "written"
        with pytest.raises(ConfigurationError, match="tried to commit"):
            transactions.rehearse(jobs, context, lambda session: session.commit())
    assert effects(connection) == [1]
    assert states(connection) == {}
    jobs.close()
