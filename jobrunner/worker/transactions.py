"""Owns transactional jobs: the task's writes, the jobs it enqueues and the end of the job itself commit together, or not at all.

It must not commit anything when the attempt has been superseded: the fence is checked by the statement that ends the job, in the
same transaction. It must not leave a connection behind that an interrupt has left in the middle of something.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Self

from sqlalchemy import Connection, event
from sqlalchemy.exc import DBAPIError, UnboundExecutionError
from sqlalchemy.orm import Session, scoped_session

from jobrunner import arrays, branches, payload, places, ready, schema, statements
from jobrunner.control import Fail
from jobrunner.errors import ConfigurationError, LeaseLost
from jobrunner.jobs import Note, Succeeded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import sqlalchemy as sa
    from sqlalchemy.orm import SessionTransaction

    from jobrunner.app import JobRunner
    from jobrunner.current import JobContext
    from jobrunner.worker.executing import Spent

# The mark goes with the transaction that it was set in: whoever ends that by an SQL text of his own, loses it. The name shows in
# pg_stat_activity which job holds a transaction, and lets the next attempt find what an earlier one has left open.
_BEGIN = "SELECT set_config('jobrunner.attempt', %(mark)s, true), set_config('application_name', %(name)s, true)"
# An earlier attempt whose process stands still (a frozen machine) may hold locks that this one needs, for ever. It is superseded:
# whatever it holds can never be committed. Only sessions of the same login are seen and may be ended.
_END_EARLIER = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
    "AND usename = session_user AND application_name = ANY (CAST(%(names)s AS text[]))"
)
# Once the job's row is locked a process that stands still would hold up those who rescue jobs: the server ends its transaction.
_LAST_STEP = "SELECT current_setting('jobrunner.attempt', true), set_config('idle_in_transaction_session_timeout', '5s', true)"
_ISOLATION = "READ COMMITTED"
_EARLIER = 20  # attempts back that are looked for; an older one stood still through as many leases
_DRIVERS = {"psycopg", "psycopg2"}  # statements are sent as these two take them
_POOLED = 100  # connections that a pool may hold; more dead ones are for the body to find
_ACTIVE = 1  # libpq's PQTRANS_ACTIVE: a statement is under way
_NO_TABLE, _NO_SCHEMA, _SERIALIZATION = "42P01", "3F000", "40001"
_ONE_DATABASE = "one database for both: point JOBRUNNER_DSN at the application's, or leave it out"
_NO_COMMIT = (
    "leave the commit to the worker, which commits the task's writes together with the end of the job; session.begin_nested() is for a "
    "part that may fail; a task that commits as it goes is no transactional one: leave transactional=True out"
)


def run(jobs: JobRunner, context: JobContext, spent: Spent, body: Callable[[Session], Any]) -> None:
    """Call `body` with a Session and end the job in its transaction.

    The session is the application's own default session when it has one, else a new one on Jobrunner's database. Until the last step
    nothing of the job's row is locked.

    Raises:
        LeaseLost: another attempt has superseded this one; everything was rolled back.
        ConfigurationError: `body` tried to commit, replaced the session, or it is on another database; everything was rolled back.
        Fail: `body` ended the transaction behind the session's back; what it wrote before that is committed.
        BaseException: whatever `body` raises, and what the database says to the commit: everything was rolled back, or, when the
            connection broke during COMMIT, perhaps all of it is there; the fence then refuses what the worker writes about this attempt.
    """
    with _session(jobs, context) as (session, guard):
        result = body(session)
        guard.check(jobs)
        text = None if result is None else payload.encode_result(result, jobs.max_result_bytes)
        session.flush()
        if not _finish(session, guard, context, text, spent):
            raise LeaseLost(context.id, context.lease)
        guard.disarm()
        _commit(session)


def rehearse(jobs: JobRunner, context: JobContext, body: Callable[[Session], Any]) -> Any:
    """Call `body` as `run` does and commit, without a job that would end. Returns what it returned. For `jobrunner run`."""
    with _session(jobs, context) as (session, guard):
        result = body(session)
        guard.check(jobs)
        session.flush()
        guard.disarm()
        _commit(session)
        return result


class _Guard:
    """Watches one session while the body has it: marks each transaction, refuses commits, knows the connections."""

    def __init__(self, session: Session, context: JobContext) -> None:
        self.session, self._context = session, context
        self._armed = True
        self._refused = False
        self.mark = f"{context.id}.{context.lease}"
        self.connections: list[tuple[sa.Connection, Callable[[], Any]]] = []  # each with what cancels its statement
        try:
            self._bind = session.get_bind(clause=schema.jobs)
        except UnboundExecutionError as error:
            raise ConfigurationError("the application's session has no database for the tables of jobs", hint=_ONE_DATABASE) from error

    def __enter__(self) -> Self:
        event.listen(self.session, "after_begin", self._begun)
        event.listen(self.session, "before_commit", self._committing)
        return self

    def __exit__(self, *_: object) -> None:
        self._armed = False
        event.remove(self.session, "after_begin", self._begun)
        event.remove(self.session, "before_commit", self._committing)

    def disarm(self) -> None:
        """What follows is the worker's own commit."""
        self._armed = False

    def check(self, jobs: JobRunner) -> None:
        """After the body: refuse what would break the promise, even when the body has swallowed the refusal."""
        if self._refused:
            self._refuse()
        known = jobs.session
        if isinstance(known, scoped_session) and not (known.registry.has() and known() is self.session):
            raise ConfigurationError(
                "the body of a transactional task gave up its session (session.remove()): what it wrote since then is in another one",
                hint="leave the session to the worker, which ends it",
            )

    def _begun(self, _session: Session, transaction: SessionTransaction, connection: sa.Connection) -> None:
        if transaction.nested or not (connection.engine is self._bind or connection.engine is self._bind.engine):
            return  # a savepoint, or another of the session's databases
        if connection.dialect.driver not in _DRIVERS:
            raise ConfigurationError(
                f"a transactional task needs a session that uses psycopg, not {connection.dialect.driver}", hint="postgresql+psycopg://…"
            )
        driver: Any = connection.connection.driver_connection
        if getattr(driver, "autocommit", False):
            raise ConfigurationError(
                "a transactional task needs a session with transactions; the engine of this one has isolation_level='AUTOCOMMIT'",
                hint="give JobRunner(session=…) a session on an engine without it",
            )
        self.connections.append((connection, _canceller(driver)))
        if isinstance(connection, Connection):  # a test's stand-in never commits
            event.listen(connection, "commit", self._connection_committing)
        context = self._context
        connection.exec_driver_sql(_BEGIN, {"mark": self.mark, "name": _name(context.id, context.lease)})
        if context.lease > 1:
            earlier = range(max(1, context.lease - _EARLIER), context.lease)
            connection.exec_driver_sql(_END_EARLIER, {"names": [_name(context.id, lease) for lease in earlier]})

    def _committing(self, session: Session) -> None:
        if self._armed and not session.in_nested_transaction():  # the release of a savepoint is no commit
            self._refuse()

    def _connection_committing(self, connection: sa.Connection) -> None:
        """A commit past the session: SQLAlchemy takes the transaction for ended whatever happens here, so it has to be ended."""
        if self._armed:
            connection.invalidate()
            self._refuse()

    def _refuse(self) -> None:
        self._refused = True
        raise ConfigurationError("the body of a transactional task tried to commit; nothing was committed", hint=_NO_COMMIT)


def _name(job_id: int, lease: int) -> str:
    return f"jobrunner job {job_id} lease {lease}"


@contextlib.contextmanager
def _session(jobs: JobRunner, context: JobContext) -> Iterator[tuple[Session, _Guard]]:
    """The session of one attempt; rolled back when the block raises, and given back with nothing in it."""
    if jobs.session is not None:
        session = places.resolve_session(jobs.session)
        if session.in_transaction():
            session.rollback()  # of what ran before the task, such as a `before` hook of the app context: not part of the job
    else:
        session = Session(jobs.home.database.engine.execution_options(isolation_level=_ISOLATION))
    guard = _Guard(session, context)
    _drop_dead_connections(session)
    context.session = session
    try:
        if jobs.session is not None and jobs.routing.databases:
            _refuse_elsewhere(jobs, session)
        with guard:
            yield session, guard
    except BaseException as error:
        _undo(session, guard, error)
        raise
    finally:
        context.session = None
        session.close()


def _refuse_elsewhere(jobs: JobRunner, session: Session) -> None:
    """With several databases: a session in another one than the job's cannot commit together with the job's end."""
    inside = branches.is_in(places.connection_of(session), jobs.home)
    session.rollback()  # the question began a transaction; the body may still choose how its own begins
    if not inside:
        raise ConfigurationError(
            f"a transactional task of the database {jobs.home.database_name!r} cannot use the application's session, which is in another",
            hint="route its queue to the session's database: what it writes and the end of its job commit together",
        )


def _drop_dead_connections(session: Session) -> None:
    """One that the server closed while it lay in the pool must not cost an attempt; asking the socket costs no round trip."""
    for _ in range(_POOLED):
        connection = places.connection_of(session)
        alive = not ready.hung_up(connection.connection.driver_connection)
        if not alive:
            connection.invalidate()
        session.rollback()  # nothing was sent; the body may still choose how its transaction begins
        if alive:
            return


def _undo(session: Session, guard: _Guard, error: BaseException) -> None:
    """Roll back; a connection that an interrupt has left amid a statement is thrown away, and the statement with it."""
    for connection, cancel in guard.connections:
        if connection.closed or not (connection.invalidated or _is_busy(connection)):
            continue  # SQLAlchemy invalidates it itself for an exception that is no Exception
        if not isinstance(error, DBAPIError):
            # The server does not look whether anybody is there while it works: the statement, and its locks, would stay to its end.
            with contextlib.suppress(Exception):
                cancel()
        connection.invalidate()
    try:
        session.rollback()
    except Exception:  # noqa: BLE001  the connection is broken: the error that led here is the one that counts
        session.invalidate()


def _is_busy(connection: sa.Connection) -> bool:
    info = getattr(connection.connection.driver_connection, "info", None)
    return getattr(info, "transaction_status", None) == _ACTIVE


def _canceller(driver: Any) -> Callable[[], Any]:
    """What ends the statement under way; of psycopg it works when the connection is closed already."""
    return driver.pgconn.get_cancel().cancel if hasattr(driver, "pgconn") else driver.cancel  # type: ignore[no-any-return]


def _finish(session: Session, guard: _Guard, context: JobContext, result: str | None, spent: Spent) -> bool:
    """The last step before COMMIT: end the job, if this attempt is still the one that runs it."""
    connection = places.connection_of(session)
    mark = connection.exec_driver_sql(_LAST_STEP).scalar()
    if mark != guard.mark:
        raise Fail(
            "the body of this transactional task ended its transaction by an SQL statement (COMMIT, ROLLBACK): what it wrote before "
            f"may be committed, and would be again by another attempt; {_NO_COMMIT}"
        )
    said = context.last_words()
    if said is not None:
        connection.exec_driver_sql(statements.load("progress"), arrays.notes([Note(context.id, context.lease, *said)]))
    return _succeed(connection, Succeeded(context.id, context.lease, result, *_measures(spent)))


def _measures(spent: Spent) -> tuple[int, int | None, float, int | None]:
    run_us, cpu_ms, peak = spent.read()
    return round(run_us / 1000), cpu_ms, 0.0, peak


def _succeed(connection: sa.Connection, outcome: Succeeded) -> bool:
    """Whether the job's row was there for (id, lease) and has gone to history."""
    try:
        return bool(connection.exec_driver_sql(statements.load("succeed"), arrays.successes([outcome], 0.0)).fetchall())
    except DBAPIError as error:
        state = getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)
        if state in {_NO_TABLE, _NO_SCHEMA}:
            raise ConfigurationError(
                f"a transactional task needs the application's session on the database of the jobs, not on {_place(connection)}",
                hint=_ONE_DATABASE,
            ) from error
        if state == _SERIALIZATION:
            error.add_note(
                "Above READ COMMITTED the end of a job conflicts with what the worker wrote about it since the transaction began: "
                "progress, a checkpoint, a wish to cancel it, and after 5 s that it has begun."
            )
        raise


def _commit(session: Session) -> None:
    session.commit()


def _place(connection: sa.Connection) -> str:
    return connection.engine.url.render_as_string(hide_password=True)
