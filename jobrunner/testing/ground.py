"""Owns where the jobs of a test are: in the test's own transaction, or committed in the app's database.

It must not run jobs; it gives the statements a place, and the code of a job the surroundings that fit that place.
"""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Protocol

import psycopg
import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobrunner import connecting, migrate, places, schema
from jobrunner.current import current_session
from jobrunner.errors import ConfigurationError, SchemaMissing, SchemaOutdated, SchemaTooNew
from jobrunner.policies import DEFAULT_SESSION
from jobrunner.testing import transaction

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from jobrunner.app import JobRunner
    from jobrunner.database import Database
    from jobrunner.policies import Options

    Enter = Callable[[], AbstractContextManager[Any]]


IDLE_TIMEOUT = "idle_in_transaction_session_timeout"


class Ground(Protocol):
    """Where jobs are written, claimed and finished."""

    database: Database
    shared: bool  # whether every job of the test must be seen from here at once

    def check(self) -> None:
        """Refuse a place where the test cannot work. Raises ConfigurationError, SchemaError, DatabaseUnreachable."""

    def redirect(self, options: Options) -> Options:
        """The options of an enqueue that would otherwise write somewhere else."""

    def attempt(self, enter: Enter) -> AbstractContextManager[Any]:
        """The surroundings of one attempt, around those that `enter` makes."""

    def before(self) -> None:
        """Jobs are about to run: they shall see what the test has done."""

    def after(self) -> None:
        """Jobs have run: the test shall see what they have done."""


class Committed:
    """The app's own database: jobs run as they do with a worker, and what they do stays."""

    shared = False

    def __init__(self, jobs: JobRunner) -> None:
        if jobs.configured_dsn() is None:
            raise ConfigurationError(
                "testing.Jobs: no database is configured for the tests",
                hint="JobRunner(dsn=…), JOBRUNNER_DSN or the Flask config name one; or give the test's transaction: session=db.session",
            )
        self.database = jobs.database

    def check(self) -> None:
        """Look at the schema on a connection of the app's pool."""
        try:
            with self.database.engine.connect() as connection:
                _check_schema(connection, self.database.dsn.target)
        except sa.exc.OperationalError as error:
            raise connecting.explain(error, self.database.dsn) from error

    def redirect(self, options: Options) -> Options:
        """As they are."""
        return options

    def attempt(self, enter: Enter) -> AbstractContextManager[Any]:
        """As with a worker."""
        return enter()

    def before(self) -> None:
        """Nothing: jobs see what is committed."""

    def after(self) -> None:
        """Nothing: what a session has read stays until it ends its transaction, as with a worker."""


class Joined:
    """The transaction of the test's session or connection. Jobs whose app has Flask-SQLAlchemy get sessions of their own in it.

    Args:
        jobs: whose jobs.
        session: as `JobRunner(session=…)`, or None.
        connection: or a SQLAlchemy Connection.
    """

    shared = True

    def __init__(self, jobs: JobRunner, session: Any, connection: sa.Connection | None) -> None:
        self._jobs = jobs
        self._source = session
        self._given = connection
        self._idle_timeout = "0"
        self._extension, self._engines = _flask_sqlalchemy(jobs)
        self.database: Database = transaction.TransactionDatabase(self.connection, jobs.configured_dsn())

    def connection(self) -> sa.Connection:
        """The connection that the test's transaction is on now."""
        if self._given is not None:
            return self._given
        session = places.resolve_session(self._source)
        bind = session.get_bind(clause=schema.jobs)
        if isinstance(bind, sa.Connection) and bind.in_transaction():
            return bind  # without beginning anything in the session, which a transactional job may find in use then
        return places.connection_of(session)

    def check(self) -> None:
        """Look at the connection, then at the schema."""
        where = "testing.Jobs(connection=…)" if self._given is not None else "testing.Jobs(session=…)"
        if self._given is not None and not isinstance(self._given, sa.Connection):
            raise ConfigurationError(f"{where}: expected a SQLAlchemy Connection, not {type(self._given).__name__}")
        connection = self.connection()
        transaction.check(connection, where)
        if not connection.in_transaction():
            raise ConfigurationError(
                f"{where}: no transaction is open on the connection, so nothing could be rolled back",
                hint="with engine.connect() as connection, connection.begin() as transaction: …; or testing.rolled_back(app)",
            )
        _check_schema(connection, self.database.dsn.target)
        self._idle_timeout = str(connection.scalar(sa.text(f"SHOW {IDLE_TIMEOUT}")))

    def redirect(self, options: Options) -> Options:
        """A job that would be written in a transaction of its own is written in the test's."""
        session = current_session(self._jobs) or self._jobs.session if options.session is DEFAULT_SESSION else options.session
        if options.connection is not None or session is not None:
            return options
        return dataclasses.replace(options, session=None, connection=self.connection())

    @contextmanager
    def attempt(self, enter: Enter) -> Iterator[Any]:
        """A savepoint in which sessions that the job's code opens join the test's connection.

        It ends after the app context has: what the job's session has not committed is rolled back by then, as with a worker.
        """
        outer = self._session()
        connection = self.connection()
        with ExitStack() as late, enter() as value:
            late.callback(self._give_time)
            # A session that test and job share has its own savepoint; one inside it would end with the job's commit.
            if outer is None or self._session() is not outer:
                late.enter_context(self._apart(connection))
            yield value

    @contextmanager
    def _apart(self, connection: sa.Connection) -> Iterator[None]:
        joining = {key: engine for key, engine in self._engines.items() if engine is connection.engine}
        savepoint = None if connection.in_nested_transaction() else connection.begin_nested()
        self._engines.update(dict.fromkeys(joining, connection))
        try:
            yield
        finally:
            self._engines.update(joining)
            if savepoint is not None:
                _end(connection, savepoint)

    def _give_time(self) -> None:
        """Undo a short idle time-out, which a transactional job sets for its last step and which ends with a real transaction."""
        with suppress(psycopg.Error, sa.exc.SQLAlchemyError), self.database.store() as store:  # it may be gone
            store.connection.execute("SELECT set_config(%s, %s, true)", (IDLE_TIMEOUT, self._idle_timeout))

    def before(self) -> None:
        """Flush the test's session."""
        session = self._session_of_test()
        if session is not None:
            session.flush()

    def after(self) -> None:
        """Let the test's session read again what jobs may have changed."""
        session = self._session_of_test()
        if session is not None:
            session.expire_all()

    def _session(self) -> Session | None:
        source = self._source
        if source is None:
            return None
        found: Session = source if isinstance(source, Session) else source()
        return found

    def _session_of_test(self) -> Session | None:
        """The session given, else that of Flask-SQLAlchemy in the test's app context."""
        if self._source is None and self._extension is not None:
            with suppress(RuntimeError):  # outside of an app context there is none
                found: Session = self._extension.session()
                return found
        return self._session()


def _end(connection: sa.Connection, savepoint: sa.NestedTransaction) -> None:
    """Keep what was committed inside the savepoint; nothing of an attempt that left the transaction unusable."""
    if not savepoint.is_active:
        return
    while (inner := connection.get_nested_transaction()) is not None and inner is not savepoint:
        inner.rollback()  # of a session that the job did not close: with a worker, its connection would have been dropped
    if transaction.aborted(connection):
        savepoint.rollback()
    else:
        savepoint.commit()


def _flask_sqlalchemy(jobs: JobRunner) -> tuple[Any, dict[Any, Any]]:
    """The extension of the app and its engines by bind key, which its sessions look into; None and nothing without it."""
    extension: Any = jobs.app.extensions.get("sqlalchemy") if jobs.app is not None else None
    if jobs.app is None or not hasattr(type(extension), "engines") or not hasattr(extension, "session"):
        return None, {}
    with jobs.app.app_context():
        engines = extension.engines
    return (extension, engines) if isinstance(engines, dict) else (None, {})


def _check_schema(connection: sa.Connection, target: str) -> None:
    found = migrate.version_on(connection)
    if found.current is None:
        raise SchemaMissing(target)
    if not found.known:
        raise SchemaTooNew(found.current, found.head)
    if not found.up_to_date:
        raise SchemaOutdated(found.current, found.head, len(found.pending))
