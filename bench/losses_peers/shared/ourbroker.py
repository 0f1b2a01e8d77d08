"""Owns our Kombu transport as Celery's broker; the application is the same as for the other brokers, and knows nothing of us."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
from celeries import CeleryContender

from jobrunner import migrate

if TYPE_CHECKING:
    from collections.abc import Iterator

KEPT = "SELECT message->>'body' FROM jobrunner.broker_messages WHERE task = 'work'"


class OurTransport(CeleryContender):
    """`jobrunner://`."""

    distributions = ("jobrunner-pg", "celery", "kombu", "psycopg")

    def broker(self) -> str:
        """The database's address with another scheme."""
        return "jobrunner" + self.dsn.removeprefix("postgresql")

    def options(self) -> dict[str, Any]:
        """A lease of 30 s, unless a timeout is wanted."""
        return {} if self.timeout is None else {"lease": self.timeout}

    def prepare(self) -> None:
        """`jobrunner db upgrade`."""
        migrate.upgrade(self.dsn)
        super().prepare()

    def bodies(self) -> Iterator[str]:
        """Of every message in the table."""
        with psycopg.connect(self.dsn) as connection:
            yield from (body for (body,) in connection.execute(KEPT).fetchall())
