"""Owns what the end of a caller's transaction means for its jobs: hints after commit, silence after rollback, else a warning.

It must not write: SQLAlchemy's own events tell it when the caller's transaction ends.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from sqlalchemy import event

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.orm import Session, SessionTransaction

    from jobrunner.wakeups import Waker

    Hint = tuple[Waker, str]  # whom to ask, and the queue

logger = logging.getLogger("jobrunner.enqueue")


class _Pending:
    """Jobs written in one transaction or savepoint: how many, and which hints to send once they are visible."""

    __slots__ = ("count", "hints")

    def __init__(self) -> None:
        self.count = 0
        self.hints: set[Hint] = set()


class _SessionWatch:
    """The jobs of one Session, by the transaction or savepoint that wrote them."""

    def __init__(self, session: Session) -> None:
        self._pending: dict[SessionTransaction, _Pending] = {}
        event.listen(session, "after_commit", self._committed)
        event.listen(session, "after_rollback", self._rolled_back)
        event.listen(session, "after_transaction_end", self._ended)

    def add(self, session: Session, count: int, hint: Hint | None) -> None:
        scope = session.get_nested_transaction() or session.get_transaction()
        if scope is None:  # never so after a statement, but a subclass may do as it likes; workers poll anyway
            return
        pending = self._pending.setdefault(scope, _Pending())
        pending.count += count
        if hint is not None:
            pending.hints.add(hint)

    def _committed(self, session: Session) -> None:
        if session.in_nested_transaction():
            return  # only a savepoint was released
        hints = {hint for pending in self._pending.values() for hint in pending.hints}
        self._pending.clear()
        for waker, queue in hints:
            waker.wake(queue)

    def _rolled_back(self, session: Session) -> None:
        savepoint = session.get_nested_transaction()
        for scope in list(self._pending):
            if savepoint is None or _within(scope, savepoint):
                del self._pending[scope]

    def _ended(self, _session: Session, transaction: SessionTransaction) -> None:
        if transaction.parent is not None or not self._pending:
            return
        count = sum(pending.count for pending in self._pending.values())
        self._pending.clear()
        if not count:  # only hints: of a message that was acknowledged, and comes again
            return
        plural = "1 job was enqueued in a session that was closed without commit: it does not exist"
        if count > 1:
            plural = f"{count:,} jobs were enqueued in a session that was closed without commit: they do not exist"
        logger.warning("%s", plural)


class _ConnectionWatch:
    """The jobs of one SQLAlchemy Connection. A savepoint that is rolled back may leave a hint too many, which is harmless."""

    def __init__(self, connection: Connection) -> None:
        self.hints: set[Hint] = set()
        event.listen(connection, "commit", self._committing)
        event.listen(connection, "rollback", self._rolled_back)

    def _committing(self, connection: Connection) -> None:
        # This event comes before COMMIT is sent, so the waker gets the transaction and waits until it is over.
        hints, self.hints = self.hints, set()
        for waker, queue in hints:
            waker.wake_after(connection.get_transaction(), queue)

    def _rolled_back(self, _connection: Connection) -> None:
        self.hints.clear()


# Kept in the session itself: a map from here would hold a session that is dropped without close, and its connection, for ever.
_KEY = "jobrunner.pending"
_connections: WeakKeyDictionary[Connection, _ConnectionWatch] = WeakKeyDictionary()


def watch_session(session: Session, count: int, hint: Hint | None) -> None:
    """Note that `count` jobs were written in the session's current transaction; `hint` goes out after its commit."""
    watch = session.info.get(_KEY)
    if watch is None:
        watch = session.info[_KEY] = _SessionWatch(session)
    watch.add(session, count, hint)


def watch_connection(connection: Connection, hint: Hint | None) -> None:
    """Send `hint` after the connection's current transaction has committed."""
    if hint is None:
        return
    watch = _connections.get(connection)
    if watch is None:
        watch = _connections[connection] = _ConnectionWatch(connection)
    watch.hints.add(hint)


def _within(scope: SessionTransaction, savepoint: SessionTransaction) -> bool:
    step: SessionTransaction | None = scope
    while step is not None:
        if step is savepoint:
            return True
        step = step.parent
    return False
