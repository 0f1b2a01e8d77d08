"""Owns `app.control.inspect()`: what workers and tasks are doing, in the form in which Celery's workers answer.

It must not change anything. None is the answer when no worker is alive, as in Celery.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, LiteralString, NoReturn

from jobrunner.compat.celery import coding
from jobrunner.compat.celery.exceptions import Unsupported
from jobrunner.settings import CALL
from jobrunner.values import UnreadableValue

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jobrunner.compat.celery.app.base import Celery

MOST = 10_000  # tasks that one answer lists; a queue may hold millions
NOBODY = "jobrunner@nobody"  # who answers for tasks that no live worker serves: they are not to be overlooked

_WORKERS = (
    "SELECT id, name, host, pid, queues, tasks, slots, extract(epoch FROM now() - started_at)::bigint AS uptime, "
    "succeeded_count, failed_count, crashed_count, claimed_count, rss_bytes, version "
    "FROM jobrunner.workers WHERE stopped_at IS NULL AND lease_expires_at > now() ORDER BY id"
)
_ACTIVE = (
    "SELECT j.worker_id, j.id, j.task, j.args, j.queue, j.meta -> 'celery', "
    "extract(epoch FROM coalesce(j.started_at, j.claimed_at))::float8 "
    "FROM jobrunner.jobs j WHERE j.state = 'running' ORDER BY j.id LIMIT %(most)s"
)
_SCHEDULED = (
    "SELECT j.id, j.task, j.args, j.queue, j.meta -> 'celery', j.run_at, j.priority FROM jobrunner.jobs j "
    "WHERE j.state = 'queued' AND j.run_at > now() ORDER BY j.run_at, j.id LIMIT %(most)s"
)
_REVOKED = (
    "SELECT coalesce(h.meta -> 'celery' ->> 'id', h.id::text), h.queue FROM jobrunner.job_history h "
    "WHERE h.state = 'cancelled' AND h.finished_at > now() - interval '1 day' ORDER BY h.finished_at DESC LIMIT %(most)s"
)


class Inspect:
    """Questions about workers; each is one or two statements.

    Args:
        destination: names of workers, to hear only of them; all by default. A name is what `v_workers.name` shows.
        timeout, callback, connection, limit: taken for compatibility.
    """

    def __init__(self, app: Celery, destination: Any = None, timeout: float = 1.0, **_: Any) -> None:
        self.app, self.timeout = app, timeout
        self.destination = [destination] if isinstance(destination, str) else destination

    def ping(self, destination: Any = None) -> dict[str, Any] | None:
        """Which workers are alive: those whose lease holds."""
        return self._each(lambda _: {"ok": "pong"}, destination)

    def registered(self, *taskinfoitems: str) -> dict[str, Any] | None:
        """The names of the tasks that each of them runs."""
        del taskinfoitems
        return self._each(lambda worker: sorted(name for name in worker.tasks if name != CALL))

    registered_tasks = registered

    def active(self, safe: Any = None) -> dict[str, Any] | None:
        """The tasks that run."""
        del safe
        workers = self._workers()
        if not workers:
            return None
        answer: dict[str, Any] = {worker.name: [] for worker in workers}
        by_id = {(worker.database, worker.id): worker for worker in workers}
        for database, row in self._rows(_ACTIVE):
            worker = by_id.get((database, row[0]))
            if worker is None:
                continue  # of another destination, or about to be rescued
            _, job_id, task, args, queue, kept, began = row
            facts = self._task(job_id, task, args, queue, kept)
            where = {"time_start": began, "acknowledged": True, "worker_pid": worker.pid, "hostname": worker.name}
            answer[worker.name].append({**facts, **where})
        return answer

    def scheduled(self, safe: Any = None) -> dict[str, Any] | None:
        """The tasks that are due later, retries included: under a worker that serves their queue, though any of these may run them."""
        del safe
        workers = self._workers()
        if not workers:
            return None
        answer: dict[str, Any] = {worker.name: [] for worker in workers}
        for database, (job_id, task, args, queue, kept, run_at, priority) in self._rows(_SCHEDULED):
            entry = {"eta": run_at.isoformat(), "priority": priority, "request": self._task(job_id, task, args, queue, kept)}
            self._add(answer, workers, database, queue, entry)
        return answer

    def reserved(self, safe: Any = None) -> dict[str, Any] | None:
        """Nothing: workers claim what they can start."""
        del safe
        return self._each(lambda _: [])

    def revoked(self) -> dict[str, Any] | None:
        """The ids of the tasks that were cancelled or expired within a day."""
        workers = self._workers()
        if not workers:
            return None
        answer: dict[str, Any] = {worker.name: [] for worker in workers}
        for database, (task_id, queue) in self._rows(_REVOKED):
            self._add(answer, workers, database, queue, task_id)
        return answer

    def stats(self) -> dict[str, Any] | None:
        """Counts, process ids and slots."""
        return self._each(
            lambda worker: {
                "pid": worker.pid, "uptime": worker.uptime, "clock": "0", "prefetch_count": 0, "broker": {"transport": "postgresql"},
                "pool": {"max-concurrency": worker.slots, "implementation": "jobrunner"},
                "total": {
                    "succeeded": worker.succeeded, "failed": worker.failed, "crashed": worker.crashed, "claimed": worker.claimed or 0,
                },
                "rusage": {"maxrss": (worker.rss_bytes or 0) // 1024}, "sw_ident": "jobrunner", "sw_ver": worker.version,
            }
        )  # fmt: skip

    def active_queues(self) -> dict[str, Any] | None:
        """The queues that each of them serves."""
        return self._each(lambda worker: [{"name": name, "routing_key": name} for name in worker.queues])

    def report(self) -> dict[str, Any] | None:
        """The table that workers print at their start, as this process sees the configuration."""
        from jobrunner.compat.celery.worker import report

        return self._each(lambda _: {"ok": report(self.app)})

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("_"):
            raise AttributeError(name)
        raise Unsupported(f"inspect().{name}", "ask the views (v_workers, v_jobs, v_queues) or `jobrunner workers list`")

    # -- how it is asked

    def _each(self, of: Any, destination: Any = None) -> dict[str, Any] | None:
        return {worker.name: of(worker) for worker in self._workers(destination)} or None

    def _workers(self, destination: Any = None) -> list[_Worker]:
        wanted = [destination] if isinstance(destination, str) else destination or self.destination
        found = [_Worker(database, row) for database, row in self._rows(_WORKERS)]
        return [worker for worker in found if wanted is None or worker.name in wanted]

    def _rows(self, query: LiteralString) -> list[tuple[str, Any]]:
        from jobrunner.compat.celery import rows

        return [(home.database_name, row) for home in self.app.backend.homes() for row in rows.rows(home.database, query, {"most": MOST})]

    def _add(self, answer: dict[str, Any], workers: list[_Worker], database: str, queue: str, entry: Any) -> None:
        serving = next((worker for worker in workers if worker.database == database and queue in worker.queues), None)
        if serving is not None:
            answer[serving.name].append(entry)
        elif self.destination is None:
            answer.setdefault(NOBODY, []).append(entry)

    def _task(self, job_id: int, task: str, stored: Mapping[str, Any], queue: str, kept: Mapping[str, Any] | None) -> dict[str, Any]:
        kept = kept or {}
        try:
            args, kwargs = coding.decode_call(stored, kept.get("args"))
        except UnreadableValue:
            args, kwargs = (), dict(stored)
        return {
            "id": kept.get("id") or str(job_id), "name": task, "type": task, "args": list(args), "kwargs": kwargs,
            "delivery_info": {"exchange": "", "routing_key": queue, "priority": kept.get("priority"), "redelivered": False},
        }  # fmt: skip


class _Worker:
    """A live worker's row."""

    def __init__(self, database: str, row: Any) -> None:
        self.database = database
        (
            self.id, self.name, self.host, self.pid, self.queues, self.tasks, self.slots, self.uptime, self.succeeded, self.failed,
            self.crashed, self.claimed, self.rss_bytes, self.version,
        ) = row  # fmt: skip
