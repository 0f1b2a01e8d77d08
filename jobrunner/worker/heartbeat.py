"""Owns the worker's lease: renewing it on a connection of its own, and knowing until when it surely holds.

It must not touch jobs. It runs in its own thread, so that neither a long claim nor an outage of the other connection delays it.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import psycopg

from jobrunner import clock
from jobrunner.connecting import connect, plan_once
from jobrunner.errors import DatabaseUnreachable
from jobrunner.jobs import WorkerSight
from jobrunner.store import Store
from jobrunner.worker import procfs
from jobrunner.worker.limits import resident_bytes
from jobrunner.worker.log import logger

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta

    from jobrunner.jobs import WorkerCounts
    from jobrunner.settings import Dsn

_BEATS = 3  # per lease: two may be lost before it is in danger
_RETRY = 1.0  # seconds between attempts to reach a database that does not answer
IDLE_MEASURE = 60.0  # seconds between measurements of the memory of a worker that does nothing: each reads its page tables
NEWS = 2.0  # seconds at least between two beats when what the worker runs has changed


class Heartbeat(threading.Thread):
    """Renews one worker's lease until stopped or lost.

    Attributes:
        ends: `clock.monotonic()` until which the lease holds for certain: the moment before the last good heartbeat was sent, plus
            the lease. The database's own idea is later, never earlier.
        lost: the database refused to renew it.
    """

    def __init__(
        self,
        dsn: Dsn,
        worker_id: int,
        lease: timedelta,
        ends: float,
        *,
        counts: Callable[[], WorkerCounts],
        running: Callable[[], str],
        extended: Callable[[float], None],
    ) -> None:
        super().__init__(name="jobrunner-heartbeat", daemon=True)
        self.dsn, self.worker_id, self.lease, self.ends = dsn, worker_id, lease, ends
        self.lost = False
        self._counts, self._running, self._extended = counts, running, extended
        self._halt = threading.Event()
        self._news = threading.Event()
        self._seen = WorkerSight()
        self._did: tuple[WorkerCounts, str] | None = None
        self._measure_at = 0.0

    def stop(self) -> None:
        """End the thread; the lease is left to expire or to `stop_worker`."""
        self._halt.set()
        self._news.set()

    def news(self) -> None:
        """What the worker runs has changed: beat soon, so that `v_workers` shows it."""
        self._news.set()

    def run(self) -> None:
        """Beat until stopped; any number of broken connections on the way."""
        pause = self.lease.total_seconds() / _BEATS
        while not self._halt.is_set():
            try:
                with connect(self.dsn, application_name="jobrunner-heartbeat") as connection:
                    plan_once(connection)
                    self._beat(Store(connection), pause)
            except (psycopg.Error, DatabaseUnreachable, OSError) as error:
                logger.debug("heartbeat failed", extra={"error": type(error).__name__})
            if self.lost or self._halt.wait(min(_RETRY, pause)):
                return

    def _beat(self, store: Store, pause: float) -> None:
        while not self._halt.is_set():
            sent = clock.monotonic()
            counts = self._counts()
            if not store.heartbeat(self.worker_id, self.lease, self._sight(counts, sent), counts):
                self.lost = True
                return
            self.ends = sent + self.lease.total_seconds()
            self._extended(self.ends)
            soon = min(NEWS, pause)
            if not self._halt.wait(soon):
                self._news.wait(pause - soon)
            self._news.clear()

    def _sight(self, counts: WorkerCounts, now: float) -> WorkerSight:
        """What it runs, and how much memory all its processes have: measured with each beat while it works, else now and then."""
        did = counts, self._running()
        if did != self._did or now >= self._measure_at:
            self._did, self._measure_at = did, now + IDLE_MEASURE
            self._seen = WorkerSight(resident_bytes(), procfs.proportional_bytes(os.getpid()), did[1])
        return self._seen
