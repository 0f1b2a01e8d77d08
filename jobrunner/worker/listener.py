"""Owns wake-ups: LISTEN on a connection of its own. A wake-up is a hint: without any, polling finds everything.

It must not claim.
"""

from __future__ import annotations

import select
import socket
import threading
from typing import TYPE_CHECKING, Any

import psycopg

from jobrunner.connecting import connect
from jobrunner.errors import DatabaseUnreachable
from jobrunner.settings import CHANNEL
from jobrunner.worker.log import logger

if TYPE_CHECKING:
    from collections.abc import Callable, Container

    from jobrunner.settings import Dsn

_RETRY = 5.0  # seconds before a broken connection is tried again; polling goes on meanwhile


class Listener(threading.Thread):
    """Calls `wake` when somebody enqueued into one of `queues`."""

    def __init__(self, dsn: Dsn, queues: Container[str], wake: Callable[[], None]) -> None:
        super().__init__(name="jobrunner-listener", daemon=True)
        self._dsn, self._queues, self._wake = dsn, queues, wake
        self._halt = threading.Event()
        self._halted, self._halting = socket.socketpair()
        self.listening = threading.Event()

    def stop(self) -> None:
        """End the thread at once. Harmless when it has ended, or never began."""
        self._halt.set()
        self._halting.close()  # which the other end hears
        if not self.is_alive():
            self._halted.close()

    def run(self) -> None:
        """Listen until stopped; reconnect when the connection breaks."""
        with self._halted:
            self._listen()

    def _listen(self) -> None:
        while not self._halt.is_set():
            try:
                with connect(self._dsn, application_name="jobrunner-listener") as connection:
                    connection.execute(f"LISTEN {CHANNEL}")
                    self.listening.set()
                    self._wake()  # whatever was enqueued before we listened
                    self._hear(connection)
            except (psycopg.Error, DatabaseUnreachable, OSError) as error:
                self.listening.clear()
                logger.debug("listener lost its connection", extra={"error": type(error).__name__})
                self._halt.wait(_RETRY)

    def _hear(self, connection: psycopg.Connection[Any]) -> None:
        # Waiting is ours: psycopg's own wait wakes ten times a second to see whether somebody pressed Ctrl-C, in every idle worker.
        either = select.poll()
        either.register(connection.fileno(), select.POLLIN)
        either.register(self._halted, select.POLLIN)
        while not self._halt.is_set():
            if any(notice.payload in self._queues for notice in connection.notifies(timeout=0)):
                self._wake()
            either.poll()
