"""Owns when a worker takes the rare steps that keep the tables in shape: partitions ahead of time, and what it is given besides.

It must not know what those other steps do. Any number of workers take them; each step sees to it that this does no harm.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Protocol

import psycopg

from jobrunner.worker.log import logger

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jobrunner.store import Store

PARTITIONS = 3600.0  # seconds between looks at partitions
PARTITIONS_AGAIN = 60.0  # seconds after a look that met a lock
DAYS_AHEAD = 7
CHORES = 300.0  # seconds between the other steps; each is bounded
CHORES_AGAIN = 10.0  # seconds until the next when one of them says that there is more: a backlog goes away, and jobs run meanwhile


class Report(Protocol):
    """What a step has done."""

    @property
    def more(self) -> bool:
        """Whether something is left to do."""


class Upkeep:
    """The rare steps of one worker; used by one thread.

    Args:
        chores: called with a store every few minutes, and when a worker leaves that does not stay for so long.
        now: `clock.monotonic()`.
    """

    def __init__(self, chores: Sequence[Callable[[Store], Report]], now: float) -> None:
        self._chores = chores
        self._partitions_at = now
        self._chores_at = now + CHORES * random.uniform(0.5, 1.0)  # noqa: S311  spreads workers that start together

    def run(self, store: Store, now: float) -> None:
        """Take the steps whose time has come.

        Raises:
            psycopg.Error: what a step met and did not expect.
        """
        if now >= self._partitions_at:
            self._partitions_at = now + PARTITIONS
            self._make_partitions(store, now)
        if now >= self._chores_at:
            self._chores_at = now + CHORES
            if self.finish(store):
                self._chores_at = now + CHORES_AGAIN

    def finish(self, store: Store) -> bool:
        """Take the other steps now, also because the worker is about to leave. Returns whether one of them has more to do."""
        reports = [chore(store) for chore in self._chores]
        return any(report.more for report in reports)

    def _make_partitions(self, store: Store, now: float) -> None:
        try:
            with store.connection.transaction():
                store.connection.execute("SET LOCAL lock_timeout = '1s'")
                store.ensure_partitions(DAYS_AHEAD)
        except (psycopg.errors.LockNotAvailable, psycopg.errors.InsufficientPrivilege) as error:
            self._partitions_at = now + PARTITIONS_AGAIN
            logger.warning("partitions not made; will try again", extra={"error": type(error).__name__})
