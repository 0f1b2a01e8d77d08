"""Owns `Branch`, one of several databases of an application, and telling whether a transaction is in the database of a queue.

It must not decide which queue lives where (`routing` does) nor write jobs (`enqueue` does).
"""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, Any, Protocol

from jobrunner.errors import EnqueueError

if TYPE_CHECKING:
    import sqlalchemy as sa

    from jobrunner.database import Database
    from jobrunner.settings import Dsn
    from jobrunner.tasks import Registry

# The start of the server, to the microsecond, and the database's number on it: the same whatever address, socket or pooler was taken
# to it, and open to every role.
_IDENTITY = "SELECT pg_postmaster_start_time()::text, oid::text FROM pg_database WHERE datname = current_database()"
_proven: weakref.WeakKeyDictionary[sa.Engine, set[tuple[str, str]]] = weakref.WeakKeyDictionary()


class Root(Protocol):
    """What a branch needs of the JobRunner it belongs to."""

    session: Any
    max_payload_bytes: int
    pool_size: int
    wakeups: bool

    @property
    def registry(self) -> Registry:
        """The tasks."""


class Place(Protocol):
    """The database of an application, or one of several."""

    @property
    def database_name(self) -> str:
        """Under which it is configured."""

    @property
    def database(self) -> Database:
        """Its pool of connections."""


class Branch:
    """One of several databases of an application: what enqueueing and handles need of it. Thread-safe.

    Attributes:
        database_name: under which it is configured.
    """

    def __init__(self, root: Root, name: str, dsn: Dsn) -> None:
        self._root = root
        self.database_name = name
        self._dsn = dsn
        self._lock = threading.Lock()
        self._database: Database | None = None

    @property
    def session(self) -> Any:
        """The default session of the application; whether it is in this database shows when it is used."""
        return self._root.session

    @property
    def max_payload_bytes(self) -> int:
        """Of one job's arguments."""
        return self._root.max_payload_bytes

    @property
    def wakeups(self) -> bool:
        """Whether to send hints."""
        return self._root.wakeups

    @property
    def registry(self) -> Registry:
        """The tasks, for handles."""
        return self._root.registry

    @property
    def database(self) -> Database:
        """The pool of connections; made at first use."""
        with self._lock:
            if self._database is None:
                from jobrunner.database import Database  # SQLAlchemy takes a quarter of a second to import

                self._database = Database(self._dsn, pool_size=self._root.pool_size)
                weakref.finalize(self, self._database.close)  # also of one that a handle still has after `JobRunner.close`
            return self._database

    def configured_dsn(self) -> Dsn:
        """The address."""
        return self._dsn

    def wake(self, queue: str) -> None:
        """Send a hint that `queue` has work, now; never raises for a database that does not answer."""
        if self.wakeups:
            from jobrunner.wakeups import waker_of

            waker_of(self._dsn).wake(queue)

    def close(self) -> None:
        """Close pooled connections; the next use opens new ones."""
        with self._lock:
            database, self._database = self._database, None
        if database is not None:
            database.close()

    def forget(self) -> None:
        """In a forked child: the sockets belong to the parent; closing them here would end its sessions."""
        self._lock = threading.Lock()
        if self._database is not None:
            self._database.forget()


def is_in(connection: sa.Connection, place: Place) -> bool:
    """Whether a transaction is in that database. Asks both servers once for each engine; a database elsewhere is asked each time."""
    proven = _proven.setdefault(connection.engine, set())
    key = (place.database_name, place.database.dsn.url)
    if key not in proven:
        theirs = connection.exec_driver_sql(_IDENTITY).fetchone()
        with place.database.store() as store:
            ours = store.connection.execute(_IDENTITY).fetchone()
        if theirs is None or ours is None or tuple(theirs) != tuple(ours):
            return False
        proven.add(key)
    return True


def refuse_other(connection: sa.Connection, place: Place, queue: str) -> None:
    """Refuse to write a job of a queue into a transaction in another database than the queue's: no worker would look there."""
    if not is_in(connection, place):
        raise EnqueueError(
            f"queue {queue!r} lives in the database {place.database_name!r}, {place.database.dsn.target}, "
            "and the session or connection is in another one: no worker would find the job there",
            hint="options(session=None) writes it in a transaction of its own, which commits whatever becomes of yours; "
            "to keep both in one transaction, route the queue to your session's database",
        )
