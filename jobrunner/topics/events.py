"""Owns what an event is to those who get it. It must not know how it came to them."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime  # noqa: TC003  the annotations are read when the argument of a job is decoded
from typing import Any


@dataclass(frozen=True, slots=True)
class Event:
    """One event, as a subscriber gets it; `event["id"]` is short for `event.payload["id"]`.

    Attributes:
        topic: where it was published.
        name: words with dots between them, such as `order.paid`.
        payload: as JSON data.
        key: what it is about, or None; events of one key are in order within a group.
        headers: what the publisher said beside the payload.
        position: its place in the log of all topics; grows, with gaps.
        published_at: by the database's clock; None for one that was made by hand.
    """

    topic: str
    name: str
    payload: Any = None
    key: str | None = None
    headers: dict[str, Any] = field(default_factory=dict)
    position: int = 0
    published_at: datetime | None = None

    def __getitem__(self, name: Any) -> Any:
        return self.payload[name]

    def __contains__(self, name: object) -> bool:
        return name in self.payload

    def get(self, name: str, default: Any = None) -> Any:
        """A member of the payload, or the default when it has none of that name."""
        return self.payload.get(name, default) if isinstance(self.payload, dict) else default
