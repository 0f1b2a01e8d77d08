"""Owns the transaction that every read of inspection runs in: read-only, one snapshot, ended by the server when it takes too long.

It must not know tables. All settings are local to the transaction, so that the same holds through a transaction-mode pooler.
"""

from __future__ import annotations

from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

import sqlalchemy as sa
from psycopg import OperationalError
from psycopg import errors as pg

from jobrunner.errors import DatabaseUnreachable, JobrunnerError, QueryTimeout, SchemaMissing, TablesLocked
from jobrunner.transient import is_transient

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from jobrunner.database import Database

READ_TIMEOUT = timedelta(seconds=2)  # a page that needs longer is not looked at; a query that runs longer disturbs the workers
LOCK_TIMEOUT = timedelta(milliseconds=500)  # a migration holds its locks for longer than a reader should queue behind them
PREPARED = {"prepare": True}  # an execution option, for what looks into every day: that takes longer to plan than to do

_REFUSED = ("28", "3D")  # classes of SQLSTATE: login refused, no such database

# One round trip: the limits, and the database's time. SET LOCAL takes no parameters; set_config(…, true) is the same.
# No JIT: compiling the statement about queues took 1.7 s of its 1.8 s, on an estimate that was far too high.
# Pages far apart cost nearly what neighbours do, as on any disk but a spinning one: by PostgreSQL's own setting of 4, a page of a rather
# rare task was thousands of rows fetched and sorted, where reading its index in order ends after 51.
_BEGIN = sa.text(
    "SELECT set_config('transaction_read_only', 'on', true), set_config('statement_timeout', :statement_ms, true), "
    "set_config('lock_timeout', :lock_ms, true), set_config('jit', 'off', true), set_config('random_page_cost', '1.1', true), now() AS at"
)


class Reader(NamedTuple):
    """An open read-only transaction and the database's time at its begin."""

    connection: sa.Connection
    at: datetime


@contextmanager
def reading(database: Database, timeout: timedelta = READ_TIMEOUT) -> Iterator[Reader]:
    """A read-only transaction with one snapshot for the length of the block.

    Takes one pooled connection; holds no lock but those of reading.

    Raises:
        DatabaseUnreachable: the server does not answer, refuses the login, or no pooled connection became free.
        SchemaMissing: the tables do not exist.
        QueryTimeout: a statement ran longer than `timeout`.
        TablesLocked: one of the tables is locked, by a migration most likely.
    """
    try:
        with _begun(database, timeout) as reader:
            yield reader
    except sa.exc.SQLAlchemyError as error:
        meant = translated(error, database, timeout)
        if meant is error:
            raise
        raise meant from error


@contextmanager
def _begun(database: Database, timeout: timedelta) -> Iterator[Reader]:
    # REPEATABLE READ: a job that finishes between two statements would otherwise be seen twice, or not at all.
    engine = database.engine.execution_options(isolation_level="REPEATABLE READ")
    limits = {"statement_ms": f"{timeout.total_seconds() * 1000:.0f}", "lock_ms": f"{LOCK_TIMEOUT.total_seconds() * 1000:.0f}"}
    connection = engine.connect()
    try:
        try:
            row = connection.execute(_BEGIN, limits).one()
        except sa.exc.DBAPIError as error:
            if not error.connection_invalidated:
                raise
            # The server was restarted since this connection was pooled; the pool has now dropped all of them.
            connection.close()
            connection = engine.connect()
            row = connection.execute(_BEGIN, limits).one()
        yield Reader(connection, row.at)
        connection.commit()  # of nothing: after a rollback psycopg forgets what it has prepared
    finally:
        connection.close()


def translated(error: Exception, database: Database, timeout: timedelta = READ_TIMEOUT) -> Exception:
    """The error of our tree that a driver's or SQLAlchemy's error means, or the error itself when it means none."""
    if isinstance(error, sa.exc.TimeoutError):
        return unreachable("all connections of this process are busy", database)
    original = error.orig if isinstance(error, sa.exc.DBAPIError) else error
    if isinstance(original, (pg.QueryCanceled, pg.LockNotAvailable)):
        locked = isinstance(original, pg.LockNotAvailable)
        return TablesLocked(LOCK_TIMEOUT.total_seconds()) if locked else QueryTimeout(timeout.total_seconds())
    if isinstance(original, (pg.UndefinedTable, pg.InvalidSchemaName)):
        return SchemaMissing(database.dsn.target)
    if isinstance(original, pg.ReadOnlySqlTransaction):
        return unreachable(original, database)
    if isinstance(original, OperationalError):
        state = original.sqlstate
        if is_transient(error) or state is None or state.startswith(_REFUSED):
            return unreachable(original, database)
    return error


def unreachable(original: BaseException | str, database: Database) -> JobrunnerError:
    """The refusal to go on without a database, in one line and without the DSN's password."""
    lines = [line.strip() for line in str(original).splitlines() if line.strip()]
    reason = lines[0] if lines else type(original).__name__
    return DatabaseUnreachable(
        database.dsn.target, reason.removeprefix("connection failed: "), origin=database.dsn.origin, hint="try:   jobrunner doctor"
    )
