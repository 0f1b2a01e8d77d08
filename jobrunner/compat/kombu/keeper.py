"""Owns the thread that keeps what a process consumes: leases and queues renewed, hints heard, the lost rescued, the expired swept.

It must not deliver: a hint makes a channel look. One thread and one connection for each database, while anybody consumes.
"""

from __future__ import annotations

import logging
import os
import selectors
import threading
import time
from typing import TYPE_CHECKING, Protocol
from weakref import WeakSet

import psycopg

from jobrunner import jitter
from jobrunner.compat.kombu.broker import Broker
from jobrunner.compat.kombu.link import UNANSWERED, Link
from jobrunner.settings import CHANNEL
from jobrunner.wakeups import waker_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from psycopg import Connection, Notify

    from jobrunner.compat.kombu.options import Options
    from jobrunner.settings import Dsn

logger = logging.getLogger("jobrunner.kombu")

HINT = "broker:"  # before the queue's name in the payload: native workers have queues of the same names
BEATS = 3  # heartbeats within one lease
TICK = 1.0  # seconds between looks whether anybody still consumes
FIRST_BACKOFF, MAX_BACKOFF = 0.1, 2.0  # seconds before a database that is away is tried again


class Member(Protocol):
    """What a channel consumes and holds."""

    @property
    def consumer_id(self) -> int | None:
        """The row whose lease is its own, if it has one."""

    def consumed(self) -> list[str]:
        """The queues it consumes from."""

    def hint(self, queue: str | None) -> None:
        """Something may have come, into one queue or any."""

    def lose(self, consumer_id: int) -> None:
        """Its messages are with others."""

    def restore(self, queues: Iterable[str]) -> None:
        """Declare and bind these of its queues again: they are not there."""

    def settle(self) -> bool:
        """Try again what could not be written; False: it still cannot."""


class Keeper:
    """The thread's other side. Members are kept weakly; those who leave unfinished business behind, until it is done.

    Attributes:
        hears: whether hints come at this moment.
    """

    def __init__(self, dsn: Dsn, options: Options) -> None:
        self.hears = False
        self._dsn = dsn
        self._options = options
        self._members: WeakSet[Member] = WeakSet()
        self._leaving: list[Callable[[], bool]] = []
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._listening: Connection[object] | None = None
        self._link = Link(dsn, "jobrunner-broker-keeper", listens=True)
        self._broker = Broker(self._link)
        self._rescues_from = 0.0  # by the monotonic clock

    def add(self, member: Member) -> None:
        """Keep what this member consumes from now on."""
        with self._starting:
            self._members.add(member)
            self._start()

    def discard(self, member: Member) -> None:
        """It consumes no more."""
        with self._starting:
            self._members.discard(member)

    def finish_later(self, step: Callable[[], bool]) -> None:
        """Call `step` at every round until it returns True."""
        with self._starting:
            self._leaving.append(step)
            self._start()

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="jobrunner-broker-keeper", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        failures = 0
        while not self._is_over():
            began = time.monotonic()
            try:
                self._round()
                if failures:
                    logger.info("the broker's database answers again")
                failures = 0
                self._hear(began + self._options.lease.total_seconds() / BEATS)
            except UNANSWERED as error:
                if not failures:
                    logger.warning("the broker's database does not answer: %s; leases cannot be renewed", _first_line(error))
                self._pause(failures)
                failures += 1
            except Exception:
                logger.exception("the keeper of the broker's leases goes on after an error")
                self._pause(failures)
                failures += 1

    def _is_over(self) -> bool:
        with self._starting:
            if self._members or self._leaving:
                return False
            self._thread = None
            self._deafen()
            self._link.close()  # before who comes next starts another thread, which opens it again
        return True

    def _pause(self, failures: int) -> None:
        self._deafen()
        self._link.close()
        # Whoever else was cut off has a lease's time to renew before we give him up.
        self._rescues_from = time.monotonic() + self._options.lease.total_seconds()
        time.sleep(min(MAX_BACKOFF, FIRST_BACKOFF * 2.0 ** min(failures, 10)) * jitter.between(0.5, 1.0))

    def _deafen(self) -> None:
        self.hears, self._listening = False, None

    # -- one round

    def _round(self) -> None:
        members = self._everybody()
        consumers = {member.consumer_id: member for member in members}
        asked = [consumer_id for consumer_id in consumers if consumer_id is not None]
        if asked:
            alive = self._broker.renew(asked)
            for consumer_id in set(asked) - alive:
                consumers[consumer_id].lose(consumer_id)
        self._keep_queues(members)
        for member in members:
            member.settle()
        for step in list(self._leaving):
            if step():
                self._leaving.remove(step)
        if time.monotonic() >= self._rescues_from:
            for queue, count in self._broker.rescue().items():
                logger.warning("%d messages of %s came back: the lease of their consumer expired", count, queue)
                waker_of(self._dsn).wake(HINT + queue)
        for queue in self._broker.sweep():
            logger.info("queue %s was not used for its time and is removed", queue)

    def _keep_queues(self, members: list[Member]) -> None:
        wanted = sorted({queue for member in members for queue in member.consumed()})
        if not wanted:
            return
        missing = set(wanted) - self._broker.touch(wanted, self._options.lease)
        if missing:
            for member in members:
                member.restore(missing.intersection(member.consumed()))

    # -- hints

    def _hear(self, until: float) -> None:
        """Pass hints on until it is time for the next round, or nobody consumes any more."""
        connection = self._link.open()
        if self._options.listen and self._link.is_direct and self._listening is not connection:
            connection.execute(f"LISTEN {CHANNEL}")
            self._listening, self.hears = connection, True
            self._tell(None)  # whatever came before we listened
        with selectors.DefaultSelector() as selector:
            selector.register(connection.fileno(), selectors.EVENT_READ)
            while True:
                for notice in connection.notifies(timeout=0):  # at first those that came with the answers of the round
                    self._heard(notice)
                if connection.closed:
                    raise psycopg.OperationalError("the connection was closed")
                left = until - time.monotonic()
                if left <= 0 or not (self._members or self._leaving):
                    return
                selector.select(min(left, TICK))

    def _heard(self, notice: Notify) -> None:
        if notice.payload.startswith(HINT):
            self._tell(notice.payload.removeprefix(HINT))

    def _tell(self, queue: str | None) -> None:
        for member in self._everybody():
            member.hint(queue)

    def _everybody(self) -> list[Member]:
        with self._starting:  # who joins while the set is walked would break the walk
            return list(self._members)


def keeper_of(dsn: Dsn, options: Options) -> Keeper:
    """The one Keeper of this process for a database, a lease, and whether to listen."""
    key = (dsn.url, options.lease, options.listen)
    keeper = _keepers.get(key)
    if keeper is None:
        keeper = _keepers.setdefault(key, Keeper(dsn, options))
    return keeper


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _after_fork() -> None:
    # Threads, leases and connections stay with the parent: a child that consumes begins anew.
    _keepers.clear()


_keepers: dict[tuple[str, object, bool], Keeper] = {}
os.register_at_fork(after_in_child=_after_fork)
