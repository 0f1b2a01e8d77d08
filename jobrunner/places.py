"""Owns where jobs are written: in a short transaction of their own, or in the transaction of the caller's Session or Connection.

It must not begin, commit or roll back anything of the caller's.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import psycopg
import sqlalchemy as sa
from psycopg import errors as pg
from sqlalchemy.orm import Session

from jobrunner import commits, direct, schema
from jobrunner.errors import ConfigurationError, SchemaMissing

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from jobrunner.commits import Hint
    from jobrunner.database import Database
    from jobrunner.inserting import Statement


class OwnTransaction:
    """Each statement commits by itself, but for those inside `together()`, which commit at its end."""

    can_copy = True

    def __init__(self, database: Database) -> None:
        self._database = database
        self._held: psycopg.Connection[Any] | None = None

    def rows(self, statement: Statement, parameters: Mapping[str, Any]) -> Sequence[Any]:
        """Run one statement and give its rows."""
        if self._held is not None:
            return self._held.execute(statement.raw, parameters).fetchall()
        kept = self._database.ready.take()
        try:
            return kept.cursor.execute(statement.raw, parameters, prepare=True).fetchall()
        except pg.UndefinedTable as error:
            raise SchemaMissing(self._database.dsn.target) from error
        finally:
            self._database.ready.give(kept)

    @contextmanager
    def together(self) -> Iterator[psycopg.Connection[Any]]:
        """One transaction around several statements; gives the connection, for COPY. Inside another one it is part of that."""
        if self._held is not None:
            yield self._held
            return
        kept = self._database.ready.take()
        try:
            with kept.connection.transaction():
                self._held = kept.connection
                yield kept.connection
        except pg.UndefinedTable as error:
            raise SchemaMissing(self._database.dsn.target) from error
        finally:
            self._held = None
            self._database.ready.give(kept)

    def written(self, _count: int, hint: Hint | None) -> None:
        """Jobs are committed: the hint may go out."""
        if hint is not None:
            waker, queue = hint
            waker.wake(queue)


class CallersTransaction:
    """Everything is part of the caller's transaction and savepoint; an error is the caller's to roll back.

    Attributes:
        connection: on which that transaction is.
        can_copy: whether its driver is psycopg.
    """

    def __init__(self, connection: sa.Connection, session: Session | None = None) -> None:
        self.connection = connection
        self._session = session
        self.can_copy = isinstance(connection.connection.driver_connection, psycopg.Connection)

    def rows(self, statement: Statement, parameters: Mapping[str, Any]) -> Sequence[Any]:
        """Run one statement and give its rows."""
        driver = direct.driver_of(self.connection)
        if driver is None:
            return self.connection.execute(statement.core, parameters).fetchall()
        return direct.rows(self.connection, driver, statement.raw, parameters)

    @contextmanager
    def together(self) -> Iterator[psycopg.Connection[Any]]:
        """Nothing to begin; gives the driver's connection, which can COPY when it is psycopg's (`can_copy`)."""
        yield cast("psycopg.Connection[Any]", self.connection.connection.driver_connection)

    def written(self, count: int, hint: Hint | None) -> None:
        """Jobs are in the caller's transaction: the hint goes out after its commit."""
        if self._session is not None:
            commits.watch_session(self._session, count, hint)
        else:
            commits.watch_connection(self.connection, hint)


Place = OwnTransaction | CallersTransaction


def resolve_session(given: object) -> Session:
    """A Session, what a scoped_session (`db.session`) stands for now, or what a function returns.

    Raises:
        ConfigurationError: it is none of these.
    """
    session = given if isinstance(given, Session) else given() if callable(given) else given
    if not isinstance(session, Session):
        expected = "a SQLAlchemy Session, a scoped_session such as db.session, or a function that returns one"
        hint = "in async code: await session.run_sync(lambda session: task.options(session=session).enqueue(…))"
        raise ConfigurationError(
            f"session={type(session).__name__}: expected {expected}",
            hint=hint if hasattr(session, "sync_session") else "",
        )
    return session


def connection_of(session: Session) -> sa.Connection:
    """The connection on which a session's transaction reaches the jobs: a session may have several databases."""
    return session.connection(bind_arguments={"clause": schema.jobs})


def in_session(given: object) -> CallersTransaction:
    """The transaction of a Session, or of what `resolve_session` makes of it. Raises ConfigurationError when that is none."""
    session = resolve_session(given)
    return CallersTransaction(connection_of(session), session)


def on_connection(given: object) -> CallersTransaction:
    """The transaction of a SQLAlchemy Connection. Raises ConfigurationError for anything else."""
    if not isinstance(given, sa.Connection):
        raise ConfigurationError(
            f"connection={type(given).__name__}: expected a SQLAlchemy Connection", hint="an ORM session goes in session=…"
        )
    return CallersTransaction(given)
