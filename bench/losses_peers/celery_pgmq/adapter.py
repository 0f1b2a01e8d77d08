# /// script
# requires-python = ">=3.11"
# dependencies = ["celery==5.7.0", "kombu[pgmq]==5.7.0", "pgmq==1.1.4", "SQLAlchemy==2.1.9", "psycopg[binary]==3.3.9"]
#
# [tool.bench]
# title = "Celery + Kombu's pgmq, late acks"
# server = "postgresql"
# durability = "at least once, once the visibility timeout (30 min unless set) is over"
# ///
"""Celery on Kombu's `pgmq` transport, with late acknowledgement. pgmq is installed as SQL, which its client brings along: no extension."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
from celeries import SAFE, CeleryContender
from pgmq.install import get_embedded_install_sql, get_embedded_sql_version, install_pgmq_sql
from protocol import serve
from psycopg.conninfo import conninfo_to_dict, make_conninfo

if TYPE_CHECKING:
    from collections.abc import Iterator

QUEUE = "pgmq.q_celery"
KEPT = f"SELECT message FROM {QUEUE}"  # noqa: S608  a constant


class PgmqTransport(CeleryContender):
    """`pgmq://`."""

    distributions = ("celery", "kombu", "pgmq", "psycopg")
    settings = SAFE

    def broker(self) -> str:
        """The database is in the options: a socket has no place in the address."""
        return "pgmq://"

    def options(self) -> dict[str, Any]:
        """Half an hour, unless a timeout is wanted."""
        # As words: of an address pgmq's client takes host and port out by itself, and a socket's directory is neither.
        options = {"conn_string": make_conninfo(**conninfo_to_dict(self.dsn)), "init_extension": False}
        return options if self.timeout is None else options | {"visibility_timeout": self.timeout}

    def prepare(self) -> None:
        """Install pgmq, once in the database."""
        install_pgmq_sql(get_embedded_install_sql(), dsn=self.dsn)
        super().prepare()

    def versions(self) -> dict[str, str]:
        """And that of the SQL."""
        return super().versions() | {"pgmq (SQL)": get_embedded_sql_version()}

    def bodies(self) -> Iterator[str]:
        """Of every message in the queue, visible or not."""
        with psycopg.connect(self.dsn) as connection:
            if connection.execute("SELECT to_regclass(%s)", (QUEUE,)).fetchone() == (None,):
                return
            for (message,) in connection.execute(KEPT).fetchall():
                if message["headers"].get("task") == "work":
                    yield message["body"]


if __name__ == "__main__":
    serve(PgmqTransport())
