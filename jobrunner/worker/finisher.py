"""Owns getting outcomes into the database: in batches, fenced, whatever is in them.

It must not lose one: on an outage the batch is kept by the caller; an outcome that PostgreSQL will not store is replaced by one
that it will.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import psycopg

from jobrunner.jobs import Ended, Ending, Outcome, Settled, Succeeded, Unsuccessful
from jobrunner.transient import is_transient
from jobrunner.worker.log import logger

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobrunner.store import Store

_UNSTORABLE = "jobrunner.errors.JobrunnerError"


class Finisher:
    """Writes batches of outcomes; used by one thread."""

    def __init__(self) -> None:
        self.succeeded_count = 0
        self.failed_count = 0
        self._tally: Counter[str] = Counter()
        self._in_doubt: set[tuple[int, int]] = set()
        self._settled: set[Settled] = set()

    @property
    def failed_jobs(self) -> int:
        """Jobs that ended as failed or quarantined; fewer than attempts that failed, after most of which another follows."""
        return self._tally["fail"] + self._tally["quarantine"]

    def write(self, store: Store, ended: Sequence[Ended]) -> None:
        """Write the outcomes among `ended` in one transaction; one by one when PostgreSQL refuses the batch for what is in it.

        Raises:
            psycopg.Error: a transient one; nothing is known to be written, call again with the same outcomes.
        """
        self._count_settled([outcome for outcome in ended if isinstance(outcome, Settled)])
        outcomes: list[Outcome] = [outcome for outcome in ended if not isinstance(outcome, Settled)]
        try:
            refused = store.finish(outcomes, self._tally) if outcomes else []
        except psycopg.Error as error:
            if is_transient(error):
                self._in_doubt.update((outcome.id, outcome.lease) for outcome in outcomes)
                raise
            refused = [lost for outcome in outcomes for lost in self._write_one(store, outcome)]
        self._count(outcomes, refused)
        self._settled.clear()

    def _count_settled(self, settled: Sequence[Settled]) -> None:
        for outcome in settled:
            if outcome not in self._settled:  # else the batch was tried before
                self._settled.add(outcome)
                self.succeeded_count += 1

    def _write_one(self, store: Store, outcome: Outcome) -> list[Outcome]:
        """Write one outcome, or what can be said of it. Returns it when it was refused."""
        for version in (outcome, _without_result(outcome), _bare(outcome)):
            try:
                return store.finish([version], self._tally)
            except psycopg.Error as error:
                if is_transient(error):
                    raise
                logger.error("outcome cannot be stored", extra={"job": outcome.id, "lease": outcome.lease, "error": type(error).__name__})
        return [outcome]

    def _count(self, outcomes: Sequence[Outcome], refused: Sequence[Outcome]) -> None:
        for lost in refused:
            if (lost.id, lost.lease) in self._in_doubt:
                logger.info("outcome was written before the connection broke, or superseded", extra={"job": lost.id, "lease": lost.lease})
            else:
                # Or the connection of a transactional task broke behind its COMMIT: then it has ended the job, and did not know.
                logger.warning("outcome refused: the attempt has been superseded, or ended", extra={"job": lost.id, "lease": lost.lease})
        self._in_doubt.difference_update((outcome.id, outcome.lease) for outcome in outcomes)
        gone = {(lost.id, lost.lease) for lost in refused}
        for outcome in outcomes:
            if (outcome.id, outcome.lease) in gone:
                continue
            if isinstance(outcome, Succeeded):
                self.succeeded_count += 1
            elif outcome.ending in {Ending.RETRY, Ending.FAIL}:
                self.failed_count += 1
                facts = {"error": outcome.error_type, "cause": outcome.exit_cause, "run_ms": outcome.run_ms}
                logger.warning("attempt failed", extra={"job": outcome.id, "lease": outcome.lease, **facts})


def _without_result(outcome: Outcome) -> Unsuccessful:
    """The return value or the error text is what PostgreSQL refused: the attempt fails, and says so."""
    message = "the outcome of this attempt could not be stored as it was: PostgreSQL refused its text"
    cause = outcome.exit_cause if isinstance(outcome, Unsuccessful) else "exception"
    return Unsuccessful(
        outcome.ending if isinstance(outcome, Unsuccessful) else Ending.RETRY,
        outcome.id, outcome.lease, _UNSTORABLE, message,
        exit_cause=cause, run_ms=outcome.run_ms, cpu_ms=outcome.cpu_ms, ended_at=outcome.ended_at,
        delay_ms=outcome.delay_ms if isinstance(outcome, Unsuccessful) else None,
    )  # fmt: skip


def _bare(outcome: Outcome) -> Unsuccessful:
    return Unsuccessful(Ending.FAIL, outcome.id, outcome.lease, _UNSTORABLE, "the outcome of this attempt could not be stored")
