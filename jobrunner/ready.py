"""Owns the connections that stand ready for our next statement, each with its cursor, in front of SQLAlchemy's pool.

It must not open connections nor bound their number: the pool does. A checkout there runs a dozen functions, here it is one `pop`.
"""

from __future__ import annotations

import select
from collections import deque
from typing import TYPE_CHECKING, Any, cast

from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

if TYPE_CHECKING:
    from collections.abc import Callable

    import psycopg
    from sqlalchemy import PoolProxiedConnection

# What a forked child inherited: never closed, as the sockets are the parent's, and never collected either, as giving a connection
# back takes the pool's lock, which another thread of the parent may have held.
_inherited: list[deque[Kept]] = []


class Kept:
    """A checked-out connection in autocommit mode.

    Attributes:
        connection: psycopg's.
        cursor: made once; a new one for each statement is a good part of what the statement computes.
        home: where it goes back to.
    """

    __slots__ = ("_raw", "connection", "cursor", "home")

    def __init__(self, raw: PoolProxiedConnection, home: deque[Kept]) -> None:
        self._raw = raw
        self.home = home
        self.connection = cast("psycopg.Connection[Any]", raw.driver_connection)
        self.cursor = self.connection.cursor(row_factory=tuple_row)

    def release(self) -> None:
        """Back to the pool."""
        self._raw.close()

    def drop(self) -> None:
        """Close it; the pool opens another when one is needed."""
        self._raw.invalidate()
        self._raw.close()


class Ready:
    """The connections of one pool that were used last. Thread-safe without a lock: `pop` and `append` of a deque are atomic.

    Args:
        checkout: takes one out of the pool; waits when all are in use.
        most: how many to keep.
    """

    def __init__(self, checkout: Callable[[], PoolProxiedConnection], most: int) -> None:
        self._checkout = checkout
        self._most = most
        self._idle: deque[Kept] = deque()

    def take(self) -> Kept:
        """One that the other side has not ended.

        The server or a pooler may have closed one that lay idle. Asking the socket costs a microsecond; finding out by sending an
        INSERT would leave the caller not knowing whether the job exists.
        """
        while True:
            home = self._idle
            try:
                kept = home.pop()
            except IndexError:
                kept = Kept(self._checkout(), home)
            if not hung_up(kept.connection):
                return kept
            kept.drop()

    def give(self, kept: Kept) -> None:
        """Take one back. What broke, or stands amid something that an exception broke off, or outlived `close`, is closed."""
        if kept.connection.pgconn.transaction_status != TransactionStatus.IDLE or kept.home is not self._idle:
            kept.drop()
        elif len(self._idle) < self._most:
            self._idle.append(kept)
        else:
            kept.release()

    def close(self) -> None:
        """Give all back to the pool; those in use are closed when their statement is done."""
        idle, self._idle = self._idle, deque()
        for kept in idle:
            kept.release()

    def forget(self) -> None:
        """In a forked child: leave the parent's connections alone."""
        _inherited.append(self._idle)
        self._idle = deque()


def hung_up(connection: Any) -> bool:
    """Whether the other side ended an idle connection of psycopg, or of another driver that tells its `closed` and `fileno()`.

    Unasked-for news on a connection that listens to nothing is a farewell, or something as rare as a changed server setting: not
    worth telling apart.
    """
    if connection.closed:
        return True
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))
