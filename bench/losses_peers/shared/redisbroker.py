"""Owns Celery's broker in Redis: its address, its visibility timeout, and what is in its keys."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import redis
from addresses import for_kombu
from celeries import CeleryContender

if TYPE_CHECKING:
    from collections.abc import Iterator

QUEUE, UNACKED = "celery", "unacked"  # the keys that Kombu uses
SWEEP = {"unacked_restore_interval": 1, "unacked_restore_throttle": 1}
"""Kombu looks for what has timed out every 100 s unless told otherwise, which suits an hour; its documentation has these for a low one."""


class RedisContender(CeleryContender):
    """Celery on Redis."""

    distributions = ("celery", "kombu", "redis")

    def broker(self) -> str:
        """As Kombu writes the path of a socket and the number of a database."""
        return for_kombu(self.redis)

    def options(self) -> dict[str, Any]:
        """An hour, unless a timeout is wanted."""
        return {} if self.timeout is None else {"visibility_timeout": self.timeout, **SWEEP}

    def prepare(self) -> None:
        """Begin with an empty database."""
        self.client = redis.Redis.from_url(self.redis)
        self.client.flushdb()
        super().prepare()

    def bodies(self) -> Iterator[str]:
        """Of the queue's list, and of what has been delivered and not acknowledged."""
        for message in self.client.lrange(QUEUE, 0, -1):  # type: ignore[union-attr]
            yield json.loads(message)["body"]
        for delivered in self.client.hvals(UNACKED):  # type: ignore[union-attr]
            message, *_ = json.loads(delivered)
            if message["headers"].get("task") == "work":
                yield message["body"]
