"""Owns the JSON form of the library's values: what the API promises, member by member.

It must not decide who may see it.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jobrunner.inspection import AttemptRow, Count, JobDetail, JobRow, LogPage, LogRow, Page

_LONGEST_INTEGER = 4_000  # digits: Python refuses to read or write longer ones; such a number is given as text
_INFINITE = ("inf", "-inf")


def job(row: JobRow) -> dict[str, Any]:
    """A job as an item of a list."""
    return {
        "id": row.id,
        "task": row.task,
        "queue": row.queue,
        "state": row.state,
        "priority": row.priority,
        "attempt": row.attempt,
        "max_attempts": row.max_attempts,
        "created_at": instant(row.created_at),
        "run_at": instant(row.run_at),
        "started_at": instant(row.started_at),
        "finished_at": instant(row.finished_at),
        "wait_ms": milliseconds(row.wait),
        "run_ms": milliseconds(row.run),
        "args_excerpt": row.args_excerpt,
        "error_type": row.error_type,
        "error": row.error,
        "worker_id": row.worker_id,
        "progress": row.progress,
        "progress_text": row.progress_text,
        "peak_memory": row.peak_memory,
    }


def page(found: Page, count: Count | None) -> dict[str, Any]:
    """A page of a list; `count` is null when it took too long."""
    return {
        "items": [job(row) for row in found.items],
        "next": found.next,
        "prev": found.prev,
        "count": None if count is None else {"value": count.value, "exact": count.exact},
    }


def detail(found: JobDetail) -> dict[str, Any]:
    """Everything about one job."""
    reason = found.waiting_reason
    members = job(found.job)
    del members["args_excerpt"]
    return {
        **members,
        "error": found.error,
        "error_at": instant(found.error_at),
        "args": decoded(found.args),
        "result": decoded(found.result),
        "meta": decoded(found.meta),
        "progress_text": found.progress_text,
        "checkpoint": decoded(found.checkpoint),
        "tags": list(found.tags),
        "parent_id": found.parent_id,
        "unique_key": found.unique_key,
        "crash_count": found.crash_count,
        "max_crashes": found.max_crashes,
        "backoff": found.backoff,
        "time_limit_ms": milliseconds(found.time_limit),
        "soft_time_limit_ms": milliseconds(found.soft_time_limit),
        "cpu_limit_ms": milliseconds(found.cpu_limit),
        "memory_limit": found.memory_limit,
        "memory_limit_on_retry": found.memory_limit_on_retry,
        "output_limit": found.output_limit,
        "max_processes": found.max_processes,
        "cpu_ms": milliseconds(found.cpu),
        "lease": found.lease,
        "worker": found.worker,
        "cancel_requested_at": instant(found.cancel_requested_at),
        "ordering_key": found.ordering_key,
        "expires_at": instant(found.expires_at),
        "waiting_reason": None if reason is None else {"code": reason.code, "text": reason.text, "hint": reason.hint},
        "attempts": [attempt(item) for item in found.attempts],
        "attempts_left_out": found.attempts_left_out,
    }


def attempt(row: AttemptRow) -> dict[str, Any]:
    """One ended run of a job."""
    return {
        "attempt": row.attempt,
        "lease": row.lease,
        "outcome": row.outcome,
        "started_at": instant(row.started_at),
        "finished_at": instant(row.finished_at),
        "run_ms": milliseconds(row.run),
        "cpu_ms": milliseconds(row.cpu),
        "worker_id": row.worker_id,
        "worker": row.worker,
        "error_type": row.error_type,
        "message": row.message,
        "traceback": row.traceback,
        "fingerprint": row.fingerprint,
        "exit_cause": row.exit_cause,
        "peak_memory": row.peak_memory,
    }


def log(found: LogPage) -> dict[str, Any]:
    """A stretch of the log of one job."""
    return {
        "items": [log_line(row) for row in found.items],
        "next": found.next,
        "more": found.more,
        "left_out": found.left_out,
        "state": found.state,
        "finished": found.finished,
    }


def log_line(row: LogRow) -> dict[str, Any]:
    """One line that an attempt logged."""
    return {
        "lease": row.lease,
        "attempt": row.attempt,
        "line": row.line,
        "logged_at": instant(row.logged_at),
        "level": row.level,
        "logger": row.logger,
        "message": row.message,
    }


def instant(value: datetime | None) -> str | None:
    """An instant in UTC, ISO 8601 with Z."""
    return None if value is None else value.astimezone(UTC).isoformat().replace("+00:00", "Z")


def milliseconds(value: timedelta | None) -> int | None:
    """A duration in whole milliseconds."""
    return None if value is None else round(value.total_seconds() * 1000)


def decoded(text: str | None) -> Any:
    """JSON text from the database as data; numbers that JSON text can hold and Python cannot become text."""
    if text is None:
        return None
    try:
        return json.loads(text, parse_int=_integer, parse_float=_number)
    except RecursionError:  # jsonb nests deeper than Python's reader
        return text


def _integer(digits: str) -> int | str:
    return int(digits) if len(digits) <= _LONGEST_INTEGER else digits


def _number(digits: str) -> float | str:
    value = float(digits)
    return digits if str(value) in _INFINITE else value
