"""Owns forgetting events: days of the log that are older than they are kept, a few at a time.

It must not drop what a group has yet to get, however far behind it is: the doctor names that group.
"""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from psycopg import errors as pg

from jobrunner.maintenance.pruner import IN_USE, LOCK_PATIENCE, MOST_PARTITIONS
from jobrunner.settings import find_duration

if TYPE_CHECKING:
    from jobrunner.store import Store

logger = logging.getLogger("jobrunner.maintenance")

KEEP = timedelta(days=7)
_LEAST, _MOST = timedelta(days=1), timedelta(days=36_500)
_PATIENCE = f"SET LOCAL lock_timeout = '{LOCK_PATIENCE // timedelta(milliseconds=1)}ms'"
# The lock is the one of drop_partitions.sql: of two that drop at once the second would find the days gone.
_TAKE_TURN = "SELECT pg_try_advisory_xact_lock(hashtextextended('jobrunner.drop_partitions', 0))"
# An hour before the first event that a group has yet to get: one further on in the log may be a little older by the clock.
_BEFORE = """
SELECT least(now() - %s::interval, (
    SELECT min(first.published_at) - interval '1 hour'
    FROM jobrunner.cursors c
    JOIN jobrunner.subscriptions s ON s.topic = c.topic AND s.group_name = c.group_name AND s.mode = 'log'
    CROSS JOIN LATERAL (
        SELECT e.published_at FROM jobrunner.events e
        WHERE e.topic = c.topic AND e.position > c.position AND (s.matcher IS NULL OR '.' || e.name ~ s.matcher)
        ORDER BY e.position LIMIT 1
    ) AS first
))
"""
_DROP = "SELECT jobrunner.drop_partitions('events', %s::timestamptz, %s::integer)"  # alone: what a statement reads it cannot drop


def keep_events() -> timedelta:
    """How long events stay, as `JOBRUNNER_KEEP_EVENTS` says: whole days (UTC). Raises ConfigurationError when that is no such duration."""
    return find_duration("JOBRUNNER_KEEP_EVENTS", KEEP, least=_LEAST, most=_MOST)


class Forgotten(NamedTuple):
    """What one step has dropped."""

    days: int

    @property
    def more(self) -> bool:
        """Whether a bound was reached, so that something is left."""
        return self.days >= MOST_PARTITIONS


class EventPruner:
    """A chore of workers: drops some days at each call. Any number may be at it at once; one of them drops."""

    def __init__(self, keep: timedelta = KEEP) -> None:
        self.keep = keep
        self._may_drop = True

    def __call__(self, store: Store) -> Forgotten:
        """Drop some of what is too old. Waits 200 ms for the table; what is in use is left for another time.

        Raises:
            psycopg.Error: the database is away, or refused what it should not.
        """
        days = self._drop(store) if self._may_drop else 0
        if days:
            logger.info("dropped old events", extra={"days": days})
        return Forgotten(days)

    def _drop(self, store: Store) -> int:
        try:
            with store.connection.transaction():
                store.connection.execute(_PATIENCE)
                if not _answer(store, _TAKE_TURN):
                    return 0
                before = _answer(store, _BEFORE, self.keep)
                return int(_answer(store, _DROP, before, MOST_PARTITIONS))
        except IN_USE as error:
            logger.info("old events are in use; they go another time", extra={"error": type(error).__name__})
        except pg.InsufficientPrivilege:
            self._may_drop = False
            logger.info("old events stay: only the owner of the tables may drop them")
        return 0


def _answer(store: Store, query: str, *parameters: object) -> Any:
    row = store.connection.execute(query, parameters).fetchone()
    return None if row is None else row[0]
