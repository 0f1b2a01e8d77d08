"""Owns the pooled way to a database for applications: enqueue, inspection and operators' verbs share its connections.

It must not say anything to the server by itself: a `Store` on one of the connections does. A worker opens its own connections.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import sqlalchemy as sa

from jobrunner.connecting import allow_preparing, patience, prepare_if_asked
from jobrunner.ready import Ready
from jobrunner.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jobrunner.settings import Dsn


class Database:
    """A pool of connections for applications: enqueue, inspection and operators' verbs share it. Thread-safe.

    Args:
        dsn: where.
        pool_size: connections kept; as many again may be opened under load.
    """

    def __init__(self, dsn: Dsn, *, pool_size: int = 5) -> None:
        self.dsn = dsn
        # Autocommit: one statement is one transaction and one round trip.
        self.engine = sa.create_engine(
            dsn.sqlalchemy_url,
            isolation_level="AUTOCOMMIT",
            pool_size=pool_size,
            max_overflow=pool_size,
            pool_reset_on_return=None,
            pool_pre_ping=False,
            pool_use_lifo=True,
            connect_args={**patience(dsn), "prepare_threshold": None, "application_name": "jobrunner"},
        )
        sa.event.listen(self.engine, "connect", allow_preparing)
        sa.event.listen(self.engine, "do_execute", prepare_if_asked)
        self.ready = Ready(self.engine.raw_connection, pool_size)

    @contextmanager
    def store(self) -> Iterator[Store]:
        """A `Store` on a pooled connection, for the length of the block. A broken connection is not given back."""
        kept = self.ready.take()
        try:
            yield Store(kept.connection)
        finally:
            self.ready.give(kept)

    def close(self) -> None:
        """Close the pooled connections; the next use opens new ones."""
        self.ready.close()
        self.engine.dispose()

    def forget(self) -> None:
        """In a forked child: leave the parent's connections alone; the next use opens new ones."""
        self.ready.forget()
        self.engine.dispose(close=False)
