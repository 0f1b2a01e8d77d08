"""Owns what a group that reads the log asks the database: where it is, how far it is safe to read, what comes next, and moving on.

It must not call a handler. A position is safe when no transaction is left that could still write one before it: the log is read in the
order of positions, and what was gone past would be lost. ADR 0024 says why this is so.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

from jobrunner.inserting import Statement
from jobrunner.topics.events import Event

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from jobrunner.current import JobContext
    from jobrunner.places import Place

PATIENCE = 0.1  # seconds that a delivery waits for transactions that are under way; then the next look is the workers'
PAUSES = (0.001, 0.1)  # seconds: of the first look, and of the longest pause between two
SPAN = 50_000  # positions that one look for fitting events goes over at most: tens of milliseconds

_PASSED = "(pg_snapshot_xmin(pg_current_snapshot()) > {0} OR {0} = pg_current_xact_id_if_assigned())"
_FENCE = (
    "(CAST(:fence_id AS bigint) IS NULL OR EXISTS (SELECT 1 FROM jobrunner.jobs j "
    "WHERE j.id = CAST(:fence_id AS bigint) AND j.lease = CAST(:fence_lease AS bigint) AND j.state = 'running'))"
)
WHERE = Statement.of(
    "SELECT c.position, c.rewind_count, c.safe_position, c.fence_position, CAST(c.fence_xid AS text), "  # noqa: S608  constants of this module
    f"{_PASSED.format('c.fence_xid')}, c.fence_xid >= pg_snapshot_xmax(pg_current_snapshot()), "
    f"s.batch_size, s.matcher IS NOT NULL OR c.not_before IS NOT NULL, {_FENCE} "
    "FROM jobrunner.cursors c JOIN jobrunner.subscriptions s ON s.topic = c.topic AND s.group_name = c.group_name "
    "WHERE c.topic = :topic AND c.group_name = :group AND s.mode = 'log'"
)
# The position first, then the number: only what had its number before can have taken a position up to this one.
MARK = Statement.of(
    "WITH head AS MATERIALIZED (SELECT CASE WHEN is_called THEN last_value ELSE 0 END AS position FROM jobrunner.events_position_seq) "
    "SELECT position, CAST(pg_current_xact_id() AS text) FROM head"
)
PASSED = Statement.of(f"SELECT {_PASSED.format('CAST(:xid AS xid8)')}")
WAIT = Statement.of(
    "UPDATE jobrunner.cursors SET fence_position = CAST(:fence_position AS bigint), fence_xid = CAST(:xid AS xid8) "
    "WHERE topic = :topic AND group_name = :group RETURNING 1"
)
NEXT = Statement.of(
    "SELECT e.position, e.name, e.payload, e.key, e.headers, e.published_at "
    "FROM jobrunner.subscriptions s JOIN jobrunner.cursors c ON c.topic = s.topic AND c.group_name = s.group_name "
    "CROSS JOIN LATERAL (SELECT e.* FROM jobrunner.events e "
    "WHERE e.topic = s.topic AND e.position > CAST(:after AS bigint) AND e.position <= CAST(:upto AS bigint) "
    "AND (s.matcher IS NULL OR '.' || e.name ~ s.matcher) "
    "AND (c.not_before IS NULL OR e.position > c.not_before_until OR e.published_at >= c.not_before) "
    "ORDER BY e.position LIMIT CAST(:most AS integer)) AS e "
    "WHERE s.topic = :topic AND s.group_name = :group ORDER BY e.position"
)
MOVE = Statement.of(
    "UPDATE jobrunner.cursors SET position = CAST(:upto AS bigint), "  # noqa: S608
    "safe_position = greatest(safe_position, CAST(:safe AS bigint)), "
    "fence_position = NULL, fence_xid = NULL, stopped_at = NULL, problem = NULL, moved_at = now(), "
    "delivered_count = delivered_count + CAST(:count AS integer) "
    "WHERE topic = :topic AND group_name = :group AND position = CAST(:after AS bigint) AND rewind_count = CAST(:rewound AS bigint) "
    f"AND {_FENCE} RETURNING 1"
)
SKIPPED = Statement.of(
    "SELECT after_position, to_position FROM jobrunner.event_skips "
    "WHERE job_id = CAST(:job_id AS bigint) AND topic = :topic AND group_name = :group AND redelivered_at IS NULL"
)
REDELIVERED = Statement.of(
    "UPDATE jobrunner.event_skips SET redelivered_at = now() "  # noqa: S608
    "WHERE job_id = CAST(:job_id AS bigint) AND redelivered_at IS NULL "
    f"AND {_FENCE} RETURNING 1"
)


class Standing(NamedTuple):
    """Where a group is; the fields are the columns of WHERE.

    Attributes:
        rewound: how often it was set to another place.
        safe: a position up to which nothing can come any more.
        fence, fence_xid: a position that is safe once that transaction and all before it are over; None when none was noted.
        passed: whether they are; `alien`: the number is none of this server's, which was restored from another one.
        batch: events at once, at most.
        picky: whether events may be left out, so that a look may go over many.
        is_ours: whether this attempt is the one that runs the job.
    """

    position: int
    rewound: int
    safe: int
    fence: int | None
    fence_xid: str | None
    passed: bool | None
    alien: bool | None
    batch: int
    picky: bool
    is_ours: bool


class Batch(NamedTuple):
    """What comes next: events in order, and the position where the group is after them; there may be none."""

    after: int
    upto: int
    rewound: int
    safe: int
    events: list[Event]


class Reader:
    """The log as one group sees it, in short transactions of its own.

    Args:
        place: where they run.
        context: the job that delivers, when there is one.

    Attributes:
        at_head: whether it has looked how far the log goes since it last found an event.
    """

    def __init__(self, place: Place, topic: str, group: str, context: JobContext | None) -> None:
        self._place = place
        self.topic = topic
        self.names = {"topic": topic, "group": group}
        fenced = context is not None and context.fenced
        self.fence = {"fence_id": context.id if fenced and context else None, "fence_lease": context.lease if fenced and context else None}
        self._safe = 0  # known to this process
        self.at_head = False

    def standing(self) -> Standing | None:
        """Where the group is; None when there is no such group any more."""
        rows = self._place.rows(WHERE, {**self.names, **self.fence})
        return Standing(*rows[0]) if rows else None

    def next(self, at: Standing) -> Batch | None:
        """What comes next; None when nothing can be had now. One without events moves the group over what is not for it."""
        after = at.position
        while (safe := self._safe_position(at, after)) is not None:
            upto = min(safe, after + SPAN) if at.picky else safe
            events = self.between(after, upto, at.batch)
            if events:
                self.at_head = False
                return Batch(at.position, events[-1].position if len(events) >= at.batch else upto, at.rewound, safe, events)
            if upto == safe:
                return Batch(at.position, upto, at.rewound, safe, [])
            after = upto
        return None

    def fixed(self, at: Standing, upto: int, most: int) -> Batch:
        """The batch of an earlier attempt: up to that position, whatever has come since."""
        return Batch(at.position, upto, at.rewound, max(upto, at.safe), self.between(at.position, upto, most))

    def between(self, after: int, upto: int, most: int) -> list[Event]:
        """Events of the group behind a position, up to another one."""
        rows = self._place.rows(NEXT, {**self.names, "after": after, "upto": upto, "most": most})
        return [_event(self.topic, row) for row in rows]

    def move(self, batch: Batch, place: Place | None = None) -> bool:
        """Move the group past a batch; False when it was moved meanwhile, or this attempt has been superseded."""
        given = {"after": batch.after, "upto": batch.upto, "rewound": batch.rewound, "safe": batch.safe, "count": len(batch.events)}
        return bool((place or self._place).rows(MOVE, {**self.names, **self.fence, **given}))

    def skipped(self, job_id: int) -> tuple[int, int] | None:
        """The positions that the group went past when this job had failed; None when it did not, or has had them since."""
        rows = self._place.rows(SKIPPED, {**self.names, "job_id": job_id})
        return (rows[0][0], rows[0][1]) if rows else None

    def redelivered(self, job_id: int, place: Place | None = None) -> bool:
        """Note that the group has had them after all; False when that was noted already, or this attempt has been superseded."""
        return bool((place or self._place).rows(REDELIVERED, {**self.fence, "job_id": job_id}))

    def _safe_position(self, at: Standing, after: int) -> int | None:
        """A position behind `after` up to which the log is complete; None when there is none yet."""
        known = max(self._safe, at.safe, at.fence or 0 if at.passed else 0)
        if known > after:
            self._safe = known
            return known
        if at.fence_xid is not None and not at.passed and not at.alien:
            position, xid = at.fence or 0, at.fence_xid
        else:
            position, xid = self._place.rows(MARK, {})[0]
        self.at_head = True
        if position <= after:
            return None
        if not self._passes(xid):
            self._place.rows(WAIT, {**self.names, "fence_position": position, "xid": xid})
            return None
        self._safe = position
        return int(position)

    def _passes(self, xid: str) -> bool:
        """Whether every transaction up to that number is over, at the latest in a tenth of a second: most are short."""
        ends, pause = time.monotonic() + PATIENCE, PAUSES[0]
        while not self._place.rows(PASSED, {"xid": xid})[0][0]:
            if time.monotonic() >= ends:
                return False
            time.sleep(pause)
            pause = min(pause * 2, PAUSES[1])
        return True


def _event(topic: str, row: Sequence[Any]) -> Event:
    position, name, payload, key, headers, published_at = row
    at: datetime = published_at
    return Event(topic, name, payload, key, headers, position, at)
