"""Owns the hints that tell idle workers of new work: one background thread per process and database, on a connection of its own.

It must not delay or fail an enqueue, nor be needed by anything: workers poll, so a hint that is lost costs one poll. A NOTIFY
inside the inserting transaction would take a database-wide lock at its commit, hence the side connection.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import threading
import time
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import psycopg

from jobrunner.connecting import allow_preparing
from jobrunner.settings import CHANNEL

if TYPE_CHECKING:
    from jobrunner.settings import Dsn

logger = logging.getLogger("jobrunner.wakeups")

INTERVAL = 0.010  # seconds between two hints for one queue; a worker that was woken claims everything that is due anyway
IDLE = 60.0  # seconds without a hint after which the connection is given up
RECONNECT = 1.0  # seconds to wait after the database did not answer; hints of that time are dropped
CONNECT_TIMEOUT = 5  # seconds
COMMIT_POLL = 0.002  # seconds between looks at a transaction that is being committed
COMMIT_TIMEOUT = 10.0  # seconds after which a hint for a commit that does not end is dropped
EXIT_TIMEOUT = 1.0  # seconds that the end of the process waits for the last hint

# A NOTIFY takes a transaction id, so its commit would wait for the disk: for a hint that nobody needs after a crash.
_NOTIFY = (
    "SELECT pg_notify(%s, queue) FROM unnest(%s::text[]) AS queue, "
    "(SELECT set_config('synchronous_commit', 'off', true) OFFSET 0) AS this_transaction_only"
)


class _Asked(NamedTuple):
    queue: str
    transaction: Ending | None = None
    until: float = 0.0  # when to stop waiting for the transaction


class Ending(Protocol):
    """A transaction that is about to end; SQLAlchemy's `Transaction` is one."""

    @property
    def is_active(self) -> bool:
        """False as soon as it has ended."""


class Waker:
    """Sends hints to one database. The thread starts with the first hint and is left behind by a fork.

    Hints of one queue are joined: the first goes out at once, the next not before `INTERVAL` has passed.
    """

    def __init__(self, dsn: Dsn) -> None:
        self._dsn = dsn
        self._starting = threading.Lock()
        self._reset()

    def _reset(self) -> None:
        self._inbox: SimpleQueue[_Asked | None] = SimpleQueue()
        self._asked: set[str] = set()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._complained = False

    def wake(self, queue: str) -> None:
        """Ask for a hint for `queue`; returns at once and never raises."""
        # Without a lock: at worst a queue is put twice, which is one hint too many.
        if queue in self._asked:
            return
        self._asked.add(queue)
        self._inbox.put(_Asked(queue))
        if self._thread is None:
            self._start()

    def wake_after(self, transaction: Ending | None, queue: str) -> None:
        """Ask for a hint once `transaction`, whose COMMIT is about to be sent, has ended; returns at once."""
        self._inbox.put(_Asked(queue, transaction, time.monotonic() + COMMIT_TIMEOUT))
        if self._thread is None:
            self._start()

    def _start(self) -> None:
        with self._starting:
            if self._thread is not None:
                return
            thread = threading.Thread(target=self._run, args=(self._inbox, self._asked), name="jobrunner-wakeups", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the interpreter is shutting down
                return
            self._thread = thread

    def close(self) -> None:
        """Send what was asked for, then stop the thread; waits `EXIT_TIMEOUT` at most. The next hint starts a new one."""
        thread = self._thread
        if thread is not None:
            self._thread = None
            self._inbox.put(None)
            thread.join(EXIT_TIMEOUT)

    def _run(self, inbox: SimpleQueue[_Asked | None], asked: set[str]) -> None:
        connection: psycopg.Connection[Any] | None = None
        sent: dict[str, float] = {}  # queue → when its last hint went out
        due: dict[str, float] = {}  # queue → when its next hint may go out
        committing: list[_Asked] = []
        stopping = False
        while not stopping:
            try:
                item = inbox.get(timeout=_pause(due, committing))
                stopping = item is None
                if item is not None:
                    committing.append(item)
            except Empty:
                if not due and not committing:
                    _close(connection)
                    connection, sent = None, {}
            now = time.monotonic()
            for item in [item for item in committing if stopping or item.transaction is None or not item.transaction.is_active]:
                committing.remove(item)
                due.setdefault(item.queue, max(now, sent.get(item.queue, 0.0) + INTERVAL))
            committing = [item for item in committing if item.until > now]
            ready = [queue for queue, when in due.items() if stopping or when <= now]
            for queue in ready:
                del due[queue]
                asked.discard(queue)  # before the hint goes out: whoever commits from here on asks again
                sent[queue] = now
            if ready:
                connection = self._send(connection, ready)
                if connection is None and not stopping:
                    time.sleep(RECONNECT)
        _close(connection)

    def _send(self, connection: psycopg.Connection[Any] | None, queues: list[str]) -> psycopg.Connection[Any] | None:
        fresh = connection is None
        try:
            if connection is None:
                connection = psycopg.connect(
                    self._dsn.url,
                    autocommit=True,
                    prepare_threshold=None,
                    connect_timeout=CONNECT_TIMEOUT,
                    application_name="jobrunner wake-ups",
                )
                allow_preparing(connection)
            # Prepared, because planning would cost the server more than all the rest of a hint.
            connection.execute(_NOTIFY, (CHANNEL, queues), prepare=True)
        except psycopg.Error as error:
            _close(connection)
            if not fresh:  # the server or a pooler closed an idle connection: that is not a failure yet
                return self._send(None, queues)
            if not self._complained:
                self._complained = True
                logger.debug("wake-ups cannot be sent, workers will find the jobs by polling: %s", error)
            return None
        self._complained = False
        return connection


def waker_of(dsn: Dsn) -> Waker:
    """The one Waker of this process for a database."""
    waker = _wakers.get(dsn.url)
    if waker is None:
        waker = _wakers.setdefault(dsn.url, Waker(dsn))
    return waker


def _pause(due: dict[str, float], committing: list[_Asked]) -> float:
    if committing:
        return COMMIT_POLL
    return max(0.0, min(due.values()) - time.monotonic()) if due else IDLE


def _close(connection: psycopg.Connection[Any] | None) -> None:
    if connection is not None:
        with contextlib.suppress(psycopg.Error):
            connection.close()


def _close_all() -> None:
    for waker in list(_wakers.values()):
        waker.close()


def _after_fork() -> None:
    # The thread exists in the parent only, and its connection belongs to the parent: psycopg never closes a connection in another
    # process than the one that opened it.
    for waker in _wakers.values():
        waker._reset()  # noqa: SLF001  the module is the class's only other user


_wakers: dict[str, Waker] = {}
atexit.register(_close_all)
os.register_at_fork(after_in_child=_after_fork)
