"""Owns forgetting: worker rows, runs and job logs that are older than they are kept, a bounded number at a time.

It must not touch live jobs nor their history, nor keep anybody waiting for a lock: what is in use is left for another time.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

from psycopg import errors as pg

from jobrunner.settings import find_duration

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jobrunner.store import Store

logger = logging.getLogger("jobrunner.maintenance")

MOST_ROWS = 1000  # of one table in one step: a few milliseconds. A worker started every minute leaves 1,440 rows a day
MOST_PARTITIONS = 2  # in one step: each drop holds up who writes logs until its file is gone
LOCK_PATIENCE = timedelta(milliseconds=200)  # others that want the table queue up behind a drop that waits for it

_LEAST = timedelta(days=1)  # partitions are days, and a worker that ended is looked at again for some minutes
_MOST = timedelta(days=36_500)
IN_USE = (pg.LockNotAvailable, pg.DeadlockDetected, pg.UndefinedTable)  # the last: somebody else dropped it a moment ago


@dataclass(frozen=True, slots=True)
class Keep:
    """How long what is kept.

    Attributes:
        logs: lines that jobs logged, by whole days (UTC).
        runs: rows of `worker_runs`.
        workers: rows of workers that have stopped.
    """

    logs: timedelta = timedelta(days=30)
    runs: timedelta = timedelta(days=90)
    workers: timedelta = timedelta(days=7)

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] | None = None) -> Keep:
        """As `JOBRUNNER_KEEP_LOGS` and `JOBRUNNER_KEEP_RUNS` say.

        Raises:
            ConfigurationError: one of them is no duration between a day and a hundred years.
        """
        return cls(
            logs=find_duration("JOBRUNNER_KEEP_LOGS", cls().logs, least=_LEAST, most=_MOST, environ=environ),
            runs=find_duration("JOBRUNNER_KEEP_RUNS", cls().runs, least=_LEAST, most=_MOST, environ=environ),
        )


class Pruned(NamedTuple):
    """What one step has removed."""

    workers: int
    runs: int
    log_partitions: int

    @property
    def more(self) -> bool:
        """Whether a bound was reached, so that something is left."""
        return self.workers >= MOST_ROWS or self.runs >= MOST_ROWS or self.log_partitions >= MOST_PARTITIONS


class DayDropper:
    """Drops days of one partitioned table that are too old, a few at each call; what is in use is left for another time.

    Args:
        parent: the table.
        what: it holds, in the plural.
    """

    def __init__(self, parent: str, what: str) -> None:
        self._parent, self._what = parent, what
        self._may_drop = True

    def __call__(self, store: Store, keep: timedelta) -> int:
        """Returns how many days are gone. Waits 200 ms for the table.

        Raises:
            psycopg.Error: the database is away, or refused what it should not.
        """
        if not self._may_drop:
            return 0
        try:
            return store.drop_partitions(self._parent, keep, MOST_PARTITIONS, LOCK_PATIENCE)
        except IN_USE as error:
            logger.info("old %s are in use; they go another time", self._what, extra={"error": type(error).__name__})
        except pg.InsufficientPrivilege:
            self._may_drop = False
            logger.info("old %s stay: only the owner of the tables may drop them", self._what)
        return 0


class Pruner:
    """Takes one bounded step at each call. Any number may be at it at once: each row and partition is taken by one of them."""

    def __init__(self, keep: Keep | None = None) -> None:
        self.keep = keep or Keep()
        self._drop_logs = DayDropper("job_logs", "job logs")

    def __call__(self, store: Store) -> Pruned:
        """Remove some of what is too old. Each kind is a transaction of its own; waits for no row lock, and 200 ms for a table.

        Raises:
            psycopg.Error: the database is away, or refused what it should not.
        """
        pruned = Pruned(
            store.prune("workers", self.keep.workers, MOST_ROWS),
            store.prune("worker_runs", self.keep.runs, MOST_ROWS),
            self._drop_logs(store, self.keep.logs),
        )
        if any(pruned):
            logger.info("pruned", extra=pruned._asdict())
        return pruned
