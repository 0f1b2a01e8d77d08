"""Owns forgetting references whose job is gone: a walk over all of them, some at each call, round and round.

It must not keep anybody waiting, nor touch jobs.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

from psycopg import errors as pg

from jobrunner import clock, references

if TYPE_CHECKING:
    from jobrunner.store import Store

logger = logging.getLogger("jobrunner.maintenance")

MOST_ROWS = 500  # looked at by one statement: a probe of each day of history for each, some tens of milliseconds
BUDGET = 1.0  # seconds of one call: a million references are walked over in a night


class Unreferenced(NamedTuple):
    """What one call has done: references looked at, and dropped."""

    looked: int
    dropped: int

    @property
    def more(self) -> bool:
        """Whether there is reason to go on soon: what is dropped with a day of history lies side by side."""
        return self.dropped >= MOST_ROWS


class ReferencePruner:
    """Goes on where its last call ended. Any number may be at it at once.

    Args:
        budget: seconds after which a call begins no further statement.
    """

    def __init__(self, budget: float = BUDGET) -> None:
        self._budget = budget
        self._after_id = 0
        self._may_write = True

    def __call__(self, store: Store) -> Unreferenced:
        """Take some steps; each is a transaction of its own.

        Raises:
            psycopg.Error: the database is away.
        """
        looked = dropped = 0
        until = clock.monotonic() + self._budget
        try:
            while self._may_write:
                walked = references.prune(store, self._after_id, MOST_ROWS)
                looked, dropped = looked + walked.looked, dropped + walked.dropped
                self._after_id = walked.last_id or 0
                if walked.looked < MOST_ROWS:  # the end: the next call begins anew
                    self._after_id = 0
                    break
                if clock.monotonic() >= until:
                    break
        except pg.InsufficientPrivilege:
            self._may_write = False
            logger.info("references of jobs that are gone stay: this login may not delete from jobrunner.job_references")
        if dropped:
            logger.info("references dropped", extra={"dropped": dropped})
        return Unreferenced(looked, dropped)
