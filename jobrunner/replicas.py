"""Owns reading from a replica of the database: which pool a reader gets, how far it is behind, what happens when it is away.

It must not write, and nothing that decides about jobs reads through it: a replica shows what was.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from psycopg import Error

from jobrunner import clock
from jobrunner.database import Database
from jobrunner.errors import ConfigurationError, DatabaseUnreachable
from jobrunner.settings import Dsn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from psycopg import Connection

A = TypeVar("A")

LOOK = 1.0  # seconds for which an answer of the replica counts: each page looks, twenty open ones do not look twenty times
AWAY = 15.0  # seconds before a replica that did not answer is tried again: each try may cost the reader PATIENCE
PATIENCE = 3  # seconds for a connection to it or an answer on one; the primary is there for whoever cannot wait
AFTER_WRITE = 5.0  # seconds: who has just changed a job sees the change, which the replica may not have yet
FAR_BEHIND = 10.0  # seconds: above, pages warn; what they say of workers and leases is then of another time
_LIMITS = {"connect_timeout": PATIENCE, "tcp_user_timeout": PATIENCE * 1000}

# Zero when all that came is replayed and the connection to the primary stands; else the age of the last transaction replayed. On an
# idle primary nothing comes, and that age alone would grow. Open to every role.
_STANDING = """
SELECT pg_is_in_recovery(),
       CASE WHEN pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn() AND EXISTS (SELECT FROM pg_stat_wal_receiver) THEN 0
            ELSE extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp()) END
"""


class Standing(NamedTuple):
    """What is known of the replica.

    Attributes:
        target: `user@host:port/database`.
        behind: seconds; None when it is not known.
        trouble: why the primary is read instead; empty when the replica is read.
    """

    target: str
    behind: float | None
    trouble: str = ""

    @property
    def used(self) -> bool:
        """Whether the replica is read."""
        return not self.trouble

    @property
    def warns(self) -> bool:
        """Whether a person has to know before reading on."""
        return bool(self.trouble) or self.behind is None or self.behind >= FAR_BEHIND

    def __str__(self) -> str:
        if self.trouble:
            return f"{self.trouble}: reading from the primary"
        return "the replica does not say how far it is behind" if self.behind is None else f"the replica is {self.behind:.0f} s behind"


class Reads:
    """Pools for reading: of the replica when there is one, else of the primary. Thread-safe; a forked child gets its own.

    A replica that does not answer, or is no replica any more, is not read: the primary is, and `standing` says so.

    Args:
        primary: gives the address of the primary; asked each time, because an application may change it.
        replica: gives the address of the replica, or None.
        pool_size: connections kept in each pool; as many again may be opened under load.
    """

    def __init__(self, primary: Callable[[], Dsn], replica: Callable[[], Dsn | None], pool_size: int) -> None:
        self._primary, self._replica, self._pool_size = primary, replica, pool_size
        self._lock = threading.Lock()
        self._pools: dict[str, Database] = {}
        self._pid = 0
        self._looked_at = self._wrote_at = float("-inf")
        self._standing: Standing | None = None

    def __call__(self) -> Database:
        """The pool to read from now."""
        replica = self._replica()
        if replica is None:
            return self._pool("primary", self._primary())
        now = clock.monotonic()
        if now - self._wrote_at < AFTER_WRITE:
            return self._pool("primary", self._primary())
        known = self._standing
        if known is None or now - self._looked_at >= (LOOK if known.used else AWAY):
            known = self._standing = self._look(replica)
            self._looked_at = clock.monotonic()
        return self._pool("replica", _impatient(replica)) if known.used else self._pool("primary", self._primary())

    def standing(self) -> Standing | None:
        """What the last look at the replica found; None when there is none, or nobody has read yet."""
        return self._standing

    def steadily(self, ask: Callable[[], A]) -> A:
        """What `ask` reads through these pools, even when the replica dies between a look at it and the read.

        With a replica configured, a read that finds a server away is made once more, after a new look, from what is read then.

        Args:
            ask: reads only, calls this object for its pool, and has no effect that must not happen twice.

        Raises:
            DatabaseUnreachable: there is no replica, or what was read the second time is away too. Other errors of `ask` pass.
        """
        try:
            return ask()
        except DatabaseUnreachable:
            if self._replica() is None:
                raise
            if self._standing is not None and self._standing.used:  # else another reader has found it away meanwhile
                self._looked_at = float("-inf")
            return ask()

    def wrote(self) -> None:
        """A job was changed: for a few seconds this process reads from the primary."""
        self._wrote_at = clock.monotonic()

    def close(self) -> None:
        """Close the pooled connections; the next use opens new ones."""
        with self._lock:
            pools, self._pools = self._pools, {}
        for database in pools.values():
            database.close()

    def _pool(self, which: str, dsn: Dsn) -> Database:
        with self._lock:
            if self._pid != os.getpid():
                for database in self._pools.values():
                    database.forget()  # a forked child must not close the parent's sockets
                self._pools, self._pid = {}, os.getpid()
            known = self._pools.get(which)
            if known is None or known.dsn != dsn:
                if known is not None:
                    known.close()
                known = self._pools[which] = Database(dsn, pool_size=self._pool_size)
            return known

    def _look(self, replica: Dsn) -> Standing:
        import sqlalchemy as sa

        database = self._pool("replica", _impatient(replica))
        try:
            with database.store() as store, _hanging_up(store.connection):
                row = store.connection.execute(_STANDING).fetchone()
        except (Error, sa.exc.SQLAlchemyError) as error:
            database.close()  # every other connection of the pool is as dead as this one
            lines = str(getattr(error, "orig", None) or error).strip().splitlines()
            reason = lines[0].removeprefix("connection failed: ") if lines else type(error).__name__
            return Standing(replica.target, None, f"the replica {replica.target} does not answer ({reason})")
        if row is None or not row[0]:
            return Standing(replica.target, None, f"{replica.origin} names no replica: {replica.target} is a primary")
        return Standing(replica.target, None if row[1] is None else max(0.0, float(row[1])))  # below: its clock is behind the primary's


@contextlib.contextmanager
def _hanging_up(connection: Connection[Any]) -> Iterator[None]:
    """End the connection when the block takes too long: a server that stands still answers nothing, and its kernel everything."""
    lock, done = threading.Lock(), False

    def give_up() -> None:
        with lock, contextlib.suppress(OSError):
            if not done:  # else the number may be another socket's by now
                with socket.socket(fileno=os.dup(connection.fileno())) as ours:
                    ours.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(PATIENCE, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        with lock:
            done = True
        timer.cancel()


def _impatient(dsn: Dsn) -> Dsn:
    """The same address with our time limits, where it does not set its own."""
    from psycopg.conninfo import conninfo_to_dict

    try:
        given = conninfo_to_dict(dsn.url)
    except Error:
        raise ConfigurationError(f"{dsn.origin} is not an address that PostgreSQL's client library can read") from None
    ours = "&".join(f"{name}={value}" for name, value in _LIMITS.items() if name not in given)
    return Dsn(f"{dsn.url}{'&' if '?' in dsn.url else '?'}{ours}" if ours else dsn.url, dsn.origin)
