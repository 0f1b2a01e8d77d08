"""Owns the messages of a queue that are not delivered any more: listing, delivering again, removing.

It must not decide what is dead: the ends of deliveries did.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from jobrunner import messagestore
from jobrunner.envelopes import Contents, DeadLetter
from jobrunner.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from datetime import datetime

    from jobrunner.database import Database
    from jobrunner.envelopes import Message, Receipt

SHOWN, MOST_SHOWN = 100, 1000  # dead letters of one list
AT_ONCE = 500  # that one statement changes


class Home(Protocol):
    """The database of a queue."""

    @property
    def database(self) -> Database:
        """Its pool of connections."""

    def wake(self, queue: str) -> None:
        """Tell consumers that there is something."""


class Queue(Protocol):
    """Whose dead letters they are."""

    name: str

    def home(self) -> Home:
        """Where they are."""

    def dead_letter(self, receipt: str | Receipt | Message, reason: str) -> None:
        """Make one of a message that was given to somebody."""


class DeadLetters:
    """The dead letters of one message queue: `queue.dead`. Called, it makes one of a message: `queue.dead(message, "reason")`."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    def __call__(self, receipt: str | Receipt | Message, reason: str) -> None:
        """A message, or the one of that receipt, cannot be handled; `MessageQueue.dead_letter` under the name of the other verbs.

        Raises:
            LeaseLost, IllegalTransition, ConfigurationError: as `MessageQueue.ack`.
        """
        self._queue.dead_letter(receipt, reason)

    def list(self, limit: int = SHOWN, *, before: DeadLetter | None = None) -> Sequence[DeadLetter]:
        """The newest, at most `limit` (1 to 1,000); with `before` those that died before that one.

        Raises:
            ConfigurationError: the limit is out of range.
        """
        return self.page(_checked(limit), None if before is None else (before.died_at, before.id))

    def page(self, limit: int, before: tuple[datetime, int] | None) -> Sequence[DeadLetter]:
        """As `list`, behind the one that died at that moment and has that id."""
        with self._queue.home().database.store() as store:
            rows = messagestore.MessageStore(store.connection).dead(self._queue.name, limit, before)
        return [
            DeadLetter(message_id, *Contents.read(args), key, state, reason, deliveries, enqueued_at, died_at)
            for message_id, args, key, state, reason, deliveries, enqueued_at, died_at in rows
        ]

    def redrive(self, ids: Iterable[int] | None = None) -> int:
        """Let them be delivered again, each with all its deliveries, in steps; without `ids` all there are. Returns how many.

        One with an ordering key comes before those of its key that were put after it.
        """
        home = self._queue.home()
        done = self._each(ids, lambda store, chunk: store.redrive(self._queue.name, chunk))
        if done:
            home.wake(self._queue.name)
        return done

    def purge(self, ids: Iterable[int] | None = None) -> int:
        """Remove them from the history, for good, in steps; without `ids` all there are. Returns how many."""
        return self._each(ids, lambda store, chunk: store.purge_dead(self._queue.name, chunk))

    def _each(self, ids: Iterable[int] | None, step: Callable[[messagestore.MessageStore, Sequence[int]], Sequence[int]]) -> int:
        count = 0
        with self._queue.home().database.store() as plain:
            store = messagestore.MessageStore(plain.connection)
            for chunk in self._chunks(store, ids):
                count += len(step(store, sorted(chunk)))
        return count

    def _chunks(self, store: messagestore.MessageStore, ids: Iterable[int] | None) -> Iterator[Sequence[int]]:
        if ids is not None:
            given = list(ids)
            yield from (given[start : start + AT_ONCE] for start in range(0, len(given), AT_ONCE))
            return
        before: tuple[datetime, int] | None = None
        # Behind the last one each time, so that what dies again meanwhile is not taken twice.
        while rows := store.dead(self._queue.name, AT_ONCE, before):
            before = rows[-1][-1], rows[-1][0]
            yield [row[0] for row in rows]


def _checked(limit: Any) -> int:
    if not isinstance(limit, int) or isinstance(limit, bool) or not 1 <= limit <= MOST_SHOWN:
        raise ConfigurationError(f"limit={limit!r}: expected a whole number from 1 to {MOST_SHOWN:,}")
    return limit
