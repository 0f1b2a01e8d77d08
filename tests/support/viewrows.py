"""Owns rows put in by plain SQL, as the public views should show them: jobs of every state, attempts, workers.

It must not use the engine: what a view shows is tested against rows whose every value is known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from psycopg import sql
from psycopg.types.json import Jsonb

if TYPE_CHECKING:

    import psycopg

COPIED = (
    "id", "task", "args", "queue", "priority", "tags", "meta", "parent_id", "unique_key", "created_at", "run_at", "lease", "attempt",
    "max_attempts", "backoff", "backoff_base", "backoff_cap", "backoff_jitter", "crash_count", "max_crashes", "time_limit",
    "soft_time_limit", "cpu_limit", "memory_limit", "memory_limit_on_retry", "output_limit", "max_processes", "progress", "progress_text",
    "checkpoint", "ordering_key", "expires_at",
    "last_error_type", "last_error", "last_error_at", "worker_id", "started_at",
)  # fmt: skip


class Rows:
    """A database to put rows in. A value that starts with `=` is SQL, a dict is JSON; everything else is a parameter."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self.connection = connection

    def worker(self, name: str, **columns: object) -> int:
        """A worker; alive unless told otherwise."""
        values = {
            "name": name, "host": "web-1", "pid": 311, "kind": "daemon", "version": "0.1.0", "queues": ["default"],
            "tasks": ["mail.send"], "slots": 4, "lease_expires_at": "=now() + interval '1 hour'", **columns,
        }  # fmt: skip
        return self._insert("workers", values, "id")

    def job(self, task: str = "mail.send", **columns: object) -> int:
        """A live job, queued and due unless told otherwise."""
        return self._insert("jobs", {"task": task, **columns}, "id")

    def running(self, worker: int, task: str = "mail.send", **columns: object) -> int:
        """A job that this worker runs."""
        return self.job(
            task,
            **{
                "state": "running",
                "worker_id": worker,
                "claimed_at": "=now()",
                "lease": 1,
                "attempt": 1,
                "started_at": "=now()",
                **columns,
            },
        )

    def finished(self, state: str, task: str = "mail.send", **columns: object) -> int:
        """A finished job; those of its columns that live jobs have too, get the same defaults."""
        shared = {name: value for name, value in columns.items() if name in COPIED and name not in ("worker_id", "started_at")}
        number = self.job(task, **{"lease": 1, "attempt": 1, **shared})
        own = {name: value for name, value in columns.items() if name not in shared}
        names = [name for name in COPIED if name not in own]
        marks, given = _marks({"state": state, **own})
        self.connection.execute(
            sql.SQL(
                "WITH gone AS (DELETE FROM jobrunner.jobs WHERE id = {} RETURNING *) "
                "INSERT INTO jobrunner.job_history ({}) SELECT {}, {} FROM gone"
            ).format(sql.Literal(number), _names([*names, "state", *own]), _names(names), marks),
            given,
        )
        return number

    def attempt(self, job_id: int, outcome: str, task: str = "mail.send", **columns: object) -> None:
        """The record of an attempt that did not succeed."""
        self._insert(
            "job_attempts",
            {"job_id": job_id, "attempt": 1, "lease": 1, "task": task, "queue": "default", "outcome": outcome, **columns},
            "job_id",
        )

    def log(self, job_id: int, message: str, **columns: object) -> None:
        """A line that an attempt logged."""
        self._insert(
            "job_logs", {"job_id": job_id, "lease": 1, "line": 1, "attempt": 1, "level": 20, "logger": "shop", "message": message, **columns}, "job_id"
        )

    def run(self, name: str, **columns: object) -> int:
        """What is on record about a worker that left."""
        values = {
            "worker_id": 1, "name": name, "host": "web-1", "pid": 311, "kind": "cron", "version": "0.1.0", "started_at": "=now()",
            "reason": "done", "succeeded_count": 0, "failed_count": 0, "crashed_count": 0, **columns,
        }  # fmt: skip
        return self._insert("worker_runs", values, "id")

    def _insert(self, table: str, values: dict[str, object], key: str) -> int:
        marks, given = _marks(values)
        statement = sql.SQL("INSERT INTO {} ({}) VALUES ({}) RETURNING {}").format(
            sql.Identifier("jobrunner", table), _names(list(values)), marks, sql.Identifier(key)
        )
        row = self.connection.execute(statement, given).fetchone()
        assert row is not None
        return int(row[0])


def _names(names: list[str]) -> sql.Composed:
    return sql.SQL(", ").join(sql.Identifier(name) for name in names)


def _marks(values: dict[str, object]) -> tuple[sql.Composed, list[object]]:
    """What stands in VALUES, and the parameters of it."""
    marks, given = [], []
    for value in values.values():
        if isinstance(value, str) and value.startswith("="):
            marks.append(sql.SQL(value[1:]))
        else:
            marks.append(sql.SQL("%s"))
            given.append(Jsonb(value) if isinstance(value, dict) else value)
    return sql.SQL(", ").join(marks), given
