"""Owns turning what a consumer says of a message into the outcome of an attempt, and writing it in the consumer's own transaction.

It must not know who holds the message.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from jobrunner import clock, places
from jobrunner.errors import ConfigurationError, LeaseLost
from jobrunner.jobs import Ending, Outcome, Succeeded, Unsuccessful
from jobrunner.store import Store
from jobrunner.texts import cut, redacted, storable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jobrunner.envelopes import Message, Receipt

MAX_REASON = 2_000  # characters of what a consumer says
NACKED, DEAD = "jobrunner.messages.Nack", "jobrunner.messages.Dead"  # error types of the record
MOST_DELAY = timedelta(days=36_500)
LOCK_TIMEOUT = "200ms"  # that giving back waits for a message whose acknowledgement somebody has not committed yet


def outcome_of(receipt: Receipt, ending: Ending | None, *, delay: timedelta | float | None = None, reason: str = "") -> Outcome:
    """What a consumer says, as a worker would say it of a job; no ending is success."""
    now = clock.monotonic()
    if ending is None:
        return Succeeded(receipt.id, receipt.lease, None, 0, None, now)
    said = cut(redacted(storable(reason)), MAX_REASON)
    kind = {Ending.RETRY: NACKED, Ending.FAIL: DEAD}.get(ending)
    return Unsuccessful(
        ending, receipt.id, receipt.lease, kind, said, exit_cause="exception", run_ms=0, ended_at=now, delay_ms=_milliseconds(delay)
    )


def settle_elsewhere(outcome: Outcome, place: Mapping[str, Any]) -> bool:
    """Write the outcome in the transaction of a session or connection, if one is given.

    Raises:
        LeaseLost: the delivery has been superseded.
        ConfigurationError: both are given, or it is no session or connection on psycopg.
    """
    session, connection = place.get("session"), place.get("connection")
    if session is None and connection is None:
        return False
    if session is not None and connection is not None:
        raise ConfigurationError("ack(session=…, connection=…): give one of the two")
    where = places.in_session(session) if session is not None else places.on_connection(connection)
    if not where.can_copy:
        hint = "postgresql+psycopg://…; or acknowledge after your commit"
        raise ConfigurationError("ack(session=…): needs a session on psycopg 3", hint=hint)
    with where.together() as driver:
        if Store(driver).finish([outcome]):
            raise LeaseLost(outcome.id, outcome.lease)
    return True


def finish_at_once(store: Store, outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Write outcomes without waiting for whoever has locked the rows: the lease must be renewed meanwhile. Gives those that were refused.

    Raises:
        psycopg.errors.LockNotAvailable: one of the rows is locked; nothing was written.
    """
    with store.connection.transaction():
        store.connection.execute("SELECT set_config('lock_timeout', %s, true)", (LOCK_TIMEOUT,))
        return store.finish(outcomes)


def apart(messages: Sequence[Message]) -> list[list[Message]]:
    """Those that were acknowledged in somebody's transaction by themselves: while it is open, nothing can be written with them."""
    free = [message for message in messages if message.settled is None]
    elsewhere = [message for message in messages if message.settled is not None]
    return [some for some in (free, elsewhere) if some]


def _milliseconds(delay: timedelta | float | None) -> int | None:
    if delay is None:
        return None
    duration: timedelta | None
    try:
        duration = delay if isinstance(delay, timedelta) else timedelta(seconds=delay)
    except (TypeError, ValueError, OverflowError):  # no number, nan, or more than a timedelta can hold
        duration = None
    if duration is None or not timedelta(0) <= duration <= MOST_DELAY:
        raise ConfigurationError(f"nack(delay={delay!r}): expected seconds or a timedelta, not negative")
    return int(duration.total_seconds() * 1000)
