"""Owns messages that are given to somebody who is not this process, and what becomes of them by their receipts.

It must not renew anything by itself: whoever pulled them may never come back, and this process may end at any time.
"""

from __future__ import annotations

import os
import socket
from contextlib import contextmanager
from datetime import timedelta
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Protocol

from jobrunner.claimer import Claimer, Room
from jobrunner.envelopes import Receipt
from jobrunner.errors import IllegalTransition, LeaseLost
from jobrunner.messagestore import EXPIRED_AT_ONCE, MessageStore
from jobrunner.settings import MESSAGE_TASK
from jobrunner.settling import hint_of, opened, outcome_of, settle_elsewhere

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from jobrunner.database import Database
    from jobrunner.envelopes import Message
    from jobrunner.jobs import Ending
    from jobrunner.policies import Duration


PULL = "pull via "  # how the name of a pull's row begins: drop_consumer.sql removes no other


class Home(Protocol):
    """What those who give messages need of the database that their queue is in."""

    @property
    def database(self) -> Database:
        """Its pool of connections."""

    @property
    def wakeups(self) -> bool:
        """Whether hints are sent and heard."""

    def wake(self, queue: str) -> None:
        """Tell consumers that there is something."""


class Pulls:
    """What is given out of one queue by receipt. Thread-safe: it keeps nothing."""

    def __init__(self, home: Home, queue: str) -> None:
        self._home, self._queue = home, queue

    def give(self, most: int, seconds: float) -> list[Message]:
        """At most `most` messages under a row of their own, whose lease is over in so many seconds."""
        with self._store() as store:
            store.expire(EXPIRED_AT_ONCE)
            store.rescue()
            if not any(due.priority is None or due.due_in_ms == 0 for due in store.find_due([self._queue])):
                return []
            worker_id = store.register_worker(consumer_facts(self._queue, PULL), timedelta(seconds=seconds))
            claimer = Claimer([self._queue], [MESSAGE_TASK], 0.0)
            jobs = claimer.claim(store, worker_id, Room(most))
            while not jobs and claimer.walking:
                jobs = claimer.claim(store, worker_id, Room(most))
            if not jobs:
                store.drop_consumer(worker_id)
                return []
            # However long it takes: a pull that is not settled in time must count, or a message could kill its consumers for ever.
            store.start([(job.id, job.lease, 0.0) for job in jobs])
            messages = opened(store, jobs, self)
            if not messages:
                store.drop_consumer(worker_id)
        return messages

    def settle(
        self, message: Message | Receipt, ending: Ending | None, *, delay: Duration | None, reason: str, place: Mapping[str, Any]
    ) -> None:
        """Write how a delivery ended; the row goes when nothing is held under it any more. Raises LeaseLost."""
        receipt = message if isinstance(message, Receipt) else message.receipt
        outcome = outcome_of(receipt, ending, delay=delay, reason=reason)
        if settle_elsewhere(outcome, place, None if isinstance(message, Receipt) else hint_of(self._home, message)):
            return
        with self._store() as store:
            holder = store.holder(self._queue, receipt)
            if holder is None or store.finish([outcome]):
                raise LeaseLost(*receipt)
            store.drop_consumer(holder[0])
        self._home.wake(self._queue)  # the next one of its ordering key may go

    def extend(self, message: Message | Receipt, seconds: float) -> None:
        """Hold it, and what was pulled with it, for so long from now on, at least.

        Raises:
            LeaseLost: it is not held under that receipt.
            IllegalTransition: it was not pulled: the process that took it keeps its lease by itself.
        """
        receipt = message if isinstance(message, Receipt) else message.receipt
        with self._store() as store:
            holder = store.holder(self._queue, receipt)
            if holder is not None and not holder[1]:
                hint = "message.extend(…) in the process that took it, or lease=None there"
                raise IllegalTransition(receipt.id, "held by a process that renews its lease by itself", "extend", hint=hint)
            if holder is None or not store.renew(receipt, seconds):
                raise LeaseLost(*receipt)

    @contextmanager
    def _store(self) -> Iterator[MessageStore]:
        with self._home.database.store() as plain:
            yield MessageStore(plain.connection)


def consumer_facts(queue: str, how: str = "") -> dict[str, Any]:
    """What the row of a consumer says."""
    return {
        "name": f"{how}{socket.gethostname()}:{os.getpid()}", "host": socket.gethostname(), "pid": os.getpid(), "kind": "consumer",
        "version": version("jobrunner-pg"), "queues": [queue], "tasks": [MESSAGE_TASK], "slots": 1,
    }  # fmt: skip
