"""Owns an application with topics for tests: handlers that keep what they get, publishing by hand, and one round of a worker."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

import psycopg
import sqlalchemy as sa

from jobrunner import Event, JobRunner, subscriptions, testing
from jobrunner.topics import groups
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from jobrunner.inspection.groups import Group
    from jobrunner.testing.drained import Drained

EFFECTS = "SELECT position FROM effects ORDER BY position, ctid"  # of the table `effects (position bigint)` that transactional handlers fill


class Shop:
    """A JobRunner, and what its handlers got.

    Attributes:
        got: (group, list of payloads) of each call of a handler, in order.
        failing: a call whose payloads include one of these raises ValueError.
    """

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.jobs = JobRunner(dsn=dsn, wakeups=False, name="shop")
        self.topic = self.jobs.topic("orders")
        self.got: list[tuple[str, list[Any]]] = []
        self.failing: set[Any] = set()
        self.meanwhile: Callable[[], object] = lambda: None

    def queue(self, group: str, pattern: Any = "#", topic: str = "orders", **options: Any) -> Any:
        """Subscribe a handler in queue mode."""

        def handler(event: Event) -> Any:
            self._take(group, [event])
            return event.payload

        handler.__name__ = handler.__qualname__ = group
        return self.jobs.subscribe(topic, pattern, group=group, **options)(handler)

    def log(self, group: str, pattern: Any = "#", topic: str = "orders", **options: Any) -> Any:
        """Subscribe a handler that reads the log."""
        if options.get("transactional"):

            def handler(batch: list[Event], *, session: Any) -> None:
                self._write(batch, session)
                self._take(group, batch)
        else:

            def handler(batch: list[Event]) -> None:  # type: ignore[misc]
                self._take(group, batch)

        handler.__name__ = handler.__qualname__ = group
        return self.jobs.subscribe(topic, pattern, group=group, mode="log", **options)(handler)

    def _take(self, group: str, events: list[Event]) -> None:
        payloads = [event.payload for event in events]
        self.got.append((group, payloads))
        self.meanwhile()
        if any(str(payload) in map(str, self.failing) for payload in payloads):
            raise ValueError(f"{group} cannot take {payloads}")

    def _write(self, batch: list[Event], session: Any) -> None:
        session.execute(sa.text("INSERT INTO effects (position) VALUES (:position)"), [{"position": event.position} for event in batch])

    def payloads(self, group: str) -> list[Any]:
        """All payloads that a group got, in order; those of failed calls included."""
        return [payload for name, payloads in self.got if name == group for payload in payloads]

    def drain(self, **options: Any) -> Drained:
        """Work until nothing is due, as a worker does."""
        with testing.Jobs(self.jobs) as helper:
            return helper.drain(**options)

    def drain_until(self, group: str, *payloads: Any) -> None:
        """Work until a group has had these, and no other. Of a log only what nothing can come before is handed over, and a transaction of
        another test on the same server counts as well: it has to end first."""

        def done() -> bool:
            self.drain()
            return len(self.payloads(group)) >= len(payloads)

        wait_until(done, timeout=90, what=f"{group} to have had {len(payloads)} events")
        assert self.payloads(group) == list(payloads)

    def drain_until_called(self, times: int) -> None:
        """Work until handlers were called so often; each time one fails, that is as far as it goes."""

        def called() -> bool:
            with contextlib.suppress(ValueError):
                self.drain()
            return len(self.got) >= times

        wait_until(called, timeout=90, what=f"{times} calls of a handler")

    def drain_until_stopped(self, group: str) -> None:
        """Work, whatever fails, until a group has stopped."""

        def stopped() -> bool:
            self.drain(raise_errors=False)
            return self.group(group).stopped_at is not None

        wait_until(stopped, timeout=90, what=f"{group} to stop")

    def drain_to_the_end(self, group: str) -> None:
        """Work, whatever fails, until a group has nothing left of its log."""

        def done() -> bool:
            self.drain(raise_errors=False)
            return self.group(group).lag == 0

        wait_until(done, timeout=90, what=f"{group} to be at the end")

    def group(self, name: str) -> Group:
        """What is known of a group."""
        return next(found for found in groups.groups(self.jobs.database) if found.group == name)

    def declare(self) -> None:
        """Tell the database what was subscribed to, as a worker does at its start."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            documents = [each.document() for each in self.jobs.subscriptions.values()]
            subscriptions.declare(subscriptions.Direct(connection), self.jobs.rules_name, documents, complete=True)

    @contextlib.contextmanager
    def elsewhere(self) -> Iterator[psycopg.Connection[Any]]:
        """A transaction of somebody else, open until the block ends; then it is rolled back, unless it was committed."""
        with psycopg.connect(self.dsn) as connection:
            yield connection
            connection.rollback()


def publish(connection: psycopg.Connection[Any], payload: Any, name: str = "order.paid", topic: str = "orders") -> int:
    """Publish by plain SQL, in the transaction of the connection."""
    query = "SELECT jobrunner.publish(%s, %s, %s::jsonb)"
    row = connection.execute(query, (topic, name, json.dumps(payload))).fetchone()
    assert row is not None
    return int(row[0])


def cursor(connection: psycopg.Connection[Any], group: str, topic: str = "orders") -> int:
    """The position of a group that reads the log."""
    query = "SELECT position FROM jobrunner.cursors WHERE topic = %s AND group_name = %s"
    row = connection.execute(query, (topic, group)).fetchone()
    assert row is not None
    return int(row[0])


def positions(connection: psycopg.Connection[Any]) -> list[int]:
    """The positions of all events, in order."""
    return [position for (position,) in connection.execute("SELECT position FROM jobrunner.events ORDER BY position").fetchall()]
