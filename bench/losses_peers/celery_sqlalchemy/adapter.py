# /// script
# requires-python = ">=3.11"
# dependencies = ["celery[sqlalchemy]==5.7.0", "kombu==5.7.0", "SQLAlchemy==2.1.9", "psycopg[binary]==3.3.9"]
#
# [tool.bench]
# title = "Celery + Kombu's sqlalchemy, late acks"
# server = "postgresql"
# durability = "less: a delivered message is marked as such for ever, whatever becomes of its consumer"
# ///
"""Celery on Kombu's `sqlalchemy` transport, with its default driver and late acknowledgement. It has no visibility timeout."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import psycopg
from celeries import SAFE, CeleryContender
from protocol import serve

if TYPE_CHECKING:
    from collections.abc import Iterator

WAITING = "SELECT payload FROM kombu_message WHERE visible"  # nothing in Kombu makes a row visible again


class SqlAlchemyTransport(CeleryContender):
    """`sqla+postgresql://`."""

    distributions = ("celery", "kombu", "SQLAlchemy", "psycopg")
    settings = SAFE

    def broker(self) -> str:
        """As the transport's documentation has it."""
        return f"sqla+{self.dsn}"

    def bodies(self) -> Iterator[str]:
        """Of rows that a worker would still find."""
        with psycopg.connect(self.dsn) as connection:
            if connection.execute("SELECT to_regclass('kombu_message')").fetchone() == (None,):
                return
            for (payload,) in connection.execute(WAITING).fetchall():
                message = json.loads(payload)
                if message["headers"].get("task") == "work":
                    yield message["body"]


if __name__ == "__main__":
    serve(SqlAlchemyTransport())
