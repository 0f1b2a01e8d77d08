"""Owns the verbs of operators on groups: rewind, resume, unsubscribe, and listing them.

It must not deliver anything, nor say what a group is (`inspection` does).
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from jobrunner.errors import ConfigurationError, GroupNotFound
from jobrunner.inspection.groups import LIST, MOST_COUNTED, Group
from jobrunner.subscriptions import EARLIEST, LATEST, LOG

if TYPE_CHECKING:
    from collections.abc import Callable

    from psycopg import Connection

    from jobrunner.database import Database

MAX_POSITION = 2**63 - 1

_MODE = "SELECT mode, queue FROM jobrunner.subscriptions WHERE topic = %s AND group_name = %s"
_REWIND = "SELECT was, now_at FROM jobrunner.rewind_cursor(%s, %s, %s::bigint, %s::timestamptz)"
_RESUME = (
    "UPDATE jobrunner.cursors SET stopped_at = NULL, problem = NULL, job_id = NULL, job_at = NULL "
    "WHERE topic = %s AND group_name = %s AND stopped_at IS NOT NULL RETURNING position"
)
_FORGET_CURSOR = "DELETE FROM jobrunner.cursors WHERE topic = %s AND group_name = %s"
_FORGET = "DELETE FROM jobrunner.subscriptions WHERE topic = %s AND group_name = %s RETURNING mode"


class Rewound(NamedTuple):
    """From where to where a group was set: the last position before what it gets next.

    Set to an instant, that is where the look for the first event begins: earlier ones behind it are passed by.
    """

    was: int
    position: int


def groups(database: Database) -> list[Group]:
    """Every group, by topic. Looks at no more than MOST_COUNTED events of each that reads the log."""
    with database.store() as store:
        return [Group._make(row) for row in store.connection.execute(LIST.raw, {"most": MOST_COUNTED}).fetchall()]


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
