"""Owns what one channel is given: its row with the lease, when to look into which queue, what it holds and what it could not yet write.

It must not call the application: a channel hands out what is fetched here.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from jobrunner.compat.kombu.broker import FROM_THE_START, Delivery, Floor, NotAlive
from jobrunner.compat.kombu.keeper import HINT
from jobrunner.compat.kombu.link import UNANSWERED
from jobrunner.compat.kombu.options import DEAF_POLL, POLL
from jobrunner.errors import JobrunnerError
from jobrunner.wakeups import waker_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from jobrunner.compat.kombu.bell import Bell
    from jobrunner.compat.kombu.broker import Broker
    from jobrunner.compat.kombu.keeper import Keeper
    from jobrunner.compat.kombu.options import Options
    from jobrunner.settings import Dsn

logger = logging.getLogger("jobrunner.kombu")

RESCAN = 0.25  # seconds after which a look begins from the start again: for what committed late or is more urgent
OUTAGE_PAUSE = 0.5  # seconds before a queue is looked into again after the database did not answer


class ConsumerLost(JobrunnerError):
    """The lease of a consumer ran out and its messages were given to others: it must connect anew and forget what it holds."""

    def __init__(self) -> None:
        super().__init__(
            "this consumer's lease expired and its messages are with others",
            hint="see:   was the process stopped, or the database away, for longer than broker_transport_options['lease']?",
        )


class Surroundings(NamedTuple):
    """What the channels of one connection share."""

    dsn: Dsn
    broker: Broker
    keeper: Keeper
    bell: Bell
    options: Options


class _Place(NamedTuple):
    """Where the next look into a queue begins, and how long that is good for."""

    floor: Floor
    until: float


class Intake:
    """One channel's. The consuming thread looks; any thread may acknowledge; the keeper's thread renews.

    Args:
        surroundings: of its connection.
        restore: declares and binds queues again that have disappeared.
    """

    def __init__(self, surroundings: Surroundings, restore: Callable[[Iterable[str]], None]) -> None:
        self._own = surroundings
        self.restore = restore
        self.consumer_id: int | None = None
        self._acked: dict[str, bool] = {}  # queue → whether its messages are acknowledged
        self._next: dict[str, float] = {}  # queue → when to look into it again, by the monotonic clock
        self._places: dict[str, _Place] = {}
        self._turn = 0
        self._held: dict[str, tuple[int, int]] = {}  # tag → (id, lease)
        self._unsettled: list[tuple[bool, list[str]]] = []  # (acknowledged or given back, tags) that could not be written
        self._settling = threading.Lock()
        self._is_lost = False
        self._is_doubtful = False  # an answer got lost: we may hold messages that we do not know of

    # -- which queues

    def begin(self, queue: str, *, acked: bool) -> None:
        """Consume from a queue."""
        self._acked[queue] = acked
        self._next[queue] = 0.0
        self._own.keeper.add(self)
        self._own.bell.ring()

    def end(self, queue: str) -> None:
        """Consume from it no more; an expiring one has its time from now on."""
        self._acked.pop(queue, None)
        self._places.pop(queue, None)
        try:
            self._own.broker.touch([queue], self._own.options.lease)
        except UNANSWERED as error:
            logger.debug("queue %s could not be left properly: %s", queue, error)

    def consumed(self) -> list[str]:
        """The queues."""
        return list(self._acked)

    def hint(self, queue: str | None) -> None:
        """Something may have come into one queue, or any: look at once."""
        queues = [queue] if queue in self._acked else self.consumed() if queue is None else []
        for name in queues:
            self._next[str(name)] = 0.0
        if queues:
            self._own.bell.ring()

    def lose(self, consumer_id: int) -> None:
        """Its messages are with others."""
        if consumer_id == self.consumer_id:
            self._is_lost = True
            self._own.bell.ring()

    # -- looking

    def due(self) -> list[str]:
        """The queues to look into now; another one first each time, so that a full one does not starve the others."""
        now = time.monotonic()
        queues = [queue for queue in self.consumed() if self._next.get(queue, 0.0) <= now]
        self._turn += 1
        first = self._turn % len(queues) if queues else 0
        return queues[first:] + queues[:first]

    def is_acked(self, queue: str) -> bool:
        """Whether messages of that queue have to be acknowledged here."""
        return self._acked.get(queue, True)

    def next_look(self, *, room: bool) -> float:
        """When the next queue is due, by the monotonic clock; without room, of those whose messages need none."""
        queues = [queue for queue, acked in list(self._acked.items()) if room or not acked]
        return min((self._next.get(queue, 0.0) for queue in queues), default=float("inf"))

    def holds(self, tag: str) -> bool:
        """Whether that delivery has to be acknowledged, or was."""
        return tag in self._held

    def check(self) -> None:
        """Raises ConsumerLost when what this channel holds is with others."""
        if self._is_lost:
            raise ConsumerLost

    def fetch(self, queue: str, take: int) -> list[Delivery]:
        """Look into a queue and take what is due, in order.

        Raises:
            ConsumerLost: its lease is lost.
            psycopg.OperationalError, DatabaseUnreachable: the database does not answer; to be asked again later.
        """
        now = time.monotonic()
        self._next[queue] = now + self._pause()  # before the look: a hint from here on makes it due again
        place = self._places.pop(queue, None)
        if place is not None and place.until <= now:
            place = None
        try:
            found = self.give(queue, take, acked=self.is_acked(queue), floor=place.floor if place else FROM_THE_START)
        except UNANSWERED:
            self._next[queue] = now + OUTAGE_PAUSE
            raise
        if len(found) == take:  # there may be more
            self._places[queue] = _Place(found[-1].floor, place.until if place else now + RESCAN)
            self._next[queue] = 0.0
        elif place is not None:  # nothing is left behind the floor; something may be before it
            self._next[queue] = 0.0
        return found

    def give(self, queue: str, take: int, *, acked: bool, floor: Floor = FROM_THE_START) -> list[Delivery]:
        """Take at most `take` due messages of any queue, without regard to when to look. Raises as `fetch` does."""
        self.check()
        if not acked:
            return self._own.broker.take(queue, take, floor)
        consumer_id = self._joined()
        try:
            if self._is_doubtful:
                self._own.broker.reconcile(consumer_id, [found for found, _ in list(self._held.values())])
                self._is_doubtful = False
            found = self._claim(consumer_id, queue, take, floor)
        except UNANSWERED:
            self._is_doubtful = True
            raise
        self._held.update({delivery.tag: (delivery.id, delivery.lease) for delivery in found})
        return found

    def _claim(self, consumer_id: int, queue: str, take: int, floor: Floor) -> list[Delivery]:
        try:
            return self._own.broker.claim(consumer_id, queue, take, floor)
        except NotAlive:
            if consumer_id not in self._own.broker.renew([consumer_id]):  # late, or given up?
                self._is_lost = True
                raise ConsumerLost from None
            return self._own.broker.claim(consumer_id, queue, take, floor)

    def _joined(self) -> int:
        if self.consumer_id is None:
            self.consumer_id = self._own.broker.join(socket.gethostname(), os.getpid(), self.consumed(), self._own.options.lease)
            self._own.keeper.add(self)
        return self.consumer_id

    def _pause(self) -> float:
        poll = self._own.options.poll
        return poll if poll is not None else POLL if self._own.keeper.hears else DEAF_POLL

    # -- what became of messages

    def ack(self, tags: list[str]) -> None:
        """Remove messages for good. What the database cannot be told now it is told later, as long as this process lives."""
        self._write(tags, acked=True, first=True)

    def release(self, tags: list[str]) -> None:
        """Give messages back."""
        self._write(tags, acked=False, first=True)

    def settle(self) -> bool:
        """Try again what could not be written; False: it still cannot."""
        with self._settling:
            while self._unsettled:
                acked, tags = self._unsettled[0]
                if not self._write(tags, acked=acked, first=False):
                    return False
                self._unsettled.pop(0)
        return True

    def leave(self) -> bool:
        """End the consumer; what it holds goes back. False: the database could not be told, to be tried again."""
        try:
            if not self.settle():
                return False
            if self.consumer_id is not None:
                self._wake(self._own.broker.leave(self.consumer_id))
                self.consumer_id = None
        except UNANSWERED:
            return False
        self._held.clear()
        return True

    def close(self) -> None:
        """End, now or as soon as the database answers."""
        self._acked.clear()
        self._own.keeper.discard(self)
        if not self.leave():
            self._own.keeper.finish_later(self.leave)

    def _write(self, tags: list[str], *, acked: bool, first: bool) -> bool:
        held = [(tag, self._held[tag]) for tag in tags if tag in self._held]
        if not held:
            return True
        try:
            if acked:
                done = self._own.broker.ack([each for _, each in held])
                # At the second time we cannot tell: the first may have done it, and only its answer got lost.
                lost = [tag for tag, (found, _) in held if found not in done] if first else []
                if lost:
                    logger.warning("acknowledged too late, somebody else was given them: messages %s", ", ".join(lost))
            else:
                self._wake(self._own.broker.release([each for _, each in held]))
        except UNANSWERED as error:
            if first:
                logger.warning("the database cannot be told of %d messages now, it will be later: %s", len(held), type(error).__name__)
                self._unsettled.append((acked, tags))
            return False
        for tag, _ in held:
            self._held.pop(tag, None)
        return True

    def _wake(self, queues: Iterable[str]) -> None:
        for queue in queues:
            waker_of(self._own.dsn).wake(HINT + queue)
