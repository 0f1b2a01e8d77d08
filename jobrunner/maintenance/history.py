"""Owns pruning history: some steps now and then by any worker, or all of them at once for whoever calls `prune`.

It must not know how a step is done (`jobrunner.history` does), nor go on for longer than its budget.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg
from psycopg import errors as pg

from jobrunner import clock
from jobrunner.errors import ArchiveError, ConfigurationError
from jobrunner.history.archive import Handing
from jobrunner.history.archive import from_environ as archive_from_environ
from jobrunner.history.steps import PAGES, ArchiveFailed, Pruning, Step, Taken
from jobrunner.maintenance.pruner import IN_USE
from jobrunner.settings import OFF_WORDS, ON_WORDS
from jobrunner.transient import is_transient

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta

    from jobrunner.database import Database
    from jobrunner.history.archive import Archive, Sink
    from jobrunner.store import Store

logger = logging.getLogger("jobrunner.maintenance")

BUDGET = 0.5  # seconds of one turn at upkeep, a twentieth of the time: jobs want the same disk, and other workers their turn
STEP = 0.2  # seconds that a step should take: how much is read at once follows from the last one
_LEAST_PAGES, _MOST_PAGES = 64, 16_384  # 0.5 to 128 MB


class Removed(NamedTuple):
    """What was removed from history.

    Attributes:
        dropped: days that are gone as a whole; `replaced`: days of which the rows to keep were copied.
        removed_count: rows, of dropped days that nobody counted as the planner guesses.
        archived_count: rows that the archive has taken.
        in_use: partitions that were left for another time because somebody used them.
        refused: partitions that the server would not change, and why: something of somebody else's depends on them.
        more: whether something is left to do that a later call can do.
    """

    dropped: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()
    removed_count: int = 0
    archived_count: int = 0
    in_use: tuple[str, ...] = ()
    refused: tuple[tuple[str, str], ...] = ()
    more: bool = False

    def plus(self, step: Step) -> Removed:
        """With what one more step did."""
        return self._replace(
            dropped=(*self.dropped, step.part) if step.did == "dropped" else self.dropped,
            replaced=(*self.replaced, step.part) if step.did == "replaced" else self.replaced,
            removed_count=self.removed_count + step.removed_count,
            archived_count=self.archived_count + step.archived_count,
        )


class HistoryPruner:
    """A chore of workers: takes steps for as long as its budget is. Any number may be at it; one of them takes a step at a time.

    Args:
        sink: takes every row before it is removed.
        budget: seconds.
    """

    def __init__(self, sink: Sink | None = None, budget: float = BUDGET) -> None:
        self._sink, self._budget = sink, budget
        self._pages = PAGES
        self._may = True
        self._complained: set[str] = set()

    @classmethod
    def from_environ(cls) -> tuple[HistoryPruner, ...]:
        """As `JOBRUNNER_PRUNE` and `JOBRUNNER_ARCHIVE` say; nobody when workers are to leave history to who calls `prune`.

        Raises:
            ConfigurationError: one of them means nothing.
        """
        word = os.environ.get("JOBRUNNER_PRUNE", "").strip().lower()
        if word in OFF_WORDS:
            return ()
        if word and word not in ON_WORDS:
            hint = "`off` leaves old history to whoever runs `jobrunner prune`; without it workers remove it as well"
            raise ConfigurationError(f"JOBRUNNER_PRUNE={word!r}: is neither on nor off", hint=hint)
        return (cls(archive_from_environ()),)

    def __call__(self, store: Store) -> Removed:
        """Take some steps; waits at most 200 ms for a lock. What is in use, or cannot be archived, is left for another time.

        Raises:
            psycopg.Error: the database is away.
        """
        if not self._may:
            return Removed()
        run = _Run(Pruning(store.connection, sink=self._sink), self._pages)
        ends = clock.monotonic() + self._budget
        try:
            while run.take():
                if clock.monotonic() >= ends:
                    run.removed = run.removed._replace(more=True)
                    break
        except Taken:
            logger.debug("another worker prunes history at this moment")
        except pg.InsufficientPrivilege:
            self._may = False
            logger.info("old history stays: only the owner of the tables may remove it")
        except ArchiveFailed as error:
            self._complain(error.part, "archive failed: the rows stay", _archive_problem(error))
        self._pages = run.pruning.pages
        self._report(run.removed)
        return run.removed

    def _report(self, removed: Removed) -> None:
        for part, problem in removed.refused:
            self._complain(part, "old history cannot be removed", problem)
        if removed.archived_count:
            self._complained.clear()
        if removed.removed_count or removed.dropped or removed.replaced:
            facts = {"dropped": ",".join(removed.dropped), "replaced": ",".join(removed.replaced)}
            logger.info("pruned history", extra={**facts, "rows": removed.removed_count, "archived": removed.archived_count})

    def _complain(self, part: str, what: str, problem: str) -> None:
        """Once for each partition, until it works again: a full disk is the same five minutes later."""
        if part not in self._complained:
            self._complained.add(part)
            logger.error(what, extra={"partition": part, "error": problem})


def prune(
    database: Database,
    *,
    archive: Archive | None = None,
    sink: Sink | None = None,
    older: timedelta | None = None,
    told: Callable[[Step], object] | None = None,
) -> Removed:
    """Remove now all that is too old by the rules; returns when nothing is left that can be.

    Many short transactions on one connection of the pool; each waits at most 200 ms for a lock, and what is in use is left out.
    Safe while workers do the same: they take turns.

    Args:
        database: where; `jobs.database` of a JobRunner.
        archive: is called with a `Batch` of at most 1,000 rows before they are removed, in the transaction that removes them; what it
            raises keeps those rows and ends the call. It may be called again with rows that it has had, after an error or a lost
            connection: keep them by (id, finished_at).
        sink: an archive of another kind, such as `Files`.
        older: takes the place of every duration of the rules; what is kept forever stays.
        told: is called after each step.

    Raises:
        ArchiveError: the archive failed; `__cause__` is its error. What was removed before that stays removed.
        psycopg.errors.InsufficientPrivilege: the role does not own the tables.
    """
    with database.store() as store:
        run = _Run(Pruning(store.connection, older=older, sink=Handing(archive) if archive is not None else sink), PAGES, told)
        going = True
        while going:
            try:
                going = run.take()
            except Taken:
                time.sleep(STEP)
            except ArchiveFailed as error:
                raise ArchiveError(error.part, _archive_problem(error)) from error.__cause__
        return run.removed


class _Run:
    """Steps one after the other, and what they came to."""

    def __init__(self, pruning: Pruning, pages: int, told: Callable[[Step], object] | None = None) -> None:
        self.pruning, self.removed = pruning, Removed()
        self._told = told
        pruning.pages = pages

    def take(self) -> bool:
        """Take one step. Returns whether there may be another.

        Raises:
            Taken, ArchiveFailed, psycopg.errors.InsufficientPrivilege: as of `Pruning.step`; the second is on record then.
            psycopg.Error: the database is away.
        """
        began = clock.monotonic()
        try:
            step = self.pruning.step()
        except IN_USE as error:
            logger.info("old history is in use; it goes another time", extra={"partition": self.pruning.at, "error": type(error).__name__})
            self._leave(in_use=(*self.removed.in_use, self.pruning.at))
            return True
        except pg.InsufficientPrivilege:
            raise
        except ArchiveFailed as error:
            self._record(error.part, f"archive failed: {_archive_problem(error)}")
            raise
        except psycopg.Error as error:
            if not self.pruning.at or self.pruning.connection.broken or is_transient(error):
                raise
            problem = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            self._record(self.pruning.at, problem)
            self._leave(refused=(*self.removed.refused, (self.pruning.at, problem)))
            return True
        if step is None:
            return False
        self.removed = self.removed.plus(step)
        if step.did in _READING:
            self.pruning.pages = _pace(self.pruning.pages, clock.monotonic() - began)
        if self._told is not None:
            self._told(step)
        return True

    def _leave(self, **facts: Any) -> None:
        """Nothing more with that partition in this run. One without a name is not about a partition: there would be no end."""
        if not self.pruning.at:
            raise Taken
        self.pruning.leave.add(self.pruning.at)
        self.removed = self.removed._replace(**facts)

    def _record(self, part: str, problem: str) -> None:
        with contextlib.suppress(pg.InsufficientPrivilege):  # then the log is the place where it is said
            self.pruning.record_problem(part, problem)


_READING = frozenset({"counted", "copied", "deleted"})


def _pace(pages: int, seconds: float) -> int:
    """How much to read next: rows with large arguments take longer than their pages tell."""
    wanted = int(pages * STEP / max(seconds, STEP / 2))
    return max(_LEAST_PAGES, min(_MOST_PAGES, wanted))


def _archive_problem(error: ArchiveFailed) -> str:
    return f"{type(error.__cause__).__name__}: {error.__cause__}"
