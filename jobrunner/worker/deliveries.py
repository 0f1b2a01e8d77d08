"""Owns when a worker looks whether groups that read the log of events have something to get, and have no job for it.

It must not deliver anything: it enqueues jobs, which any worker may run. Workers of an application without such groups never look.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import psycopg

from jobrunner import clock
from jobrunner.worker.log import logger

if TYPE_CHECKING:
    from collections.abc import Sequence

    from psycopg import Connection

    from jobrunner.store import Store

# Which jobs is decided by the function, for everybody: see migration 0009.
_START = "SELECT d.started, d.behind FROM jobrunner.start_deliveries(%(queues)s::text[], %(tasks)s::text[]) AS d"
SOON = 0.02  # seconds until the next look while a group is behind; doubled up to the worker's own pause
COST_SHARE = 10  # a look that took t seconds is not repeated within t times this


def start(connection: Connection[Any], queues: Sequence[str], tasks: Sequence[str]) -> tuple[int, bool]:
    """Enqueue a job for each group that has events to get and no job. Returns how many, and whether any group is behind.

    One transaction; a new job of somebody else's makes it wait for milliseconds.
    """
    row = connection.execute(_START, {"queues": list(queues), "tasks": list(tasks)}, prepare=True).fetchone()
    return cast("tuple[int, bool]", row)


class Deliveries:
    """The looks of one worker; used by one thread.

    Args:
        queues: that it serves.
        poll: seconds between two looks when nothing is behind.

    Attributes:
        tasks: of the groups, as the application registers them.
    """

    def __init__(self, queues: Sequence[str], poll: float) -> None:
        self._queues, self._poll = list(queues), poll
        self.tasks: list[str] = []
        self.next_at = 0.0
        self._pause = SOON
        self._behind = False

    def due(self, now: float) -> bool:
        """Whether to look now."""
        return bool(self.tasks) and now >= self.next_at

    def wake(self) -> None:
        """An event may have been published."""
        self.next_at, self._pause = 0.0, SOON

    def ended(self) -> None:
        """Jobs have ended; one of them may have been that of a group that is behind."""
        if self._behind:
            self.next_at = 0.0

    def look(self, store: Store) -> bool:
        """Enqueue what there is to deliver. Returns whether any job is new.

        Raises:
            psycopg.Error: the database is away.
        """
        began = clock.monotonic()
        try:
            started, self._behind = start(store.connection, self._queues, self.tasks)
        except psycopg.errors.InsufficientPrivilege:
            logger.warning("this login may not use the tables of topics: groups that read the log get nothing from this worker")
            self.tasks = []
            return False
        now = clock.monotonic()
        if started:
            self._pause = SOON
        self.next_at = now + max((now - began) * COST_SHARE, self._pause if self._behind else self._poll)
        self._pause = min(self._pause * 2, self._poll)
        return started > 0
