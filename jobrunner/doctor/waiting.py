"""Owns jobs that nobody can run: queues that no live worker serves, tasks that none registers. It must not count without an end."""

from __future__ import annotations

import difflib
import shlex
from typing import TYPE_CHECKING

import sqlalchemy as sa

from jobrunner.doctor.findings import MOST, Finding, Look, several, value
from jobrunner.inspection import ago
from jobrunner.inspection.overview import QUEUE_SAMPLE, read_queues
from jobrunner.inspection.reading import Reader

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# Of each queue that somebody serves: the first jobs, due or not. A misspelt task is better found before its hour.
_TASKS = sa.text("""
WITH alive AS MATERIALIZED (
    SELECT queues, tasks FROM jobrunner.workers WHERE stopped_at IS NULL AND lease_expires_at > now()
), serving AS (
    SELECT DISTINCT q AS queue, t AS task FROM alive a, unnest(a.queues) AS q, unnest(a.tasks) AS t
)
SELECT w.task, w.queue, count(*) AS jobs, EXISTS (SELECT FROM serving v WHERE v.task = w.task) AS elsewhere
FROM unnest(CAST(:queues AS text[])) AS n (queue)
CROSS JOIN LATERAL (
    SELECT j.task, j.queue FROM jobrunner.jobs j WHERE j.state = 'queued' AND j.queue = n.queue
    ORDER BY j.priority, j.run_at, j.id LIMIT :sample
) w
WHERE NOT EXISTS (SELECT FROM serving v WHERE v.queue = w.queue AND v.task = w.task)
GROUP BY w.task, w.queue ORDER BY jobs DESC, w.task, w.queue LIMIT :most
""")
_REGISTERED = sa.text("SELECT DISTINCT unnest(tasks) FROM jobrunner.workers WHERE stopped_at IS NULL AND lease_expires_at > now()")


def queues(given: Look) -> Iterator[Finding]:
    """Queues with due jobs on which no live worker listens, while others are served."""
    rows = read_queues(Reader(given.connection, given.at))
    somebody = any(row.workers for row in rows)
    left = [row for row in rows if row.ready and not row.workers] if somebody else []
    for row in left[:MOST]:
        more = "" if row.exact else "at least "
        waits = f", the oldest for {ago(given.at - row.oldest_ready_at)}" if row.oldest_ready_at else ""
        text = f"queue {row.queue!r} has {more}{several(row.ready, 'due job')}{waits}, and no live worker listens on it"
        data = {"queue": row.queue, "ready": row.ready, "exact": row.exact}
        yield Finding("queue_unserved", "bad", text, f"jobrunner work {shlex.quote(row.queue)}", data)
    if not left:
        ready = sum(row.ready for row in rows)
        said = f"every queue with due jobs is served; {several(ready, 'due job')}" if somebody else "no worker listens on any queue"
        yield Finding("queues", "ok", said, data={"queues": len(rows), "ready": ready})


def tasks(given: Look) -> Iterator[Finding]:
    """Tasks with jobs in a served queue whose workers do not register them; close matches are named."""
    served = [row.queue for row in read_queues(Reader(given.connection, given.at)) if row.workers]
    known = sorted(given.connection.scalars(_REGISTERED))
    rows = given.connection.execute(_TASKS, {"queues": served, "sample": QUEUE_SAMPLE, "most": MOST}).all() if served else ()
    for row in rows:
        matches = difflib.get_close_matches(row.task, known, n=3, cutoff=0.6)
        text = f"{several(row.jobs, 'job')} of task {row.task!r} in queue {row.queue!r}: no live worker that listens there registers it"
        data = {"task": row.task, "queue": row.queue, "jobs": row.jobs, "matches": matches}
        yield Finding("task_unregistered", "bad", *_remedy(text, row.task, row.queue, matches, elsewhere=row.elsewhere), data)
    if not rows:
        said = f"live workers register the tasks of all waiting jobs in their queues; {several(len(known), 'task')}"
        yield Finding("tasks", "ok", said if served else "nobody is alive who could register a task", data={"tasks": len(known)})


def _remedy(text: str, task: str, queue: str, matches: Sequence[str], *, elsewhere: bool) -> tuple[str, str]:
    """A worker that knows the task serves the queue too; or a wrong name is put right; or it is code that is not there yet."""
    if elsewhere:
        return f"{text}; workers of other queues do", f"jobrunner work {shlex.quote(queue)}"
    if matches:
        where = f"task = {value(task)} AND queue = {value(queue)} AND state = 'queued'"
        meant = " or ".join(map(repr, matches))
        return f"{text}. Is {meant} meant? Then:", f"UPDATE jobrunner.jobs SET task = {value(matches[0])} WHERE {where};"  # noqa: S608  quoted
    return text, "deploy the code with that task to the workers' app and restart them; see: jobrunner workers list"
