"""Owns running Jobrunner's statements inside a transaction of somebody else: a connection and a database as `Store` and handles take them.

It must not commit or roll back more than its own savepoints. With a savepoint around each statement, one that PostgreSQL refuses leaves
the test's transaction usable.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import psycopg
from psycopg import errors as pg
from psycopg.pq import TransactionStatus

from jobrunner.database import Database
from jobrunner.errors import ConfigurationError
from jobrunner.settings import Dsn
from jobrunner.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

    import sqlalchemy as sa

DRIVERS = ("psycopg", "psycopg2")  # both take %(name)s, which is how our statements are loaded


def check(connection: sa.Connection, where: str) -> None:
    """Refuse what the statements of Jobrunner cannot run on.

    Raises:
        ConfigurationError: it is closed, not PostgreSQL, of another driver, or commits each statement by itself.
    """
    if connection.closed:
        raise ConfigurationError(f"{where}: the connection is closed")
    dialect = connection.dialect
    if dialect.name != "postgresql":
        raise ConfigurationError(
            f"{where} is connected to {dialect.name}: jobs are rows of PostgreSQL",
            hint="let the tests use PostgreSQL too; `jobrunner db start` has a private one",
        )
    if dialect.driver not in DRIVERS:
        raise ConfigurationError(f"{where} uses the driver {dialect.driver}; jobrunner.testing knows {' and '.join(DRIVERS)}")
    if _driver(connection).autocommit:
        raise ConfigurationError(
            f"{where} is in AUTOCOMMIT mode: it has no transaction that could be the test's",
            hint="give one without isolation_level='AUTOCOMMIT', or session=None to work on the app's database",
        )


def aborted(connection: sa.Connection) -> bool:
    """Whether a statement failed and PostgreSQL refuses all others until a rollback."""
    return not connection.closed and _driver(connection).info.transaction_status == TransactionStatus.INERROR


class TransactionConnection:
    """What `Store` needs of a psycopg connection, inside the current transaction of a SQLAlchemy connection."""

    def __init__(self, connection: sa.Connection) -> None:
        self._driver = _driver(connection)
        self._depth = 0

    def execute(self, query: str, parameters: Mapping[str, Any] | tuple[Any, ...] | None = None, *, prepare: bool = False) -> Any:  # noqa: ARG002
        """Run one statement, which is never prepared; the cursor has its rows. Raises psycopg's errors, whatever the driver."""
        with nullcontext() if self._depth else self.transaction(), _translated():
            cursor = self._driver.cursor()
            cursor.execute(query, parameters)
            return cursor

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """A savepoint: released at the end, rolled back to after an error."""
        name = f"jobrunner_{self._depth}"
        self._say(f"SAVEPOINT {name}")
        self._depth += 1
        try:
            yield
        except BaseException:
            self._say(f"ROLLBACK TO SAVEPOINT {name}")
            raise
        finally:
            self._depth -= 1
            self._say(f"RELEASE SAVEPOINT {name}")

    def pipeline(self) -> AbstractContextManager[None]:
        """Nothing: the caller's driver may know no pipelines."""
        return nullcontext()

    def _say(self, command: str) -> None:
        with _translated():
            self._driver.cursor().execute(command)


class TransactionDatabase(Database):
    """In place of the app's database: everything that handles and inspection do goes to the test's transaction.

    Args:
        connection: gives the connection of the moment; the test's session may change it.
        dsn: of the app, for messages; None when it has none.
    """

    def __init__(self, connection: Callable[[], sa.Connection], dsn: Dsn | None) -> None:
        self._connection = connection
        self.dsn = dsn or Dsn("postgresql:///", "the test's transaction")
        self.engine = cast("sa.Engine", _Engine(connection))

    @contextmanager
    def store(self) -> Iterator[Store]:
        """A `Store` in the test's transaction."""
        yield Store(cast("psycopg.Connection[Any]", TransactionConnection(self._connection())))

    @property
    def ready(self) -> Any:  # type: ignore[override]  # what stands ready is the one connection that there is
        """Connections for statements that commit by themselves elsewhere: here each is a savepoint."""
        return _Ready(self._connection)

    def close(self) -> None:
        """Nothing: the connection is the test's."""


class _Ready:
    """In place of the connections that stand ready: all are the test's transaction."""

    def __init__(self, connection: Callable[[], sa.Connection]) -> None:
        self._connection = connection

    def take(self) -> _Taken:
        return _Taken(TransactionConnection(self._connection()))

    def give(self, taken: _Taken) -> None:
        """Nothing to give back."""


class _Taken(NamedTuple):
    connection: TransactionConnection

    @property
    def cursor(self) -> TransactionConnection:
        return self.connection


class _Engine:
    """For those who open a transaction of their own on the app's database, inspection and transactional jobs: here it is a savepoint."""

    def __init__(self, connection: Callable[[], sa.Connection]) -> None:
        self._connection = connection

    def execution_options(self, **_options: Any) -> _Engine:
        return self

    def connect(self) -> _Connection:
        return _Connection(self._connection(), self)

    def dispose(self, *, close: bool = True) -> None:
        """Nothing: the connection is the test's."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection().engine, name)


class _Connection:
    """A connection that has no transaction yet, for a Session too; what is not committed is rolled back when it is closed."""

    def __init__(self, connection: sa.Connection, engine: _Engine) -> None:
        self._connection = connection
        self.engine = engine  # by which a Session finds its connection again
        self._savepoint = connection.begin_nested()
        self._begun = False

    def in_transaction(self) -> bool:
        return self._begun

    def begin(self) -> sa.NestedTransaction:
        self._begun = True
        return self._savepoint

    def commit(self) -> None:
        """The end of a read, never of the test's transaction: what the read had set for its own transaction must not hold for the rest."""
        self.close()

    def close(self) -> None:
        if self._savepoint.is_active:
            self._savepoint.rollback()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


def _driver(connection: sa.Connection) -> Any:
    """The driver's own connection, psycopg's or psycopg2's; their common part is what this module uses."""
    return connection.connection.driver_connection


@contextmanager
def _translated() -> Iterator[None]:
    """psycopg2's errors as psycopg's of the same SQLSTATE: the code above looks for those."""
    try:
        yield
    except psycopg.Error:
        raise
    except Exception as error:
        if not hasattr(error, "pgcode"):
            raise
        try:
            kind = pg.lookup(error.pgcode)
        except KeyError:
            kind = psycopg.OperationalError if error.pgcode is None else psycopg.DatabaseError
        raise kind(str(error)) from error
