"""Owns the statements that only messages need, beside those of jobs, on one psycopg connection.

It must not decide anything: the statements' guards do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobrunner.settings import MESSAGE_TASK
from jobrunner.store import Store

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from jobrunner.envelopes import Receipt

EXPIRED_AT_ONCE = 500  # messages that one look ends
# What a claim does not tell of a message.
_FACTS = (
    "/* jobrunner:message_facts */ SELECT id, created_at, priority, expires_at FROM jobrunner.jobs "
    "WHERE id = ANY (ARRAY(SELECT unnest(%s::bigint[])))"
)
# Of this queue and a message: anybody can make up a receipt, and with it nobody may end a job that a worker runs.
_HOLDER = (
    "/* jobrunner:message_holder */ SELECT w.id, starts_with(w.name, 'pull via ') "
    "FROM jobrunner.jobs j JOIN jobrunner.workers w ON w.id = j.worker_id "
    "WHERE j.id = %s AND j.lease = %s AND j.state || '' = 'running' AND j.queue || '' = %s AND j.task || '' = %s"
)
# In the order of ids, as every bulk change locks (ADR 0018), but for those that somebody else has.
_FREE = (
    "/* jobrunner:message_free */ SELECT id FROM jobrunner.jobs WHERE id = ANY (ARRAY(SELECT unnest(%s::bigint[]))) "
    "ORDER BY id FOR UPDATE SKIP LOCKED"
)
_HELD = (
    "/* jobrunner:message_held */ SELECT id, lease FROM jobrunner.jobs WHERE id = ANY (ARRAY(SELECT unnest(%s::bigint[]))) "
    "AND state || '' = 'running'"
)
_SIZE = "/* jobrunner:message_count */ SELECT count(*) FROM jobrunner.jobs WHERE queue = %s AND task = %s AND state = 'queued'"
_WAITING = (
    "/* jobrunner:message_peek */ SELECT id, args::text, ordering_key, priority, created_at, run_at, attempt FROM jobrunner.jobs "
    "WHERE queue = %s AND task = %s AND state = 'queued' ORDER BY priority, run_at, id LIMIT %s"
)
# By the task and what did not succeed, which has an index of its own: a queue with millions of handled messages is not walked.
_DEAD = (
    "/* jobrunner:message_dead */ SELECT id, args::text, ordering_key, state, last_error, attempt, created_at, finished_at "
    "FROM jobrunner.job_history "
    "WHERE task = %(task)s AND state <> 'succeeded' AND state IN ('failed', 'quarantined') AND queue = %(queue)s "
    "AND (%(at)s::timestamptz IS NULL OR (finished_at, id) < (%(at)s::timestamptz, %(id)s::bigint)) "
    "ORDER BY finished_at DESC, id DESC LIMIT %(most)s"
)


class MessageStore(Store):
    """The statements of messages on one connection, which must be in autocommit mode. Not thread-safe."""

    def renew(self, receipt: Receipt, seconds: float) -> bool:
        """Hold the messages of a pull, known by one of them, for so long from now on; False when it is not held any more."""
        given = {"id": receipt.id, "lease": receipt.lease, "lease_ms": int(seconds * 1000)}
        return self._run("renew", given).fetchone() is not None

    def drop_consumer(self, worker_id: int) -> bool:
        """Forget the consumer of a pull; False while something of it is held."""
        return self._run("drop_consumer", {"worker_id": worker_id}).fetchone() is not None

    def redrive(self, queue: str, ids: Sequence[int]) -> list[int]:
        """Let dead messages be delivered again. Returns the ids of those that were dead messages of this queue."""
        return [row[0] for row in self._run("redrive", {"queue": queue, "task": MESSAGE_TASK, "ids": list(ids)}).fetchall()]

    def purge_dead(self, queue: str, ids: Sequence[int]) -> list[int]:
        """Remove dead messages for good. Returns the ids of those that were dead messages of this queue."""
        return [row[0] for row in self._run("purge_dead", {"queue": queue, "task": MESSAGE_TASK, "ids": list(ids)}).fetchall()]

    def cancel_many(self, ids: Sequence[int]) -> list[int]:
        """Cancel those that wait. Returns their ids."""
        return [row[0] for row in self._run("cancel", {"ids": list(ids)}).fetchall()]

    def free(self, ids: Sequence[int]) -> set[int]:
        """Lock, until the transaction ends, those of these jobs that are live and that nobody else has locked. Returns their ids."""
        return {row[0] for row in self.connection.execute(_FREE, (list(ids),)).fetchall()}

    # -- reading

    def held(self, ids: Sequence[int]) -> set[tuple[int, int]]:
        """Which of these run, by id and lease, as far as it is committed."""
        return {(row[0], row[1]) for row in self.connection.execute(_HELD, (list(ids),)).fetchall()}

    def facts(self, ids: Sequence[int]) -> dict[int, tuple[Any, ...]]:
        """When each message was put, its priority and when it expires."""
        return {row[0]: tuple(row[1:]) for row in self.connection.execute(_FACTS, (list(ids),), prepare=True).fetchall()}

    def holder(self, queue: str, receipt: Receipt) -> tuple[int, bool] | None:
        """Under which row a message of that queue is held, and whether that is a pull's; None when none is held under that lease."""
        return self.connection.execute(_HOLDER, (receipt.id, receipt.lease, queue, MESSAGE_TASK)).fetchone()

    def size(self, queue: str) -> int:
        """How many messages of a queue wait."""
        row = self.connection.execute(_SIZE, (queue, MESSAGE_TASK)).fetchone()
        return 0 if row is None else row[0]

    def waiting(self, queue: str, most: int) -> list[tuple[Any, ...]]:
        """The first messages that wait, in the order of `envelopes.Waiting` with the text of the arguments in place of body and headers."""
        return self.connection.execute(_WAITING, (queue, MESSAGE_TASK, most)).fetchall()

    def dead(self, queue: str, most: int, before: tuple[datetime, int] | None) -> list[tuple[Any, ...]]:
        """The newest dead messages, as `waiting`; older than the one that died at that moment and has that id."""
        at, last = before or (None, None)
        return self.connection.execute(_DEAD, {"queue": queue, "task": MESSAGE_TASK, "most": most, "at": at, "id": last}).fetchall()
