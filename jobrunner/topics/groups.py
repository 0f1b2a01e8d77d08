"""Owns what is known of groups, and the verbs of operators on them: rewind, resume, unsubscribe.

It must not deliver anything.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from jobrunner.errors import ConfigurationError, GroupNotFound
from jobrunner.subscriptions import EARLIEST, LATEST, LOG

if TYPE_CHECKING:
    from collections.abc import Callable

    from psycopg import Connection

    from jobrunner.database import Database

MOST_COUNTED = 10_000  # events behind a cursor that are looked at: the lag is exact up to there
MAX_POSITION = 2**63 - 1

# Events that a group will never have are no lag: those that do not fit, and those before the instant to which it was rewound.
_LIST = """
SELECT s.topic, s.group_name AS group, s.mode, s.patterns, s.task, s.queue, s.app, s.on_failure, s.declared_at, s.undeclared_at,
       c.position, c.stopped_at, c.problem, c.job_id, c.moved_at, c.delivered_count, c.fence_xid::text::bigint AS fence_xid,
       (SELECT count(*) FROM jobrunner.event_skips k
        WHERE k.topic = s.topic AND k.group_name = s.group_name AND k.redelivered_at IS NULL) AS skipped_count,
       lag.behind AS lag, lag.seen < %(most)s AS exact, lag.oldest AS oldest_at
FROM jobrunner.subscriptions s
LEFT JOIN jobrunner.cursors c ON c.topic = s.topic AND c.group_name = s.group_name AND s.mode = 'log'
LEFT JOIN LATERAL (
    SELECT count(*) FILTER (WHERE fits) AS behind, count(*) AS seen, min(w.published_at) FILTER (WHERE fits) AS oldest
    FROM (
        SELECT e.published_at,
               (s.matcher IS NULL OR '.' || e.name ~ s.matcher)
               AND (c.not_before IS NULL OR e.position > c.not_before_until OR e.published_at >= c.not_before) AS fits
        FROM jobrunner.events e WHERE e.topic = s.topic AND e.position > c.position
        ORDER BY e.position LIMIT %(most)s
    ) AS w
) AS lag ON c.position IS NOT NULL
ORDER BY s.topic, s.group_name
"""
_MODE = "SELECT mode, queue FROM jobrunner.subscriptions WHERE topic = %s AND group_name = %s"
_REWIND = "SELECT was, now_at FROM jobrunner.rewind_cursor(%s, %s, %s::bigint, %s::timestamptz)"
_RESUME = (
    "UPDATE jobrunner.cursors SET stopped_at = NULL, problem = NULL, job_id = NULL, job_at = NULL "
    "WHERE topic = %s AND group_name = %s AND stopped_at IS NOT NULL RETURNING position"
)
_FORGET_CURSOR = "DELETE FROM jobrunner.cursors WHERE topic = %s AND group_name = %s"
_FORGET = "DELETE FROM jobrunner.subscriptions WHERE topic = %s AND group_name = %s RETURNING mode"


class Group(NamedTuple):
    """One group of consumers of a topic, as it stands; the fields are the columns of the list, in its order.

    Attributes:
        topic, group: its names.
        mode: `queue` or `log`.
        patterns, task, queue, app, on_failure: as declared; `app` is whose code did.
        declared_at: first.
        undeclared_at: since when the code declares it no longer; it goes on getting events.
        position: the last event that it has had; None in queue mode, as everything from here on but `skipped_count`.
        stopped_at, problem: since when it delivers nothing, and why.
        job_id: of its last delivery.
        moved_at, delivered_count: when it moved last, and how many events it has had.
        fence_xid: the transaction after which it is known what comes next, while that is waited for.
        skipped_count: failed deliveries that it went past.
        lag: events that it has yet to have, or more when not `exact`.
        oldest_at: when the first of them was published.
    """

    topic: str
    group: str
    mode: str
    patterns: list[str]
    task: str
    queue: str
    app: str
    on_failure: str
    declared_at: datetime
    undeclared_at: datetime | None
    position: int | None
    stopped_at: datetime | None
    problem: str | None
    job_id: int | None
    moved_at: datetime | None
    delivered_count: int | None
    fence_xid: int | None
    skipped_count: int
    lag: int | None
    exact: bool | None
    oldest_at: datetime | None

    @property
    def state(self) -> str:
        """`stopped`, `undeclared`, `waiting` for a transaction, or `active`."""
        if self.stopped_at is not None:
            return "stopped"
        if self.undeclared_at is not None:
            return "undeclared"
        return "waiting" if self.fence_xid is not None and self.lag else "active"


class Rewound(NamedTuple):
    """From where to where a group was set: the last position before what it gets next."""

    was: int
    position: int


def groups(database: Database) -> list[Group]:
    """Every group, by topic. Looks at no more than MOST_COUNTED events of each that reads the log."""
    with database.store() as store:
        return [Group._make(row) for row in store.connection.execute(_LIST, {"most": MOST_COUNTED}).fetchall()]


def rewind(database: Database, topic: str, group: str, to: datetime | int | str, wake: Callable[[str], None]) -> Rewound:
    """Set a group to another place; see `Topic.rewind`. One transaction; waits for nobody who delivers."""
    position, since = _target(to)
    with database.store() as store:
        queue = _queue_of(store.connection, topic, group)
        found = store.connection.execute(_REWIND, (topic, group, position, since)).fetchone()
    if found is None:
        raise GroupNotFound(f"no group {group!r} is subscribed to topic {topic!r}")
    wake(queue)
    return Rewound(*found)


def resume(database: Database, topic: str, group: str, wake: Callable[[str], None]) -> bool:
    """Let a stopped group go on where it is: it tries the same events again. False when it was not stopped."""
    with database.store() as store:
        queue = _queue_of(store.connection, topic, group)
        found = store.connection.execute(_RESUME, (topic, group)).fetchone()
    if found is not None:
        wake(queue)
    return found is not None


def unsubscribe(database: Database, topic: str, group: str) -> bool:
    """Forget a group: it gets no further event. Jobs that are written already stay. False when there was none.

    A group that some code still declares comes back with the next worker that starts, and begins as a new one.
    """
    with database.store() as store, store.connection.transaction():
        store.connection.execute(_FORGET_CURSOR, (topic, group))
        return store.connection.execute(_FORGET, (topic, group)).fetchone() is not None


def _target(to: Any) -> tuple[int | None, datetime | None]:
    if isinstance(to, datetime) and to.utcoffset() is not None:
        return None, to
    if isinstance(to, int) and not isinstance(to, bool) and 0 <= to < MAX_POSITION:
        return to, None
    if to in (EARLIEST, LATEST):
        return (0 if to == EARLIEST else MAX_POSITION), None
    raise ConfigurationError(f"rewind(to={to!r}): expected a datetime with a time zone, a position, 'earliest' or 'latest'")


def _queue_of(connection: Connection[Any], topic: str, group: str) -> str:
    found = connection.execute(_MODE, (topic, group)).fetchone()
    if found is None:
        raise GroupNotFound(f"no group {group!r} is subscribed to topic {topic!r}")
    if found[0] != LOG:
        raise ConfigurationError(
            f"group {group!r} of topic {topic!r} is in queue mode: its events are jobs, and there is no place in the log to speak of",
            hint="run the jobs again:   jobrunner jobs retry, jobrunner jobs rerun",
        )
    return str(found[1])
