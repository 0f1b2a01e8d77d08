"""Owns the roll-ups once they are counted: ten-second slices become part of their minutes and hours, and what is too old goes.

It must not count anything: the triggers do, with the job that ended. Nothing waits for it either: the views show what it has not settled.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

from psycopg import errors as pg

from jobrunner.maintenance.pruner import MOST_PARTITIONS, DayDropper

if TYPE_CHECKING:
    from jobrunner.store import Store

logger = logging.getLogger("jobrunner.maintenance")

SETTLE_AFTER = timedelta(minutes=2)  # `jobrunner top` tells the rate of the last minute by slices; and few transactions take longer
MOST_SLICES = 2000  # rows in one transaction: some tens of milliseconds
MOST_STEPS = 20  # transactions in one call: more than the finisher of 40 kinds of jobs leaves in five minutes
MOST_HOURS = 2000  # rows in one call; an hour has one for each queue, task and outcome


@dataclass(frozen=True, slots=True)
class KeepRollups:
    """How long roll-ups are kept: minutes by whole days (UTC), hours to the hour."""

    minutes: timedelta = timedelta(hours=72)
    hours: timedelta = timedelta(days=400)


class RolledUp(NamedTuple):
    """What one call has done: slices added up, days of minutes dropped, rows of hours forgotten."""

    slices: int
    days: int
    hours: int

    @property
    def more(self) -> bool:
        """Whether a bound was reached, so that something is left."""
        return self.slices >= MOST_STEPS * MOST_SLICES or self.days >= MOST_PARTITIONS or self.hours >= MOST_HOURS


class Settler:
    """Takes some bounded steps at each call. Any number may be at it at once: what was added up is gone, so nothing counts twice."""

    def __init__(self, keep: KeepRollups | None = None) -> None:
        self.keep = keep or KeepRollups()
        self._may_write = True
        self._drop_days = DayDropper("rollup_minute", "minutes")

    def __call__(self, store: Store) -> RolledUp:
        """Settle what is there, up to a number, and forget some of what is too old. Each step is a transaction of its own.

        Raises:
            psycopg.Error: the database is away, or refused what it should not.
        """
        if not self._may_write:
            return RolledUp(0, 0, 0)
        try:
            settled = RolledUp(
                self._settle(store), self._drop_days(store, self.keep.minutes), store.prune("rollup_hours", self.keep.hours, MOST_HOURS)
            )
        except pg.InsufficientPrivilege:
            self._may_write = False
            logger.warning("roll-ups are not settled: this login may not write to their tables; GRANT it, or let another worker's do it")
            return RolledUp(0, 0, 0)
        if any(settled):
            logger.info("settled", extra=settled._asdict())
        return settled

    def _settle(self, store: Store) -> int:
        total = 0
        for _ in range(MOST_STEPS):
            total += (settled := store.settle_rollups(SETTLE_AFTER, self.keep.minutes, MOST_SLICES))
            if settled < MOST_SLICES:
                break
        return total
