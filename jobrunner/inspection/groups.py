"""Owns the sight of topics: which there are, the groups that are subscribed to them, and how far each is behind.

It must not count events without an end, nor move a group.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import sqlalchemy as sa

from jobrunner.inserting import Statement
from jobrunner.inspection.reading import reading

if TYPE_CHECKING:
    from datetime import datetime

    from jobrunner.database import Database

MOST_COUNTED = 10_000  # events behind a cursor that are looked at: the lag is exact up to there
ALL_COUNTED = 50_000  # of all groups together on a page: however many groups there are, it is there within the time of a read
MAX_TOPICS = 200

# Events that a group will never have are no lag: those that do not fit, and those before the instant to which it was rewound.
LIST = Statement.of("""
SELECT s.topic, s.group_name AS group, s.mode, s.patterns, s.task, s.queue, s.app, s.on_failure, s.declared_at, s.undeclared_at,
       c.position, c.stopped_at, c.problem, c.job_id, c.moved_at, c.delivered_count, CAST(CAST(c.fence_xid AS text) AS bigint) AS fence_xid,
       (SELECT count(*) FROM jobrunner.event_skips k
        WHERE k.topic = s.topic AND k.group_name = s.group_name AND k.redelivered_at IS NULL) AS skipped_count,
       lag.behind AS lag, lag.seen < :most AS exact, lag.oldest AS oldest_at
FROM jobrunner.subscriptions s
LEFT JOIN jobrunner.cursors c ON c.topic = s.topic AND c.group_name = s.group_name AND s.mode = 'log'
LEFT JOIN LATERAL (
    SELECT count(*) FILTER (WHERE fits) AS behind, count(*) AS seen, min(w.published_at) FILTER (WHERE fits) AS oldest
    FROM (
        SELECT e.published_at,
               (s.matcher IS NULL OR '.' || e.name ~ s.matcher)
               AND (c.not_before IS NULL OR e.position > c.not_before_until OR e.published_at >= c.not_before) AS fits
        FROM jobrunner.events e WHERE e.topic = s.topic AND e.position > c.position
        ORDER BY e.position LIMIT :most
    ) AS w
) AS lag ON c.position IS NOT NULL
ORDER BY s.topic, s.group_name
""")
_READERS = sa.text("SELECT count(*) FROM jobrunner.cursors")
# A loose scan of the log's primary key for the topics that it has, each with its last event.
_TOPICS = sa.text("""
WITH RECURSIVE names AS (
    (SELECT topic, 1 AS place FROM jobrunner.events ORDER BY topic LIMIT 1)
    UNION ALL
    SELECT n.topic, names.place + 1 FROM names CROSS JOIN LATERAL (
        SELECT e.topic FROM jobrunner.events e WHERE e.topic > names.topic ORDER BY e.topic LIMIT 1
    ) AS n WHERE names.place < :most
)
SELECT n.topic, last.position, last.published_at
FROM names n CROSS JOIN LATERAL (
    SELECT e.position, e.published_at FROM jobrunner.events e WHERE e.topic = n.topic ORDER BY e.position DESC LIMIT 1
) AS last
""")


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


class TopicRow(NamedTuple):
    """One topic.

    Attributes:
        name: of the topic.
        last_position, last_at: of its newest event that is kept; None when the log has none.
        groups: those that are subscribed, by name.
    """

    name: str
    last_position: int | None
    last_at: datetime | None
    groups: tuple[Group, ...]


def list_topics(database: Database) -> tuple[TopicRow, ...]:
    """Topics that have events in the log (200 of them at most) or groups, by name, each with its groups.

    A lag is counted up to 10,000 events, and up to an equal share of 50,000 where many groups read the log. Three statements in one
    read-only transaction.

    Raises:
        QueryTimeout, DatabaseUnreachable, SchemaMissing: as for every read.
    """
    with reading(database) as reader:
        share = ALL_COUNTED // max(1, reader.connection.execute(_READERS).scalar_one())
        most = min(MOST_COUNTED, max(1, share))
        found = [Group._make(row) for row in reader.connection.execute(LIST.core, {"most": most})]
        last = {row.topic: (row.position, row.published_at) for row in reader.connection.execute(_TOPICS, {"most": MAX_TOPICS})}
    names = sorted({*last, *(group.topic for group in found)})
    return tuple(TopicRow(name, *last.get(name, (None, None)), tuple(group for group in found if group.topic == name)) for name in names)
