"""Owns the sight of message queues: how many messages wait in one, and which are dead.

It must not deliver one, nor bring one back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import sqlalchemy as sa

from jobrunner.inspection.reading import PREPARED, reading
from jobrunner.settings import MESSAGE_TASK

if TYPE_CHECKING:
    from datetime import datetime

    from jobrunner.database import Database

WHOLE = 2**30  # characters: of any body there may be

_COUNT = sa.text("SELECT count(*) FROM jobrunner.jobs WHERE queue = :queue AND task = :task AND state = 'queued'")
# By the task and what did not succeed, which has an index of its own; that of the newest first. A row that was inserted without a body has
# all of its arguments as its body.
_DEAD = sa.text("""
SELECT id, queue, left(CAST(CASE WHEN jsonb_exists(args, 'body') THEN args -> 'body' ELSE args END AS text), :width) AS body,
       CAST(CASE WHEN jsonb_typeof(args -> 'headers') = 'object' THEN args -> 'headers' ELSE '{}' END AS text) AS headers,
       ordering_key AS key, state, last_error AS reason, attempt AS deliveries, created_at AS enqueued_at, finished_at AS died_at
FROM jobrunner.job_history
WHERE task = :task AND state <> 'succeeded' AND state IN ('failed', 'quarantined')
  AND (CAST(:queue AS text) IS NULL OR queue = :queue)
  AND (CAST(:at AS timestamptz) IS NULL OR (finished_at, id) < (CAST(:at AS timestamptz), CAST(:id AS bigint)))
ORDER BY finished_at DESC, id DESC LIMIT :most
""")


class DeadMessage(NamedTuple):
    """A message that is not delivered any more.

    Attributes:
        body, headers: JSON text.
        state: `failed`: given back too often, or called dead by its consumer; `quarantined`: its consumers died with it.
        reason: what the last consumer said.
        deliveries: how often it was given back.
    """

    id: int
    queue: str
    body: str
    headers: str
    key: str | None
    state: str
    reason: str | None
    deliveries: int
    enqueued_at: datetime
    died_at: datetime


def count_messages(database: Database, queue: str) -> int:
    """How many messages of a queue wait, due or not; those that are held are not among them. Exact.

    Raises:
        QueryTimeout, DatabaseUnreachable, SchemaMissing: as for every read.
    """
    with reading(database) as reader:
        return int(reader.connection.execute(_COUNT, {"queue": queue, "task": MESSAGE_TASK}).scalar_one())


def list_dead_messages(
    database: Database, queue: str | None = None, *, before: tuple[datetime, int] | None = None, limit: int, width: int = WHOLE
) -> tuple[DeadMessage, ...]:
    """The newest dead messages, of one queue or of all.

    Args:
        database: where.
        queue: None: of all.
        before: only those that died before the one that died at that moment and has that id.
        limit: messages, at most.
        width: characters of each body, at most.

    Raises:
        QueryTimeout, DatabaseUnreachable, SchemaMissing: as for every read.
    """
    at, last = before or (None, None)
    given = {"queue": queue, "task": MESSAGE_TASK, "at": at, "id": last, "most": limit, "width": width}
    with reading(database) as reader:
        return tuple(DeadMessage._make(row) for row in reader.connection.execute(_DEAD, given, execution_options=PREPARED))
