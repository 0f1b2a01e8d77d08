"""Owns hearing of new messages: LISTEN on one connection for all who wait in this process, for each database.

It must not look for messages, nor be needed by anything: who waits looks by himself as well.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import weakref
from typing import TYPE_CHECKING, Any

import psycopg

from jobrunner import clock
from jobrunner.connecting import connect
from jobrunner.errors import DatabaseUnreachable
from jobrunner.settings import CHANNEL

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobrunner.settings import Dsn

logger = logging.getLogger("jobrunner.messages")

LOOK = 1.0  # seconds between looks whether anybody still listens
RETRY = 5.0  # seconds before a broken connection is tried again
IDLE = 60.0  # seconds after the last question for a queue, after which the connection is given up


class Ear:
    """Calls those that asked for a queue when somebody put something there. The thread starts with the first and is left behind by a fork.

    Attributes:
        hears: whether the connection stands: until then who waits must look often.
    """

    def __init__(self, dsn: Dsn) -> None:
        self._dsn = dsn
        self.reset()

    def reset(self) -> None:
        """In a forked child: the thread and its connection are the parent's."""
        self._lock = threading.Lock()
        self._callers: dict[str, weakref.WeakSet[Any]] = {}
        self._asked_at = 0.0
        self._thread: threading.Thread | None = None
        self.hears = False

    def add(self, queue: str, call: Callable[[], None]) -> None:
        """Call that method when something comes to the queue, for as long as its object lives."""
        with self._lock:
            self._asked_at = clock.monotonic()
            self._callers.setdefault(queue, weakref.WeakSet()).add(call.__self__)  # type: ignore[attr-defined]  # a bound method
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="jobrunner-ear", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while clock.monotonic() - self._asked_at < IDLE:
            try:
                with connect(self._dsn, application_name="jobrunner messages") as connection:
                    connection.execute(f"LISTEN {CHANNEL}")
                    self.hears = True
                    self._call(None)  # what came before we listened
                    self._hear(connection)
            except (psycopg.Error, DatabaseUnreachable, OSError) as error:
                logger.debug("hints about messages cannot be heard: %s", error)
                self.hears = False
                threading.Event().wait(RETRY)
        self.hears = False

    def _hear(self, connection: psycopg.Connection[Any]) -> None:
        socket = select.poll()
        socket.register(connection.fileno(), select.POLLIN)
        while clock.monotonic() - self._asked_at < IDLE:
            for queue in {notice.payload for notice in connection.notifies(timeout=0)}:
                self._call(queue)
            socket.poll(LOOK * 1000)

    def _call(self, queue: str | None) -> None:
        with self._lock:
            found = [each for name, callers in self._callers.items() if queue in (None, name) for each in callers]
        for each in found:
            each.call()


def ear_of(dsn: Dsn) -> Ear:
    """The one Ear of this process for a database."""
    ear = _ears.get(dsn.url)
    if ear is None:
        ear = _ears.setdefault(dsn.url, Ear(dsn))
    return ear


def _after_fork() -> None:
    for ear in _ears.values():
        ear.reset()


_ears: dict[str, Ear] = {}
os.register_at_fork(after_in_child=_after_fork)
