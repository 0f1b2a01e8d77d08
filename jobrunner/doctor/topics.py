"""Owns groups that do not get the events of their topics: stopped ones, those far behind, and those that no code declares.

It must not move any, nor count events without an end.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.doctor.findings import Finding, Look, State, several
from jobrunner.inspection import ago

if TYPE_CHECKING:
    from collections.abc import Iterator

MOST_COUNTED = 10_000  # events behind a cursor that are looked at
_GROUPS = sa.text("""
SELECT s.topic, s.group_name, s.app, s.undeclared_at, c.position, c.stopped_at, c.problem, c.job_id, lag.behind, lag.oldest,
       c.fence_xid IS NOT NULL AND c.fence_xid >= pg_snapshot_xmin(pg_current_snapshot()) AS waits
FROM jobrunner.subscriptions s
LEFT JOIN jobrunner.cursors c ON c.topic = s.topic AND c.group_name = s.group_name AND s.mode = 'log'
LEFT JOIN LATERAL (
    SELECT count(*) FILTER (WHERE fits) AS behind, min(w.published_at) FILTER (WHERE fits) AS oldest
    FROM (
        SELECT e.published_at, s.matcher IS NULL OR '.' || e.name ~ s.matcher AS fits
        FROM jobrunner.events e WHERE e.topic = s.topic AND e.position > c.position
        ORDER BY e.position LIMIT :most
    ) AS w
) AS lag ON c.position IS NOT NULL
ORDER BY s.topic, s.group_name
""")
# Whose transaction is the oldest with a number: what comes after it in the log is not handed over before it ends.
_HOLDER = sa.text(
    "SELECT pid, xact_start FROM pg_stat_activity WHERE CAST(backend_xid AS text) = CAST(CAST(CAST("
    "CAST(pg_snapshot_xmin(pg_current_snapshot()) AS text) AS numeric) % 4294967296 AS bigint) AS text)"
)


def look(given: Look) -> Iterator[Finding]:
    """Each group of each topic."""
    rows = given.connection.execute(_GROUPS, {"most": MOST_COUNTED}).all()
    found = [finding for row in rows for finding in _of(given, row)]
    yield from found or [Finding("topics", "ok", _said(len(rows)), data={"groups": len(rows)})]


def _of(given: Look, row: Any) -> Iterator[Finding]:
    name = f"group {row.group_name!r} of topic {row.topic!r}"
    where = f"{shlex.quote(row.topic)} --group {shlex.quote(row.group_name)}"
    data = {"topic": row.topic, "group": row.group_name, "position": row.position, "behind": row.behind}
    if row.stopped_at is not None:
        text = f"{name} has stopped {ago(given.at - row.stopped_at)} ago: {row.problem}; its events wait"
        yield Finding("group_stopped", "bad", text, f"jobrunner jobs show {row.job_id}\njobrunner topics resume {where}", data)
    elif row.oldest is not None and given.at - row.oldest > given.limits.group_note:
        state: State = "bad" if given.at - row.oldest > given.limits.group_bad else "note"
        count = "at least " if row.behind >= MOST_COUNTED else ""
        text = f"{name} is {count}{several(row.behind, 'event')} behind, the first published {ago(given.at - row.oldest)} ago"
        yield Finding("group_behind", state, *_why(given, text, waits=bool(row.waits)), data)
    if row.undeclared_at is not None:
        text = f"{name} gets events, and the code of {row.app or 'its application'} declares it no longer"
        yield Finding("group_undeclared", "note", text, f"jobrunner topics unsubscribe {where}", data)


def _why(given: Look, text: str, *, waits: bool) -> tuple[str, str]:
    """A transaction that was forgotten is ended; else somebody has to work more."""
    if not waits:
        return text, "run more workers that serve its queue, or give it larger batches: jobrunner topics list"
    holder = given.connection.execute(_HOLDER).first()
    if holder is None:
        return f"{text}; an open transaction may still publish before them", "see: select * from pg_stat_activity order by xact_start"
    since = "" if holder.xact_start is None else f" for {ago(given.at - holder.xact_start)}"
    text = f"{text}; session {holder.pid} holds a transaction open{since} that may still publish before them"
    return text, f"select pg_terminate_backend({holder.pid});"


def _said(number: int) -> str:
    return f"{several(number, 'group')} of topics: none has stopped or is far behind" if number else "no topic has a group"
