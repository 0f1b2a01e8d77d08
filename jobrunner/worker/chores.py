"""Owns the thread on which a worker takes its rare steps, with a connection that is open only while one of them is due.

It must not make the worker wait: neither for a lock that a step meets, nor at its end for longer than `LAST_STEP`. Of all workers of a
database one at a time is at it, so that they need one connection more than they have otherwise, and not one each.
"""

from __future__ import annotations

import contextlib
import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psycopg

from jobrunner import clock, jitter
from jobrunner.connecting import connect
from jobrunner.errors import DatabaseUnreachable
from jobrunner.store import Store
from jobrunner.worker.log import logger
from jobrunner.worker.upkeep import FAILED_AGAIN, Upkeep

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from psycopg import Connection

    from jobrunner.settings import Dsn
    from jobrunner.worker.upkeep import Report

SESSION = "jobrunner-upkeep"  # what the connection is called in pg_stat_activity
TURN = timedelta(minutes=2)  # as long as nobody else begins, should the worker die at it
TURN_AGAIN = 5.0  # seconds until the next look at whose turn it is
LAST_STEP = 4.0  # seconds that a leaving worker waits for the step that it is in; then the step is broken off
_CANCEL = 1.0  # seconds that the server is given to break it off


class Chores:
    """The rare steps of one worker; `mind` and `leave` are called by one thread.

    Args:
        dsn: the database.
        chores: see `Upkeep`.
    """

    def __init__(self, dsn: Dsn, chores: Sequence[Callable[[Store], Report]]) -> None:
        self._dsn = dsn
        self._upkeep = Upkeep(chores, clock.monotonic())
        self._thread: threading.Thread | None = None
        self._connection: Connection[Any] | None = None
        self._may_take_turns = True

    def mind(self, store: Store, worker_id: int) -> None:
        """Begin with the steps whose time has come, if it is this worker's turn; returns at once.

        Args:
            store: to ask whose turn it is: one statement, which waits for no lock.

        Raises:
            psycopg.Error: the database did not answer.
        """
        now = clock.monotonic()
        if self._is_busy() or not self._upkeep.due(now):
            return
        if not self._is_our_turn(store, worker_id):
            self._upkeep.put_off(now + TURN_AGAIN * jitter.between(0.5, 1.0))  # spreads workers
            return
        self._thread = threading.Thread(target=self._run, args=(worker_id,), name=SESSION, daemon=True)
        self._thread.start()

    def leave(self, store: Callable[[], Store] | None) -> None:
        """The worker leaves: wait for the step that is being taken, or break it off. Then take the others, if there is a `store`.

        Raises:
            psycopg.Error, DatabaseUnreachable: the database did not answer to the others.
        """
        self._upkeep.hurry = True
        if self._thread is not None:
            self._thread.join(LAST_STEP)
            self._break_off()
        if store is not None and not self._is_busy():
            self._upkeep.hurry = False
            self._upkeep.finish(store())

    def _is_busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _is_our_turn(self, store: Store, worker_id: int) -> bool:
        if not self._may_take_turns:
            return True
        try:
            return store.take_turn(worker_id, TURN)
        except psycopg.errors.InsufficientPrivilege:
            # Without it the steps are as safe; there may only be more connections for a moment.
            self._may_take_turns = False
            logger.warning("this login may not write into jobrunner.upkeep_turn: workers with it do not take turns at upkeep")
            return True

    # -- the thread

    def _run(self, worker_id: int) -> None:
        try:
            with connect(self._dsn, application_name=SESSION) as connection:
                self._connection = connection
                store = Store(connection)
                try:
                    self._upkeep.run(store, clock.monotonic())
                finally:
                    self._connection = None
                    if self._may_take_turns and not connection.closed:
                        store.take_turn(worker_id, timedelta(0))
        except (psycopg.Error, DatabaseUnreachable, OSError) as error:
            logger.warning("upkeep broken off; will try again", extra={"error": type(error).__name__})
            self._upkeep.put_off(clock.monotonic() + FAILED_AGAIN)

    def _break_off(self) -> None:
        """End the statement that the thread is in: the server rolls the step back, and an archive forgets what it was given."""
        connection, thread = self._connection, self._thread
        if connection is None or thread is None or not thread.is_alive():
            return
        logger.info("leaving: upkeep is broken off, others take it up")
        with contextlib.suppress(psycopg.Error, OSError):
            connection.cancel_safe(timeout=_CANCEL)
        thread.join(_CANCEL)
