"""Owns what an application holds of a message: one that it was given, one that is dead, one that waits; and what a receipt looks like.

It must not talk to the database: whoever gave the message settles it.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

from jobrunner.errors import ConfigurationError, IllegalTransition, LeaseLost
from jobrunner.filters import MAX_ID
from jobrunner.holding import lease_seconds
from jobrunner.jobs import Ending

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from types import TracebackType

    from jobrunner.jobs import ClaimedJob
    from jobrunner.policies import Duration

_RECEIPT = re.compile(r"([0-9]{1,19})-([0-9]{1,19})", re.ASCII)


class Receipt(NamedTuple):
    """What proves that a message was given to somebody: its id and the number of that delivery's lease."""

    id: int
    lease: int

    @classmethod
    def of(cls, text: object) -> Receipt:
        """The receipt in a text. Raises ConfigurationError for what is none."""
        found = _RECEIPT.fullmatch(text) if isinstance(text, str) else None
        numbers = [int(part) for part in found.groups()] if found else [0]
        if not all(0 < number <= MAX_ID for number in numbers):
            raise ConfigurationError(f"{text!r} is no receipt", hint="a receipt is what came with the message, such as 981223-1")
        return cls(*numbers)

    def __str__(self) -> str:
        return f"{self.id}-{self.lease}"


class Contents(NamedTuple):
    """What a message's row says of it.

    Attributes:
        body: whatever JSON can hold.
        headers: what the publisher wrote beside it.
    """

    body: Any
    headers: dict[str, Any]

    @classmethod
    def of(cls, args: Mapping[str, Any]) -> Contents:
        """From the arguments object; a row that was inserted without a body has all of it as its body."""
        headers = args.get("headers")
        return cls(args["body"] if "body" in args else dict(args), headers if isinstance(headers, dict) else {})

    @classmethod
    def read(cls, text: str) -> Contents:
        """From the JSON text of the arguments; what Python cannot read (SQL can write numbers without end) is shown as that text."""
        try:
            return cls.of(json.loads(text))
        except (ValueError, RecursionError, AttributeError):
            return cls(text, {})


class Facts(NamedTuple):
    """What the claim of a message does not tell."""

    created_at: datetime
    priority: int
    expires_at: datetime | None


class Settling(Protocol):
    """Who gave a message, and so takes it back."""

    def settle(
        self, message: Message, ending: Ending | None, *, delay: Duration | None, reason: str, place: Mapping[str, Any]
    ) -> None:
        """Write how its delivery ended; None is success. Raises LeaseLost."""

    def extend(self, message: Message, seconds: float) -> None:
        """Hold it longer. Raises LeaseLost."""


class Message:
    """One message that was given to this process, until it is settled or its lease is over.

    As a context manager it acknowledges itself when the block ends, and gives itself back when the block raises.

    Attributes:
        id: of its row; stays the same whatever becomes of the message.
        body: what was put.
        headers: a dict beside it.
        queue: where it was.
        key: its ordering key, or None.
        attempt: which delivery this is, from 1; those whose consumer died are not among them.
        max_deliveries: after this many that were given back it is dead.
        redelivered: whether it was given to somebody before.
        enqueued_at: when it was put; by the database's clock.
        priority: lower comes first.
        expires_at: it is not delivered any more after that, or None.
    """

    def __init__(self, given: ClaimedJob, facts: Facts, by: Settling) -> None:
        self._by = by
        self._settled: str | None = None
        self._lease = given.lease
        self.id = given.id
        self.body, self.headers = Contents.of(json.loads(given.args))
        self.queue, self.key = given.queue, given.ordering_key
        self.attempt, self.max_deliveries = given.attempt, given.max_attempts
        self.redelivered = given.lease > 1
        self.enqueued_at, self.priority, self.expires_at = facts

    @property
    def receipt(self) -> Receipt:
        """With it the delivery can be settled elsewhere, over HTTP or from the command line; as text: `str(message.receipt)`."""
        return Receipt(self.id, self._lease)

    @property
    def settled(self) -> str | None:
        """What was done about it: `ack`, `nack` or `dead`; `lost` when its lease is over; None while it is held."""
        return self._settled

    def ack(self, *, session: Any = None, connection: Any = None) -> None:
        """It is done: the message is kept in the history as succeeded.

        Args:
            session: of SQLAlchemy, on psycopg: in its transaction, so that what the consumer wrote and the end of the message are one. When
                that rolls back, the message comes again once its lease is over; one without a lease after half a minute.
            connection: the same with a SQLAlchemy Connection.

        Raises:
            LeaseLost: its lease was over: somebody else may have it.
            IllegalTransition: it is settled already.
        """
        self._settle("ack", None, place={"session": session, "connection": connection})

    def nack(self, *, delay: Duration | None = None, reason: str = "") -> None:
        """Give it back: it is delivered again, or dead when this was the last delivery that it had.

        Args:
            delay: until then: seconds, a timedelta, or text such as '90s'; None: the backoff of its queue.
            reason: kept in the record of attempts.

        Raises:
            LeaseLost, IllegalTransition: as for `ack`.
        """
        self._settle("nack", Ending.RETRY, delay=delay, reason=reason or "given back by its consumer")

    def dead(self, reason: str) -> None:
        """It cannot be handled: no further delivery; it is among the dead letters with the reason.

        Raises:
            LeaseLost, IllegalTransition: as for `ack`.
        """
        self._settle("dead", Ending.FAIL, reason=reason)

    def give_back(self, *, began: bool) -> None:
        """Whoever looped over messages has stopped; one that it has not begun with loses no delivery by that."""
        with suppress(LeaseLost):
            if began:
                self.nack(delay=0, reason="the consumer stopped amid it")
            else:
                self._settle("nack", Ending.RELEASE)

    def extend(self, seconds: Duration) -> None:
        """Hold it for so long from now on, 1 s to 12 h; less than was left makes the lease shorter, but for a pull's.

        Args:
            seconds: seconds, a timedelta, or text such as '90s'.

        Raises:
            LeaseLost, IllegalTransition: as for `ack`.
            ConfigurationError: the time is out of range.
        """
        self._refuse_settled("extend")
        self._by.extend(self, lease_seconds(seconds))

    def lose(self) -> None:
        """Its lease is over. For whoever gave it."""
        self._settled = self._settled or "lost"

    def _settle(
        self,
        verb: str,
        ending: Ending | None,
        *,
        delay: Duration | None = None,
        reason: str = "",
        place: Mapping[str, Any] | None = None,
    ) -> None:
        self._refuse_settled(verb)
        self._by.settle(self, ending, delay=delay, reason=reason, place=place or {})
        self._settled = verb

    def _refuse_settled(self, verb: str) -> None:
        if self._settled == "lost":
            raise LeaseLost(self.id, self._lease)
        if self._settled is not None:
            raise IllegalTransition(self.id, f"settled by {self._settled}() already", verb, hint="each delivery is settled once")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._settled is not None:
            return
        if error is None:
            self.ack()
            return
        with suppress(LeaseLost):  # the block's own error says more
            if isinstance(error, Exception):
                self.nack(reason=f"{type(error).__module__}.{type(error).__qualname__}: {error}")
            else:  # an interrupt, or the end of the program: not the message's fault
                self._settle("nack", Ending.RELEASE)

    def __repr__(self) -> str:
        return f"<Message {self.id} of {self.queue!r}, delivery {self.attempt} of {self.max_deliveries}>"


class Waiting(NamedTuple):
    """A message that waits, as `peek` shows it.

    Attributes:
        deliver_at: not before; by the database's clock.
        deliveries: how often it was given back.
    """

    id: int
    body: Any
    headers: dict[str, Any]
    key: str | None
    priority: int
    enqueued_at: datetime
    deliver_at: datetime
    deliveries: int


class DeadLetter(NamedTuple):
    """A message that is not delivered any more.

    Attributes:
        state: `failed`: given back too often, or called dead by its consumer; `quarantined`: its consumers died with it.
        reason: what the last consumer said.
        deliveries: how often it was given back.
    """

    id: int
    body: Any
    headers: dict[str, Any]
    key: str | None
    state: str
    reason: str | None
    deliveries: int
    enqueued_at: datetime
    died_at: datetime
