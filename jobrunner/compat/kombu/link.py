"""Owns one connection to the broker's tables: opened when it is needed, given up after an error and after a fork.

It must not call a statement again: only callers know which may be run twice.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import errors as pg

from jobrunner import statements
from jobrunner.connecting import connect, plan_once
from jobrunner.errors import DatabaseUnreachable, SchemaMissing, SchemaOutdated
from jobrunner.transient import is_transient

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jobrunner.settings import Dsn

NEEDED_REVISION = "0010"

# The database did not answer: it may do so later.
UNANSWERED = (psycopg.OperationalError, psycopg.InterfaceError, DatabaseUnreachable)

_of_parents: list[psycopg.Connection[Any] | None] = []  # kept, because psycopg would complain of the end of an open connection


class Link:
    """One connection in autocommit mode, for any number of threads, one statement at a time.

    Args:
        dsn: the database.
        name: how the session is called in pg_stat_activity.
        listens: somebody hears notifications on it: that there is something to read does not mean that the server has gone.

    Attributes:
        dsn: the database.
        is_direct: whether the server's process is ours alone; behind a pooler nothing is prepared, and nothing heard. None: not known yet.
    """

    def __init__(self, dsn: Dsn, name: str, *, listens: bool = False) -> None:
        self.dsn = dsn
        self.is_direct: bool | None = None
        self._name = name
        self._listens = listens
        self._turn = threading.RLock()
        self._connection: psycopg.Connection[Any] | None = None
        self._pid = os.getpid()

    def run(self, name: str, parameters: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """Run one statement of `sql/`, which commits by itself, and give its rows; opens the connection when there is none.

        Raises:
            psycopg.OperationalError, DatabaseUnreachable: what may pass by itself. After a lost connection nobody knows whether it was
                done; the next call opens a new one.
            psycopg.Error: it failed otherwise.
            SchemaMissing, SchemaOutdated: the tables are not there.
        """
        if self._pid != os.getpid():  # a child: the turn may be somebody's who does not exist here, the connection is the parent's
            _of_parents.append(self._connection)
            self._turn, self._connection, self._pid = threading.RLock(), None, os.getpid()
        with self._turn:
            connection = self._opened()
            try:
                cursor = connection.execute(statements.load(name), parameters, prepare=self.is_direct)
                return cursor.fetchall() if cursor.description else []
            except (pg.UndefinedTable, pg.InvalidSchemaName) as error:
                raise self._outdated(connection) from error
            except psycopg.Error as error:
                passes = is_transient(error)
                if connection.closed or passes:
                    self._give_up()
                if passes and not isinstance(error, UNANSWERED):  # such as the old primary's, which takes no writes after a failover
                    raise psycopg.OperationalError(str(error)) from error
                raise
            except BaseException:  # an interrupt: nobody knows how far the statement came
                self._give_up()
                raise

    def open(self) -> psycopg.Connection[Any]:
        """The connection, for who waits on it himself; the link must be that thread's alone. Raises as `run` does."""
        with self._turn:
            return self._opened()

    def close(self) -> None:
        """Close the connection, if this process has one; the next statement opens another."""
        if self._pid == os.getpid():
            self._give_up()

    def _opened(self) -> psycopg.Connection[Any]:
        if self._connection is not None and (self._connection.closed or (not self._listens and _is_dead(self._connection))):
            self._give_up()  # before anything is sent on it: a message that is sent and not answered may be there twice
        if self._connection is None:
            connection = connect(self.dsn, application_name=self._name)
            try:
                plan_once(connection)
                self.is_direct = connection.prepare_threshold is not None
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _give_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(psycopg.Error):
                connection.close()

    def _outdated(self, connection: psycopg.Connection[Any]) -> Exception:
        found = connection.execute("SELECT to_regclass('jobrunner.alembic_version')::text").fetchone()
        if found is None or found[0] is None:
            return SchemaMissing(self.dsn.target)
        row = connection.execute("SELECT version_num FROM jobrunner.alembic_version").fetchone()
        return SchemaOutdated(str(row[0]) if row else "none", NEEDED_REVISION, 1)


def _is_dead(connection: psycopg.Connection[Any]) -> bool:
    """Whether an idle connection has an end to read: between two statements a server says nothing else but that it goes away."""
    if not hasattr(select, "poll"):  # taken away by eventlet
        return bool(select.select([connection.fileno()], [], [], 0)[0])
    waiting = select.poll()
    waiting.register(connection.fileno(), select.POLLIN)
    return bool(waiting.poll(0))
