"""Owns the worker's own row: taking it (and a slot of a pool), keeping its lease, closing it with what was done.

It must not know the children nor claim anything.
"""

from __future__ import annotations

import os
import socket
import time
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple

from psycopg.conninfo import conninfo_to_dict
from psycopg.errors import InsufficientPrivilege

from jobrunner import clock, jitter, migrate, subscriptions
from jobrunner.connecting import connect, may_pass
from jobrunner.errors import DatabaseUnreachable
from jobrunner.history.rules import say_code
from jobrunner.jobs import Leaving, Remains, WorkerCounts
from jobrunner.store import Store
from jobrunner.texts import cut, redacted, storable
from jobrunner.worker.heartbeat import Heartbeat
from jobrunner.worker.log import logger

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from jobrunner.keeping import Rule
    from jobrunner.worker.options import WorkerOptions

BUSY, LOST, FAILED = "busy", "lost", "error"
MOST_LEFT = 10_000  # jobs that are counted when a worker leaves; above, the number is this one
_MAX_ERROR = 2_000  # characters of what a worker died of
_PAUSE = (0.2, 1.0)  # seconds between attempts to reach a database that is starting up


class Departure(NamedTuple):
    """How a worker left.

    Attributes:
        reason: as in `Leaving`; `busy` when every slot of its pool was held and it never began.
        worker_id: of its row; 0 when it has none.
        jobs_failed: jobs that ended here as failed or quarantined.
        remains: what it left behind; None when the database could not be asked.
    """

    reason: str
    exit_code: int = 0
    worker_id: int = 0
    slot: int | None = None
    counts: WorkerCounts = WorkerCounts()
    jobs_failed: int = 0
    remains: Remains | None = None


class Registration:
    """One worker's row in `workers`, renewed by a thread for as long as the worker wants.

    Args:
        counts, running: what the heartbeat shows.
        extended: told until when the lease surely holds, each time that moves.

    Attributes:
        worker_id: of the row; another one after a lost lease.
        slot: the number within the pool; None for a worker without one.
        heartbeat: the thread that renews it.
    """

    heartbeat: Heartbeat

    def __init__(
        self,
        options: WorkerOptions,
        *,
        counts: Callable[[], WorkerCounts],
        running: Callable[[], str],
        extended: Callable[[float], None],
    ) -> None:
        self.options = options
        self.worker_id = 0
        self.slot: int | None = None
        self._counts, self._running, self._extended = counts, running, extended

    def check_database(self) -> None:
        """Make sure that the database answers, waiting for one that is about to, and that its schema fits.

        Raises:
            DatabaseUnreachable, SchemaError: it does not; no attempt begins after `options.patience`.
        """
        ends = clock.monotonic() + self.options.patience.total_seconds()
        while True:
            try:
                connect(self.options.dsn).close()  # its error is the one with the reason
            except DatabaseUnreachable as error:
                pause = jitter.between(*_PAUSE)  # spreads processes
                if clock.monotonic() + pause > ends or not may_pass(error):
                    raise
                time.sleep(pause)
            else:
                break
        migrate.check(self.options.dsn.url)

    def take(self, tasks: Sequence[str]) -> bool:
        """Insert a row and begin to renew its lease.

        Returns:
            False when other workers hold every slot of the pool; nothing was written then.

        Raises:
            DatabaseUnreachable, psycopg.Error: nothing is known to be taken.
        """
        facts = {
            "name": self.options.shown_name,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "kind": self.options.kind,
            "version": version("jobrunner-pg"),
            "queues": [name for name, _ in self.options.queues],
            "tasks": list(tasks),
            "slots": self.options.all_slots,
        }
        with connect(self.options.dsn, application_name="jobrunner-worker") as connection:
            store = Store(connection)
            sent = clock.monotonic()
            if self.options.pool is None:
                self.worker_id = store.register_worker(facts, self.options.lease)
            elif not self._take_slot(store, facts, self.options.pool):
                return False
        self._renew(sent)
        return True

    def _take_slot(self, store: Store, facts: dict[str, Any], pool: str) -> bool:
        """Take the first slot of the pool that is free, or whose holder is lost."""
        for number in range(1, self.options.pool_slots + 1):
            found = store.take_slot(facts, self.options.lease, pool, number)
            if found is not None:
                self.worker_id, self.slot = found.worker_id, number
                if found.given_up is not None:
                    logger.warning("took the slot of a lost worker", extra={"pool": pool, "slot": number, "worker_id": found.given_up})
                return True
        return False

    def _renew(self, sent: float) -> None:
        options = self.options
        ends = sent + options.lease.total_seconds()
        self._extended(ends)
        self.heartbeat = Heartbeat(
            options.dsn, self.worker_id, options.lease, ends, counts=self._counts, running=self._running, extended=self._extended
        )
        self.heartbeat.start()

    def announce(self, tasks: Sequence[str], keep: tuple[str, Sequence[Rule]], declared: Sequence[Mapping[str, Any]]) -> bool:
        """Say which tasks run here, how long the application keeps their jobs, and what it subscribes to, once it is imported.

        False when the lease was lost.

        Raises:
            DatabaseUnreachable, psycopg.Error: it is not known.
        """
        with connect(self.options.dsn, application_name="jobrunner-worker") as connection:
            try:
                say_code(connection, *keep)
            except InsufficientPrivilege:
                if keep[1]:
                    logger.warning("this login may not write into jobrunner.retention: what the code says of keeping jobs has no effect")
            try:
                subscriptions.declare(subscriptions.Direct(connection), keep[0], declared, complete=True)
            except InsufficientPrivilege:
                if declared:
                    logger.warning("this login may not write into jobrunner.subscriptions: what the code subscribes to has no effect")
            return Store(connection).set_tasks(self.worker_id, list(tasks))

    def close(self, departure: Departure, error: BaseException | None = None) -> Departure:
        """End the heartbeat and close the row. Never raises: a row that stays open is closed by the next rescue."""
        self.heartbeat.stop()
        departure = departure._replace(worker_id=self.worker_id, slot=self.slot, counts=self._counts())
        words = None if error is None else self._words(error)
        try:
            with connect(self.options.dsn, application_name="jobrunner-worker") as connection, connection.transaction():
                store = Store(connection)
                remains = store.remains([name for name, _ in self.options.queues], MOST_LEFT)
                leaving = Leaving(departure.reason, departure.exit_code, words, remains.left, remains.next_due_at)
                store.stop_worker(self.worker_id, leaving, departure.counts)
        except Exception as problem:  # noqa: BLE001  everything is written; the row is closed by the next rescue
            logger.warning("could not close the worker's row", extra={"error": type(problem).__name__})
            return departure
        return departure._replace(remains=remains)

    def _words(self, error: BaseException) -> str:
        """What the worker died of, for everybody who may read `worker_runs`: without the passwords that it may quote."""
        text = redacted(storable(f"{type(error).__name__}: {error}"))
        password = str(conninfo_to_dict(self.options.dsn.url).get("password") or "")
        return cut(text.replace(password, "***") if password else text, _MAX_ERROR)
