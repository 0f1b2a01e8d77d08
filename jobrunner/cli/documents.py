"""Owns the JSON shapes of what commands answer with. Keys are the columns of the views (`v_jobs`, `v_attempts`, `v_workers`).

It must not drop a key when there is nothing to say: it is null then. New keys may come; a key never changes its meaning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobrunner.cli.output import JsonText, duration

if TYPE_CHECKING:
    from datetime import timedelta

    from jobrunner.inspection import (
        AttemptRow,
        Count,
        JobDetail,
        JobRow,
        LogRow,
        Page,
        QueueRow,
        Reason,
        RunningJob,
        Status,
        WorkerRow,
        WorkerRunRow,
    )


def page(found: Page) -> dict[str, Any]:
    """`jobs list --json`."""
    return {"items": [job(row) for row in found.items], "next": found.next, "prev": found.prev, "at": found.at}


def job(row: JobRow) -> dict[str, Any]:
    """One job of a list."""
    return {
        "id": row.id,
        "task": row.task,
        "queue": row.queue,
        "state": row.state,
        "priority": row.priority,
        "attempt": row.attempt,
        "max_attempts": row.max_attempts,
        "created_at": row.created_at,
        "run_at": row.run_at,
        "started_at": row.started_at,
        "finished_at": row.finished_at,
        "wait_ms": milliseconds(row.wait),
        "run_ms": milliseconds(row.run),
        "worker_id": row.worker_id,
        "error_type": row.error_type,
        "error": row.error,
        "progress": row.progress,
        "progress_text": row.progress_text,
        "peak_memory": row.peak_memory,
        "args_excerpt": row.args_excerpt,
    }


def detail(found: JobDetail) -> dict[str, Any]:
    """`jobs show --json`: the job with whole arguments, result and error, its attempts, and why it is not running."""
    document = job(found.job)
    del document["args_excerpt"]
    return {
        **document,
        "error": found.error,
        "error_at": found.error_at,
        "args": _text(found.args),
        "result": _text(found.result),
        "meta": _text(found.meta),
        "progress_text": found.progress_text,
        "checkpoint": _text(found.checkpoint),
        "tags": list(found.tags),
        "parent_id": found.parent_id,
        "unique_key": found.unique_key,
        "crash_count": found.crash_count,
        "max_crashes": found.max_crashes,
        "time_limit_ms": milliseconds(found.time_limit),
        "soft_time_limit_ms": milliseconds(found.soft_time_limit),
        "cpu_limit_ms": milliseconds(found.cpu_limit),
        "memory_limit": found.memory_limit,
        "memory_limit_on_retry": found.memory_limit_on_retry,
        "output_limit": found.output_limit,
        "max_processes": found.max_processes,
        "backoff": found.backoff,
        "lease": found.lease,
        "claimed_at": found.claimed_at,
        "cancel_requested_at": found.cancel_requested_at,
        "cpu_ms": milliseconds(found.cpu),
        "worker": found.worker,
        "ordering_key": found.ordering_key,
        "expires_at": found.expires_at,
        "waiting_reason": reason(found.waiting_reason),
        "attempts": [attempt(row) for row in found.attempts],
        "attempts_left_out": found.attempts_left_out,
        "at": found.at,
    }


def attempt(row: AttemptRow) -> dict[str, Any]:
    """One ended attempt."""
    return {
        "attempt": row.attempt,
        "lease": row.lease,
        "outcome": row.outcome,
        "started_at": row.started_at,
        "finished_at": row.finished_at,
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


def log_line(row: LogRow) -> dict[str, Any]:
    """One line that an attempt logged."""
    return {
        "lease": row.lease,
        "attempt": row.attempt,
        "line": row.line,
        "logged_at": row.logged_at,
        "level": row.level,
        "logger": row.logger,
        "message": row.message,
    }


def status(found: Status, workers: tuple[WorkerRow, ...]) -> dict[str, Any]:
    """`status --json`."""
    pulse = found.pulse
    return {
        "at": pulse.at,
        "schema": {"current": pulse.schema.current, "head": pulse.schema.head},
        "read_only": pulse.read_only,
        "workers_alive": pulse.workers_alive,
        "workers_lost": pulse.workers_lost,
        "slots": pulse.slots,
        "running": pulse.running,
        "last_seen_at": pulse.last_seen_at,
        "failed_last_hour": count(found.failed_last_hour),
        "queues": [queue(row) for row in found.queues],
        "workers": [worker(row) for row in workers],
        "unserved": [{"task": row.task, "queue": row.queue, "count": count(row.count)} for row in found.unserved],
        "problems": [reason(item) for item in found.problems],
    }


def queue(row: QueueRow) -> dict[str, Any]:
    """One queue; `exact` false makes the counts of waiting jobs lower bounds."""
    return {
        "queue": row.queue,
        "ready": row.ready,
        "scheduled": row.scheduled,
        "retrying": row.retrying,
        "running": row.running,
        "unserved": row.unserved,
        "exact": row.exact,
        "oldest_ready_at": row.oldest_ready_at,
        "workers": row.workers,
        "slots": row.slots,
    }


def worker(row: WorkerRow) -> dict[str, Any]:
    """One worker."""
    return {
        "id": row.id,
        "name": row.name,
        "host": row.host,
        "pid": row.pid,
        "kind": row.kind,
        "version": row.version,
        "state": row.state,
        "queues": list(row.queues),
        "tasks": list(row.tasks),
        "slots": row.slots,
        "running": row.running,
        "started_at": row.started_at,
        "heartbeat_at": row.heartbeat_at,
        "stopped_at": row.stopped_at,
        "last_exit": row.last_exit,
        "rss_bytes": row.rss_bytes,
        "succeeded_count": row.succeeded_count,
        "failed_count": row.failed_count,
        "crashed_count": row.crashed_count,
        "pool": row.pool,
        "pool_slot": row.pool_slot,
        "claimed_count": row.claimed_count,
        "memory_bytes": row.memory_bytes,
        "running_jobs": [running_job(item) for item in row.running_jobs],
    }


def running_job(row: RunningJob) -> dict[str, Any]:
    """What one slot of a worker ran at its last heartbeat."""
    return {
        "slot": row.slot,
        "job_id": row.job_id,
        "task": row.task,
        "attempt": row.attempt,
        "run_ms": milliseconds(row.run),
        "memory": row.memory,
    }


def worker_run(row: WorkerRunRow) -> dict[str, Any]:
    """One worker that has ended."""
    return {
        "id": row.id,
        "worker_id": row.worker_id,
        "name": row.name,
        "host": row.host,
        "pid": row.pid,
        "kind": row.kind,
        "pool": row.pool,
        "pool_slot": row.pool_slot,
        "version": row.version,
        "started_at": row.started_at,
        "finished_at": row.finished_at,
        "run_ms": milliseconds(row.run),
        "reason": row.reason,
        "exit_code": row.exit_code,
        "error": row.error,
        "claimed_count": row.claimed_count,
        "succeeded_count": row.succeeded_count,
        "failed_count": row.failed_count,
        "crashed_count": row.crashed_count,
        "left_count": row.left_count,
        "next_due_at": row.next_due_at,
    }


def count(found: Count) -> dict[str, Any]:
    """A number, and whether counting stopped there."""
    return {"value": found.value, "exact": found.exact}


def reason(found: Reason | None) -> dict[str, Any] | None:
    """A cause: a code for programs, a sentence, what to do."""
    return None if found is None else {"code": found.code, "text": found.text, "hint": found.hint}


def milliseconds(value: timedelta | None) -> int | None:
    """A duration in the unit of the `_ms` columns."""
    return None if value is None else round(value.total_seconds() * 1000)


def duration_text(value: timedelta | None) -> str | None:
    """A duration for a person."""
    return None if value is None else duration(value.total_seconds())


def _text(text: str | None) -> JsonText | None:
    return None if text is None else JsonText(text)
