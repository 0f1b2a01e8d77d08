"""Owns one job of a group that reads the log: batch after batch to its handler, each moving the group on when it has returned.

It must not go on past a batch that has failed: the next attempt gets the same one. Who moved the group meanwhile wins (`rewind`, a newer
attempt): what was done here for it is rolled back, if the handler is transactional.
"""

from __future__ import annotations

import asyncio
import functools
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import DBAPIError

from jobrunner.current import current_or_none
from jobrunner.errors import ConfigurationError, JobrunnerError, LeaseLost
from jobrunner.places import OwnTransaction, in_session
from jobrunner.topics.reading import Batch, Reader

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.orm import Session

    from jobrunner.app import JobRunner
    from jobrunner.current import JobContext
    from jobrunner.places import Place
    from jobrunner.topics.declaring import LogHandler
    from jobrunner.topics.events import Event

BUDGET = 2.0  # seconds of one job: then it ends, and the next one goes on; so deploys, limits and other groups get their turn
LIMIT_SHARE = 4  # and at most this part of its time limit: the last batch may take the rest
_LACKING = {"42P01", "3F000"}  # SQLSTATE: no such table, no such schema
MOST_AGAIN = 20_000  # events of a batch that is tried again: a group's patterns may fit more of them since


class _Moved(Exception):
    """The group was moved while a batch was handed over: nothing of it counts."""


def deliver_to(jobs: JobRunner, handler: LogHandler, topic: str, group: str) -> dict[str, Any] | None:
    """Deliver what there is, for a while; what a job of a group does. Returns what it did, for the job's result.

    Raises:
        LeaseLost: another attempt runs the job by now.
        BaseException: whatever the handler raises; the group stays where it was before the batch.
    """
    context = current_or_none()
    reader = Reader(OwnTransaction(jobs.database), topic, group, context)
    delivery = _Delivery(jobs, handler, reader, context)
    if context is not None and (skipped := reader.skipped(context.id)) is not None:
        return delivery.again(context, *skipped)
    return delivery.run()


class _Delivery:
    """One attempt of a job that delivers."""

    def __init__(self, jobs: JobRunner, handler: LogHandler, reader: Reader, context: JobContext | None) -> None:
        self._jobs, self._handler, self._reader, self._context = jobs, handler, reader, context
        self._ends = time.monotonic() + _budget(context)

    def run(self) -> dict[str, Any] | None:
        """Batch after batch, until nothing is left, the time is over, or somebody wants the worker's slot."""
        delivered, position = 0, None
        while (batch := self._next()) is not None:
            if not batch.events:
                self._reader.move(batch)
                position = batch.upto
                if self._reader.at_head:  # the workers look again: other topics' events would keep this one here
                    break
                continue
            if self._hand_over(batch, functools.partial(self._reader.move, batch)):
                delivered, position = delivered + len(batch.events), batch.upto
            # After a failure the attempts count for one batch, so the next one has a job, and so attempts, of its own.
            if time.monotonic() >= self._ends or (self._context is not None and (self._context.attempt > 1 or self._context.should_stop())):
                break
        return None if position is None else {"delivered": delivered, "position": position}

    def again(self, context: JobContext, after: int, upto: int) -> dict[str, Any]:
        """Deliver what the group went past when this job had failed. The group stays where it is."""
        events = self._reader.between(after, upto, MOST_AGAIN)
        batch = Batch(after, upto, 0, upto, events)
        if events:
            self._hand_over(batch, lambda place: self._reader.redelivered(context.id, place))
        else:
            self._reader.redelivered(context.id)
        return {"delivered": len(events), "position": upto}

    def _next(self) -> Batch | None:
        at = self._reader.standing()
        if at is None:
            return None
        if not at.is_ours and self._context is not None:
            raise LeaseLost(self._context.id, self._context.lease)
        tried = self._context.last_checkpoint if self._context is not None else None
        if isinstance(tried, dict) and tried.get("after") == at.position and tried.get("rewound") == at.rewound:
            return self._reader.fixed(at, tried["to"], MOST_AGAIN)
        return self._reader.next(at)

    def _hand_over(self, batch: Batch, done: Callable[[Place], bool]) -> bool:
        """Call the handler and note that the group has had the batch. False when somebody moved it meanwhile."""
        if self._context is not None and (self._context.lease > 1 or self._context.attempt >= self._context.max_attempts):
            self._remember(batch)  # the process may be killed in the handler, which then says nothing
        try:
            if self._handler.transactional:
                self._in_transaction(batch, done)
            else:
                self._call(batch.events)
                if not done(OwnTransaction(self._jobs.database)):
                    raise _Moved  # noqa: TRY301  one way out for both
        except _Moved:
            return False
        except BaseException:
            self._remember(batch)
            raise
        return True

    def _in_transaction(self, batch: Batch, done: Callable[[Place], bool]) -> None:
        """The handler's writes and the group's step commit together."""
        from jobrunner.worker import transactions

        def body(session: Session) -> None:
            self._call(batch.events, session=session)
            session.flush()
            try:
                moved = done(in_session(session))
            except DBAPIError as error:
                if (getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)) not in _LACKING:
                    raise
                raise ConfigurationError(
                    "a transactional handler needs the application's session on the database of the topics",
                    hint="one database for both: point JOBRUNNER_DSN at the application's, or leave it out",
                ) from error
            if not moved:
                raise _Moved

        transactions.rehearse(self._jobs, self._running(), body)

    def _call(self, events: list[Event], **more: Any) -> None:
        value = self._handler.fn(list(events), **more)
        if self._handler.is_async:
            asyncio.run(value)

    def _running(self) -> JobContext:
        if self._context is None:
            hint = "call the handler itself, with a list of events and a session"
            raise JobrunnerError("a transactional handler of the log gets its batches in a job only", hint=hint)
        return self._context

    def _remember(self, batch: Batch) -> None:
        """The next attempt gets these events again, and no others; and so does who retries the job after it was gone past."""
        if self._context is not None:
            self._context.checkpoint({"after": batch.after, "to": batch.upto, "rewound": batch.rewound})


def _budget(context: JobContext | None) -> float:
    if context is None:
        return BUDGET
    limits = [BUDGET * LIMIT_SHARE]
    if context.soft_seconds is not None:
        limits.append(context.soft_seconds)
    if context.deadline is not None:
        limits.append((context.deadline - datetime.now(UTC)).total_seconds())
    return min(limits) / LIMIT_SHARE
