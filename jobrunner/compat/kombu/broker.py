"""Owns the verbs of the broker: what is put, given, acknowledged and swept, each one statement of `sql/broker_….sql`.

It must not decide anything (the statements' guards do) nor wait.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import timedelta

    from jobrunner.compat.kombu.envelopes import Envelope

UNCLAIMED_MS = 7 * 86_400_000  # a queue that came about because somebody sent to it waits a week for somebody to declare it
SWEPT = 1000  # rows that one sweep removes at most, so that it is short
EVERY = 2**62  # rows; a count that does not stop


class Floor(NamedTuple):
    """The last key given out of one queue: the next look starts behind it, in that priority only."""

    priority: int | None
    available_at: datetime
    id: int


FROM_THE_START = Floor(None, datetime(1970, 1, 1, tzinfo=UTC), 0)


class Delivery(NamedTuple):
    """A message that was given to a consumer; `lease` counts how often that was done with it."""

    id: int
    lease: int
    priority: int
    available_at: datetime
    message: str

    @property
    def tag(self) -> str:
        """Its name on a channel."""
        return f"{self.id}-{self.lease}"

    @property
    def floor(self) -> Floor:
        """The place behind it."""
        return Floor(self.priority, self.available_at, self.id)


class NotAlive(Exception):
    """The consumer's lease does not hold: it has expired, or the consumer was given up."""


class Statements(Protocol):
    """Runs a statement of `sql/`; `jobrunner.compat.kombu.link.Link` is one."""

    def run(self, name: str, parameters: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """The rows of one statement."""


class Broker:
    """The verbs, on one link. Each is a transaction of its own."""

    def __init__(self, link: Statements) -> None:
        self._run = link.run

    # -- producers

    def publish(self, exchange: str, routing_key: str, envelope: Envelope) -> list[str]:
        """Put a message into every queue that its exchange and routing key lead to; gives those queues."""
        rows = self._run("broker_publish", {"exchange": exchange, "routing_key": routing_key, **envelope._asdict()})
        return [str(queue) for (queue,) in rows]

    def put(self, queue: str, envelope: Envelope) -> None:
        """Put a message into one queue."""
        self._run("broker_put", {"queue": queue, "unclaimed_ms": UNCLAIMED_MS, **envelope._asdict()})

    # -- consumers

    def claim(self, consumer_id: int, queue: str, take: int, floor: Floor = FROM_THE_START) -> list[Delivery]:
        """Give at most `take` due messages to a consumer, in their order. Raises NotAlive when its lease does not hold."""
        rows = self._run("broker_claim", {"consumer_id": consumer_id, "queue": queue, "take": take, **_floor_parameters(floor)})
        if rows and rows[0][0] is None:
            raise NotAlive
        return _in_order(rows)

    def take(self, queue: str, take: int, floor: Floor = FROM_THE_START) -> list[Delivery]:
        """Take at most `take` due messages out of a queue: nobody can give them back."""
        return _in_order(self._run("broker_take", {"queue": queue, "take": take, **_floor_parameters(floor)}))

    def ack(self, tags: Sequence[tuple[int, int]]) -> set[int]:
        """Remove messages by (id, lease); gives the ids of those that were still theirs who acknowledged."""
        rows = self._run("broker_ack", {"ids": [id_ for id_, _ in tags], "leases": [lease for _, lease in tags]})
        return {int(found) for (found,) in rows}

    def release(self, tags: Sequence[tuple[int, int]]) -> set[str]:
        """Give messages back to their queues by (id, lease); gives the queues."""
        rows = self._run("broker_release", {"ids": [id_ for id_, _ in tags], "leases": [lease for _, lease in tags]})
        return {str(queue) for (queue,) in rows}

    def reconcile(self, consumer_id: int, known: Iterable[int]) -> set[str]:
        """Give back what a consumer holds without knowing; gives the queues."""
        rows = self._run("broker_reconcile", {"consumer_id": consumer_id, "known": list(known)})
        return {str(queue) for (queue,) in rows}

    def join(self, host: str, pid: int, queues: Sequence[str], lease: timedelta) -> int:
        """A new consumer; gives its id."""
        lease_ms = max(1, int(lease.total_seconds() * 1000))
        return int(self._run("broker_join", {"host": host, "pid": pid, "queues": list(queues), "lease_ms": lease_ms})[0][0])

    def renew(self, consumer_ids: Sequence[int]) -> set[int]:
        """The heartbeat of consumers; gives those that are still alive."""
        return {int(found) for (found,) in self._run("broker_renew", {"consumer_ids": list(consumer_ids)})}

    def leave(self, consumer_id: int) -> set[str]:
        """End a consumer; gives the queues that its messages went back to."""
        return {str(queue) for (queue,) in self._run("broker_leave", {"consumer_id": consumer_id})}

    # -- queues, exchanges

    def declare(self, queue: str, *, auto_delete: bool = False, expires_ms: int | None = None, message_ttl_ms: int | None = None) -> None:
        """Make a queue, or change it to these properties."""
        self._run(
            "broker_declare", {"queue": queue, "auto_delete": auto_delete, "expires_ms": expires_ms, "message_ttl_ms": message_ttl_ms}
        )

    def touch(self, queues: Sequence[str], hold: timedelta) -> set[str]:
        """Say that queues are used, so that expiring ones stay for `hold` at least; gives those that exist."""
        rows = self._run("broker_touch", {"queues": list(queues), "hold_ms": int(hold.total_seconds() * 1000)})
        return {str(name) for (name,) in rows}

    def bind(self, exchange: str, routing_key: str, queue: str, kind: str, pattern: str | None) -> None:
        """Lead an exchange's messages to a queue."""
        values = {"exchange": exchange, "routing_key": routing_key, "queue": queue, "kind": kind, "pattern": pattern}
        self._run("broker_bind", {**values, "unclaimed_ms": UNCLAIMED_MS})

    def unbind(self, exchange: str, routing_key: str | None = None, queue: str | None = None) -> None:
        """End one binding of an exchange, or all of them."""
        self._run("broker_unbind", {"exchange": exchange, "routing_key": routing_key, "queue": queue})

    def bindings(self, exchange: str | None = None) -> list[tuple[str, str, str | None, str]]:
        """(exchange, routing key, pattern, queue) of one exchange or of all."""
        return [(row[0], row[1], row[2], row[3]) for row in self._run("broker_bindings", {"exchange": exchange})]

    def size(self, queue: str, most: int = EVERY) -> tuple[int, bool]:
        """How many messages wait in a queue (`most` at most), and whether there is such a queue."""
        waiting, exists = self._run("broker_size", {"queue": queue, "most": most})[0]
        return int(waiting), bool(exists)

    def purge(self, queue: str) -> int:
        """Remove what waits in a queue; gives how many messages that were."""
        return int(self._run("broker_purge", {"queue": queue})[0][0])

    def delete(self, queue: str, *, if_empty: bool = False, if_unused: bool = False) -> bool:
        """Remove a queue with what waits in it; gives whether it is gone, and not left alone."""
        return bool(self._run("broker_delete_queue", {"queue": queue, "if_empty": if_empty, "if_unused": if_unused})[0][0])

    # -- upkeep

    def rescue(self) -> dict[str, int]:
        """Give up consumers whose lease has expired; gives how many messages came back to each queue."""
        return {str(queue): int(count) for queue, count in self._run("broker_rescue", {"most": SWEPT})}

    def sweep(self) -> list[str]:
        """Remove messages, queues and results whose time is up, and messages without a queue; gives the queues that were removed."""
        self._run("broker_sweep_messages", {"most": SWEPT})
        removed = [str(name) for (name,) in self._run("broker_sweep_queues", {"most": SWEPT})]
        self._run("broker_sweep_orphans", {"most": SWEPT})
        self._run("broker_sweep_results", {"most": SWEPT})
        return removed


class Results:
    """The verbs of the result backend, on one link."""

    def __init__(self, link: Statements) -> None:
        self._run = link.run

    def get(self, keys: Sequence[str]) -> dict[str, bytes]:
        """What is stored under these keys."""
        return {str(key): bytes(value) for key, value in self._run("broker_get_results", {"keys": list(keys)})}

    def set(self, key: str, value: bytes, ttl_ms: int | None) -> None:
        """Store a value."""
        self._run("broker_set_result", {"key": key, "value": value, "ttl_ms": ttl_ms})

    def delete(self, keys: Sequence[str]) -> None:
        """Forget values."""
        self._run("broker_delete_result", {"keys": list(keys)})

    def count(self, key: str, ttl_ms: int | None) -> int:
        """Add one to the number under a key; gives it."""
        return int(self._run("broker_count_result", {"key": key, "ttl_ms": ttl_ms})[0][0])

    def count_part(self, key: str, part: str, ttl_ms: int | None) -> int:
        """Add one to the number under a key unless that was done for this part; gives it."""
        return int(self._run("broker_count_part", {"key": key, "part": part, "ttl_ms": ttl_ms})[0][0])

    def expire(self, key: str, ttl_ms: int | None) -> None:
        """How long from now on a value is kept."""
        self._run("broker_expire_result", {"key": key, "ttl_ms": ttl_ms})

    def sweep(self) -> int:
        """Remove values whose time is up; gives how many, `SWEPT` at most."""
        return int(self._run("broker_sweep_results", {"most": SWEPT})[0][0])


def _floor_parameters(floor: Floor) -> dict[str, Any]:
    return {"priority": floor.priority, "floor_available_at": floor.available_at, "floor_id": floor.id}


def _in_order(rows: list[tuple[Any, ...]]) -> list[Delivery]:
    return sorted((Delivery(*row) for row in rows), key=lambda found: (-found.priority, found.available_at, found.id))
