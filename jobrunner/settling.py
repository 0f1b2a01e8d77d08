"""Owns making messages of claimed rows, and writing what a consumer says of one as the outcome of an attempt, also in its transaction.

It must not know who holds the message.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import psycopg

from jobrunner import clock, places
from jobrunner.envelopes import Facts, Message, Receipt
from jobrunner.errors import ConfigurationError, LeaseLost
from jobrunner.holding import seconds_of
from jobrunner.jobs import Ending, Outcome, Succeeded, Unsuccessful
from jobrunner.store import Store
from jobrunner.texts import cut, redacted, storable
from jobrunner.transient import is_transient
from jobrunner.wakeups import waker_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jobrunner.commits import Hint
    from jobrunner.database import Database
    from jobrunner.envelopes import Settling
    from jobrunner.jobs import ClaimedJob
    from jobrunner.messagestore import MessageStore
    from jobrunner.policies import Duration

logger = logging.getLogger("jobrunner.messages")

MAX_REASON = 2_000  # characters of what a consumer says
NACKED, DEAD = "jobrunner.messages.Nack", "jobrunner.messages.Dead"  # error types of the record
YEAR = 365 * 86_400.0  # seconds
MOST_DELAY = 100 * YEAR


class Home(Protocol):
    """The database of a queue."""

    @property
    def database(self) -> Database:
        """Its pool of connections."""

    @property
    def wakeups(self) -> bool:
        """Whether hints are sent."""


class GivenBack(NamedTuple):
    """What became of messages that were to be given back.

    Attributes:
        over: those that are not held any more. A message that somebody has locked, because its acknowledgement is not committed yet, is not
            among them: it is held still.
        gone: which of their receipts had been settled, or superseded, before.
        error: why some could not be given back; None when there was none.
    """

    over: list[Message]
    gone: set[Receipt]
    error: psycopg.Error | None = None


def opened(store: MessageStore, jobs: Sequence[ClaimedJob], by: Settling) -> list[Message]:
    """The messages that were claimed; what cannot be read is dead, and keeps nobody from the others."""
    facts = store.facts([job.id for job in jobs])
    messages: list[Message] = []
    for job in jobs:
        try:
            messages.append(Message(job, Facts(*facts[job.id]), by))
        except (ValueError, RecursionError, KeyError, AttributeError) as error:
            logger.warning("message cannot be read: it is dead", extra={"message_id": job.id, "error": type(error).__name__})
            store.finish([outcome_of(Receipt(job.id, job.lease), Ending.FAIL, reason=f"cannot be read: {error}")])
    return messages


def outcome_of(receipt: Receipt, ending: Ending | None, *, delay: Duration | None = None, reason: str = "") -> Outcome:
    """What a consumer says, as a worker would say it of a job; no ending is success."""
    now = clock.monotonic()
    if ending is None:
        return Succeeded(receipt.id, receipt.lease, None, 0, None, now)
    said = cut(redacted(storable(reason)), MAX_REASON)
    kind = {Ending.RETRY: NACKED, Ending.FAIL: DEAD}.get(ending)
    return Unsuccessful(
        ending, receipt.id, receipt.lease, kind, said, exit_cause="exception", run_ms=0, ended_at=now, delay_ms=_milliseconds(delay)
    )


def hint_of(home: Home, message: Message) -> Hint | None:
    """What to send once the end of a message has committed in somebody's transaction: the next one of its ordering key may go."""
    return (waker_of(home.database.dsn), message.queue) if message.key is not None and home.wakeups else None


def settle_elsewhere(outcome: Outcome, place: Mapping[str, Any], hint: Hint | None) -> bool:
    """Write the outcome in the transaction of a session or connection, if one is given. The hint goes out after its commit.

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
        instead = "postgresql+psycopg://…; or acknowledge after your commit"
        raise ConfigurationError("ack(session=…): needs a session on psycopg 3", hint=instead)
    with where.together() as driver:
        if Store(driver).finish([outcome]):
            raise LeaseLost(outcome.id, outcome.lease)
    if hint is not None:
        where.written(0, hint)
    return True


def give_back(store: MessageStore, messages: Sequence[Message], said: str) -> GivenBack:
    """Give messages back at once, with the reason, and wait for nobody: the lease must be renewed meanwhile.

    In one transaction; where that is refused, each half in one of its own, down to the message that cannot be: it holds up no other.

    Raises:
        psycopg.Error: the connection is gone, or the same may go well a moment later; some may have been given back.
    """
    try:
        return _give_back_together(store, messages, said)
    except psycopg.Error as error:
        if store.connection.closed or is_transient(error):
            raise
        if len(messages) == 1:
            return GivenBack([], set(), error)
    half = len(messages) // 2
    first, second = (give_back(store, part, said) for part in (messages[:half], messages[half:]))
    return GivenBack(first.over + second.over, first.gone | second.gone, first.error or second.error)


def _give_back_together(store: MessageStore, messages: Sequence[Message], said: str) -> GivenBack:
    with store.connection.transaction():
        free = store.free([message.id for message in messages])
        outcomes = [outcome_of(each.receipt, Ending.RETRY, delay=0, reason=said) for each in messages if each.id in free]
        refused = {Receipt(outcome.id, outcome.lease) for outcome in store.finish(outcomes)} if outcomes else set()
        held = store.held([message.id for message in messages if message.id not in free])
    over = [message for message in messages if message.receipt not in held]
    return GivenBack(over, refused | {message.receipt for message in over if message.id not in free})


def _milliseconds(delay: Duration | None) -> int | None:
    if delay is None:
        return None
    seconds = seconds_of("nack: delay", delay)
    if seconds > MOST_DELAY:
        raise ConfigurationError(f"nack: delay={delay!r}: more than {MOST_DELAY / YEAR:g} years")
    return int(seconds * 1000)
