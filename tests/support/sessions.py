"""Owns second and third connections that hold locks on purpose, and waiting until one of them is held up by another."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg

from tests.support.rows import Scene
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future

T = TypeVar("T")

PATIENCE = 30  # seconds until a call that should come back is given up
NO_WAIT = "2s"  # a statement that must not wait for a lock fails after this


class Session(Scene):
    """A connection with a thread of its own; `call` runs there, everything else in the calling thread while no call is under way."""

    def __init__(self, connection: psycopg.Connection[Any], threads: ThreadPoolExecutor) -> None:
        super().__init__(connection)
        self._threads = threads

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Start it in the session's thread."""
        return self._threads.submit(function)

    def call_blocked(self, function: Callable[[], T], observer: Scene) -> Future[T]:
        """Start it in the session's thread and wait until it waits for a lock that another session holds."""
        pid = self.connection.info.backend_pid
        under_way = self.call(function)

        def held_up() -> bool:
            assert not under_way.done(), f"it did not wait: {under_way.exception() or under_way.result()!r}"
            return bool(observer.one("SELECT cardinality(pg_blocking_pids(%s)) > 0", (pid,)))

        wait_until(held_up, timeout=PATIENCE, what="the call waits for a lock")
        return under_way


class Sessions:
    """Makes sessions on one database and closes them at the end; transactions left open are rolled back first, so no thread hangs."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.opened: list[Session] = []

    def __call__(self) -> Session:
        """A new session; its statements wait for locks as long as they must."""
        session = Session(psycopg.connect(self.dsn, autocommit=True), ThreadPoolExecutor(1))
        self.opened.append(session)
        return session

    def impatient(self) -> Session:
        """A new session whose statements fail when they have to wait for a lock."""
        session = self()
        session.execute(f"SET lock_timeout = '{NO_WAIT}'")
        return session

    def close(self) -> None:
        """End all sessions; calls under way get an error."""
        with psycopg.connect(self.dsn, autocommit=True) as admin:
            for session in self.opened:
                if not session.connection.closed:
                    admin.execute("SELECT pg_terminate_backend(%s)", (session.connection.info.backend_pid,))
        for session in self.opened:
            session._threads.shutdown()
            session.connection.close()


@contextmanager
def sessions_on(dsn: str) -> Iterator[Sessions]:
    """Sessions for the length of a block."""
    opened = Sessions(dsn)
    try:
        yield opened
    finally:
        opened.close()
