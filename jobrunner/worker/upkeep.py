"""Owns which of the rare steps that keep the tables in shape are due, and takes them: partitions ahead of time, and others it is given.

It must not know what those other steps do, nor on which thread it is. Any number of workers take them; each step sees to it that this
does no harm.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar

import psycopg

from jobrunner import jitter
from jobrunner.worker.log import logger

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jobrunner.store import Store

T = TypeVar("T")

PARTITIONS = 3600.0  # seconds between looks at partitions
PARTITIONS_AGAIN = 60.0  # seconds after a look that met a lock
DAYS_AHEAD = 7
CHORES = 300.0  # seconds between the other steps; each is bounded
CHORES_AGAIN = 10.0  # seconds until the next when one of them says that there is more: a backlog goes away, and the disk has pauses
FAILED_AGAIN = 60.0  # seconds until the next after a step that failed: what broke it is rarely gone at once


class Report(Protocol):
    """What a step has done."""

    @property
    def more(self) -> bool:
        """Whether something is left to do."""


class Upkeep:
    """The rare steps of one worker; used by one thread at a time.

    Args:
        chores: called with a store every few minutes, and when a worker leaves that does not stay for so long.
        now: `clock.monotonic()`.

    Attributes:
        hurry: the worker is about to leave: no further step is begun.
    """

    def __init__(self, chores: Sequence[Callable[[Store], Report]], now: float) -> None:
        self._chores = chores
        self._partitions_at = now
        self._chores_at = now + CHORES * jitter.between(0.5, 1.0)  # spreads workers that start together
        self.hurry = False

    def due(self, now: float) -> bool:
        """Whether the time of a step has come."""
        return now >= min(self._partitions_at, self._chores_at)

    def put_off(self, until: float) -> None:
        """Nothing is due before that."""
        self._partitions_at = max(self._partitions_at, until)
        self._chores_at = max(self._chores_at, until)

    def run(self, store: Store, now: float) -> None:
        """Take the steps whose time has come. One that fails is logged, and comes again in a minute.

        Raises:
            psycopg.Error: the connection is lost.
        """
        if now >= self._partitions_at:
            made = self._taken("partitions", partial(self._make_partitions, store), store)
            self._partitions_at = now + (PARTITIONS if made else PARTITIONS_AGAIN)
        if now >= self._chores_at and not self.hurry:
            self._chores_at = now + FAILED_AGAIN  # should the connection be lost on the way
            self._chores_at = now + self.finish(store)

    def finish(self, store: Store) -> float:
        """Take the other steps now, also because the worker is about to leave. Returns in how many seconds they are due again.

        Raises:
            psycopg.Error: the connection is lost.
        """
        reports: list[Report | None] = []
        for chore in self._chores:
            if self.hurry:
                break
            reports.append(self._taken(type(chore).__name__, partial(chore, store), store))
        if any(report is not None and report.more for report in reports):
            return CHORES_AGAIN
        return FAILED_AGAIN if None in reports else CHORES

    def _taken(self, name: str, step: Callable[[], T], store: Store) -> T | None:
        """What the step returns; None when it failed."""
        try:
            return step()
        except Exception as error:  # whatever a step meets, the other steps are taken
            if store.connection.closed:
                raise
            logger.warning("upkeep failed; will try again", extra={"step": name, "error": type(error).__name__}, exc_info=error)
            return None

    def _make_partitions(self, store: Store) -> bool:
        try:
            with store.connection.transaction():
                store.connection.execute("SET LOCAL lock_timeout = '1s'")
                store.ensure_partitions(DAYS_AHEAD)
        except (psycopg.errors.LockNotAvailable, psycopg.errors.InsufficientPrivilege) as error:
            logger.warning("partitions not made; will try again", extra={"error": type(error).__name__})
            return False
        return True
