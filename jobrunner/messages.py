"""Owns `MessageQueue`, what an application holds of a message queue: putting, getting, and what is left of both.

It must not hold messages (`consuming` does) nor write rows by itself: a message is a job of a reserved name, put by an enqueue and ended by
the statements that end jobs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol, TypedDict

from jobrunner import messagestore
from jobrunner.claimer import MAX_BATCH
from jobrunner.consuming import Consumer
from jobrunner.deadletters import DeadLetters
from jobrunner.envelopes import Contents, Message, Receipt, Waiting
from jobrunner.errors import ConfigurationError, InvalidPayload, LeaseLost
from jobrunner.holding import lease_seconds, seconds_of
from jobrunner.jobs import Ending
from jobrunner.payload import Parameters
from jobrunner.policies import DEFAULT_SESSION, Policy
from jobrunner.pulling import Pulls
from jobrunner.settings import MESSAGE_TASK
from jobrunner.tasks import Task

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from jobrunner.database import Database
    from jobrunner.handle import Job
    from jobrunner.policies import Backoff, Duration, Options
    from jobrunner.pulling import Home

LEASE = 30.0  # seconds that a message is held unless the consumer says otherwise
WAIT = 20.0  # seconds that `get` waits unless told otherwise: a loop around it must not hammer the database
MAX_DELIVERIES = 5
PURGED_AT_ONCE = 1000  # messages that one statement cancels
_QUEUED = "SELECT id FROM jobrunner.jobs WHERE queue = %s AND task = %s AND state = 'queued' ORDER BY priority, run_at, id LIMIT %s"


class QueueOptions(TypedDict, total=False):
    """The keywords of `jobs.queue(name, …)`."""

    max_deliveries: int
    backoff: Backoff
    backoff_base: Duration
    backoff_cap: Duration
    backoff_jitter: float


class Application(Protocol):
    """What a message queue needs of the JobRunner."""

    consumers: dict[str, Consumer]

    def branch_of(self, queue: str) -> Home:
        """The database in which a queue lives."""

    def submit(self, task: Task[..., Any], options: Options, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Job[Any]:
        """Write one job."""

    def submit_many(self, task: Task[..., Any], options: Options, calls: Iterable[Any]) -> Sequence[int]:
        """Write one job per call."""


def _message(body: Any, headers: dict[str, Any] | None = None) -> None:
    """Stands for the function that a message does not have: its parameters are what a message is made of."""


@functools.cache
def _parameters() -> Parameters:
    return Parameters(_message, MESSAGE_TASK)


class MessageQueue:
    """One queue of messages, in the database of its jobs. Thread-safe; made by `JobRunner.queue`.

    Args:
        application: whose.
        name: of the queue; give messages queues of their own, which no worker serves.
        max_deliveries: after so many that were given back a message put here is dead; at least 1. So it is after as many deaths of its
            consumers in a row.
        backoff, backoff_base, backoff_cap, backoff_jitter: the pause after a delivery that was given back without one, as of a task.

    Attributes:
        name: of the queue.
        dead: the messages that are not delivered any more.

    Raises:
        ConfigurationError: a value is out of range.
    """

    def __init__(
        self,
        application: Application,
        name: str,
        *,
        max_deliveries: int = MAX_DELIVERIES,
        backoff: Backoff = "exponential",
        backoff_base: Duration = 5,
        backoff_cap: Duration = 3600,
        backoff_jitter: float = 1.0,
    ) -> None:
        self._application = application
        given = {
            "queue": name, "max_attempts": max_deliveries, "max_crashes": max_deliveries, "backoff": backoff, "backoff_base": backoff_base,
            "backoff_cap": backoff_cap, "backoff_jitter": backoff_jitter,
        }  # fmt: skip
        self._task: Task[..., None] = Task(_message, MESSAGE_TASK, Policy().with_values(given, "queue"), application)
        self._task.parameters = _parameters()  # compiled once, not for each queue
        self.name = name
        self.dead = DeadLetters(self)

    # -- putting

    def put(
        self,
        body: Any,
        *,
        delay: Duration | None = None,
        key: str | None = None,
        priority: int = 0,
        ttl: Duration | None = None,
        headers: Mapping[str, Any] | None = None,
        session: Any = DEFAULT_SESSION,
        connection: Any = None,
    ) -> int:
        """Put one message: one INSERT, in the caller's transaction where there is one; then the message exists from that commit on.

        Args:
            body: whatever JSON can hold.
            delay: not delivered before this time has passed: seconds, a timedelta, or text such as '90s'.
            key: messages of one key are delivered one after the other, in the order of their ids: the next when the one before is settled.
            priority: lower comes first; the order within a key comes before it.
            ttl: not delivered any more once this time has passed: it is cancelled then.
            headers: a dict kept beside the body.
            session: of SQLAlchemy, or None for a transaction of its own; else the app's default session, if it has one.
            connection: a SQLAlchemy Connection.

        Returns:
            The id of the message.

        Raises:
            InvalidPayload: JSON cannot hold the body or the headers, or they are too large.
            ConfigurationError: another value is out of range.
        """
        bound = self._bound(delay=delay, key=key, priority=priority, ttl=ttl, session=session, connection=connection)
        return self._application.submit(self._task, bound, _arguments(body, headers), {}).id

    def put_many(
        self,
        bodies: Iterable[Any],
        *,
        delay: Duration | None = None,
        key: str | None = None,
        priority: int = 0,
        ttl: Duration | None = None,
        headers: Mapping[str, Any] | None = None,
        session: Any = DEFAULT_SESSION,
        connection: Any = None,
    ) -> Sequence[int]:
        """Put one message for each body, all or none, in one transaction (COPY for large batches); everything else is the same for all.

        Returns:
            The ids, in the order of the bodies.

        Raises:
            InvalidPayload, ConfigurationError: as for `put`; nothing is put.
        """
        bound = self._bound(delay=delay, key=key, priority=priority, ttl=ttl, session=session, connection=connection)
        return self._application.submit_many(self._task, bound, [_arguments(body, headers) for body in bodies])

    def _bound(self, *, key: str | None, **given: Any) -> Options:
        if given["connection"] is not None and given["session"] is DEFAULT_SESSION:
            del given["session"]  # the connection named here goes before the app's default session
        return self._task.options(ordering_key=key, **given)._options  # noqa: SLF001  as JobRunner.enqueue does

    # -- getting

    def get(self, *, lease: Duration | None = LEASE, wait: Duration = WAIT) -> Message | None:
        """The next message, held for this process; None when none came, or when the JobRunner was closed meanwhile.

        Held means: nobody else gets it until it is settled (`ack`, `nack`, `dead`), its lease is over, or this process has died. A thread
        of this process keeps the lease, and gives the message back when the lease is over; `extend` makes it longer. A death is noticed
        within half of the lease, and within 15 seconds however long the lease is.

        Args:
            lease: seconds, a timedelta, or text such as '90s', 1 s to 12 h; None: for as long as this process lives.
            wait: how long to wait for a message when there is none: seconds, a timedelta, or text; 0 looks once.

        Raises:
            ConfigurationError: a duration is out of range.
            psycopg.Error, DatabaseUnreachable: the database did not answer.
        """
        found = self.get_many(1, lease=lease, wait=wait)
        return found[0] if found else None

    def get_many(self, most: int, *, lease: Duration | None = LEASE, wait: Duration = WAIT) -> list[Message]:
        """At most `most` messages, 1 to 1,000, as soon as there is one, each held as by `get`; of each ordering key at most one."""
        return self._consumer().take(_count(most, MAX_BATCH), _lease(lease), seconds_of("wait", wait))

    def consume(
        self, *, lease: Duration | None = LEASE, batch: int = 1, idle: Duration | None = None
    ) -> Iterator[Message]:
        """The messages one after the other, for a loop.

        A message that the loop has not settled is acknowledged when the loop comes for the next one, and given back when it ends
        otherwise: by an exception, `break`, or the end of the program. One whose lease is over by then is passed by; the loop goes on.

        Args:
            lease: as for `get`; it counts from when the message was taken, also for those that wait in a batch.
            batch: how many are taken at once.
            idle: ends when no message came for so long; None: when the JobRunner is closed.
        """
        most, seconds = _count(batch, MAX_BATCH), math.inf if idle is None else seconds_of("idle", idle)
        held = _lease(lease)
        taken: list[Message] = []
        consumer = self._consumer()  # one for the whole loop: a JobRunner that is closed while a message is handled ends it as well
        try:
            while taken := consumer.take(most, held, seconds):
                while taken:
                    message = taken[0]
                    if message.settled is None:
                        yield message
                        if message.settled is None:
                            with suppress(LeaseLost):  # the loop could not catch it, and one that was lost earlier is passed by as well
                                message.ack()
                    taken.pop(0)
        finally:
            for number, message in enumerate(taken):
                if message.settled is None:
                    message.give_back(began=number == 0)

    def _consumer(self) -> Consumer:
        known = self._application.consumers.get(self.name)
        return known or self._application.consumers.setdefault(self.name, Consumer(self.home(), self.name))

    # -- from elsewhere: over HTTP, or from the command line

    def pull(self, most: int = 1, *, lease: Duration = LEASE) -> list[Message]:
        """At most `most` messages for somebody who is not this process, and settles them by their receipts.

        They share one lease that nobody renews by himself: `extend` on one of them makes it longer for all. Does not wait.
        """
        if lease is None:
            raise ConfigurationError("pull(lease=None): nobody would know when it is over", hint="1 s to 12 h, and extend(…)")
        return self._pulls().give(_count(most, MAX_BATCH), lease_seconds(lease))

    def ack(self, receipt: str | Receipt | Message) -> None:
        """Acknowledge a message: one of this queue that was given here, or, by its receipt, one that was given anywhere.

        Raises:
            LeaseLost: its lease is over, or it was settled before.
            IllegalTransition: given a message, not a receipt: it is settled already.
            ConfigurationError: it is no receipt, or a message of another queue.
        """
        if isinstance(receipt, Message):
            self._own(receipt).ack()
        else:
            self._settle(receipt, None)

    def nack(self, receipt: str | Receipt | Message, *, delay: Duration | None = None, reason: str = "") -> None:
        """Give such a message back; as `Message.nack`. Raises as `ack`."""
        if isinstance(receipt, Message):
            self._own(receipt).nack(delay=delay, reason=reason)
        else:
            self._settle(receipt, Ending.RETRY, delay=delay, reason=reason or "given back by its consumer")

    def dead_letter(self, receipt: str | Receipt | Message, reason: str) -> None:
        """Such a message cannot be handled; as `Message.dead`. `queue.dead(message, reason)` is the same. Raises as `ack`."""
        if isinstance(receipt, Message):
            self._own(receipt).dead(reason)
        else:
            self._settle(receipt, Ending.FAIL, reason=reason)

    def extend(self, receipt: str | Receipt | Message, seconds: Duration) -> None:
        """Hold such a message for so long from now on: 1 s to 12 h. What was pulled with it is held as long at least.

        Raises:
            LeaseLost, ConfigurationError: as `ack`; or the time is out of range.
            IllegalTransition: another process took it and renews its lease by itself: only there it can be held for longer.
        """
        if isinstance(receipt, Message):
            self._own(receipt).extend(seconds)
            return
        given, length = _receipt(receipt), lease_seconds(seconds)
        consumer = self._application.consumers.get(self.name)
        held = consumer.holds(given) if consumer is not None else None
        if consumer is not None and held is not None:
            consumer.extend(held, length)
        else:
            self._pulls().extend(given, length)

    def _settle(self, given: str | Receipt, ending: Ending | None, *, delay: Duration | None = None, reason: str = "") -> None:
        receipt = _receipt(given)
        consumer = self._application.consumers.get(self.name)
        held = consumer.holds(receipt) if consumer is not None else None
        if consumer is not None and held is not None:  # or it would go on keeping the lease of what it has no more
            consumer.settle(held, ending, delay=delay, reason=reason, place={})
            held.lose()
        else:
            self._pulls().settle(receipt, ending, delay=delay, reason=reason, place={})

    def _own(self, message: Message) -> Message:
        if message.queue != self.name:
            raise ConfigurationError(f"{message!r} is no message of queue {self.name!r}")
        return message

    def _pulls(self) -> Pulls:
        return Pulls(self.home(), self.name)

    # -- looking

    def size(self) -> int:
        """How many messages wait, due or not; those that are held are not among them. Counts rows: exact, and slow for millions."""
        with self._database.store() as store:
            return messagestore.MessageStore(store.connection).size(self.name)

    def peek(self, most: int = 10) -> list[Waiting]:
        """The first messages that wait, due or not, in the order of priority and time; nothing happens to them."""
        with self._database.store() as store:
            rows = messagestore.MessageStore(store.connection).waiting(self.name, _count(most, MAX_BATCH))
        return [
            Waiting(message_id, *Contents.read(args), key, priority, enqueued_at, deliver_at, deliveries)
            for message_id, args, key, priority, enqueued_at, deliver_at, deliveries in rows
        ]

    def purge(self) -> int:
        """Cancel all messages that wait, in steps; they stay in the history as cancelled. Returns how many. What is held is left alone."""
        purged = 0
        with self._database.store() as store:
            while ids := [row[0] for row in store.connection.execute(_QUEUED, (self.name, MESSAGE_TASK, PURGED_AT_ONCE)).fetchall()]:
                purged += len(messagestore.MessageStore(store.connection).cancel_many(ids))
        return purged

    def home(self) -> Home:
        """The database in which the queue lives."""
        return self._application.branch_of(self.name)

    @property
    def _database(self) -> Database:
        return self.home().database

    def __repr__(self) -> str:
        return f"<MessageQueue {self.name!r}>"


def _arguments(body: Any, headers: Mapping[str, Any] | None) -> tuple[Any, ...]:
    if headers is None:
        return (body,)
    if not isinstance(headers, Mapping):
        raise InvalidPayload("headers", f"is of type {type(headers).__name__}: expected a mapping of names to values")
    return body, dict(headers)


def _receipt(given: str | Receipt) -> Receipt:
    return given if isinstance(given, Receipt) else Receipt.of(given)


def _count(value: Any, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise ConfigurationError(f"{value!r} messages: expected a whole number from 1 to {most:,}")
    return value


def _lease(value: Duration | None) -> float | None:
    return None if value is None else lease_seconds(value, "None holds it as long as this process lives")
