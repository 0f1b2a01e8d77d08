"""Owns the JSON shape of one look of `top`. It must not drop a key when there is nothing to say: it is null then."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobrunner.cli import documents
from jobrunner.cli.documents import milliseconds

if TYPE_CHECKING:
    from jobrunner.cli.top.watching import Sight
    from jobrunner.inspection import ErrorGroup, Percentiles, Throughput


def look(sight: Sight, target: str) -> dict[str, Any]:
    """One look. With the database away, `trouble` says why, and everything that was not seen is null."""
    found = sight.glance if sight.trouble is None else None
    trouble = sight.trouble or (str(found.trouble) if found and found.trouble else None)
    wanted = {"view": sight.wanted.view, "filter": str(sight.wanted.filter)}
    if found is None:
        return {"target": target, "at": None, "trouble": trouble, **wanted, **dict.fromkeys(_SEEN)}
    lately = found.lately
    return {
        "target": target,
        "at": found.at,
        "trouble": trouble,
        **wanted,
        "workers_alive": lately.workers_alive,
        "slots": lately.slots,
        "running": lately.running,
        "queues": [documents.queue(row) for row in found.queues],
        "throughput": _throughput(lately.throughput),
        "jobs": [documents.job(row) for row in found.jobs],
        "errors": [_error(group) for group in found.errors],
        "workers": [documents.worker(row) for row in found.workers],
        "more": found.more,
    }


_SEEN = ("workers_alive", "slots", "running", "queues", "throughput", "jobs", "errors", "workers", "more")


def _throughput(found: Throughput) -> dict[str, Any]:
    return {
        "span_ms": milliseconds(found.span),
        "ended": found.ended,
        "succeeded": found.succeeded,
        "failed": found.failed,
        "failed_share": found.failed_share,
        "succeeded_per_second": round(found.succeeded_per_second, 3),
        "per_minute": list(found.per_minute),
        "per_queue": {queue: list(minutes) for queue, minutes in found.per_queue.items()},
        "run_ms": _percentiles(found.run),
        "wait_ms": _percentiles(found.wait),
    }


def _percentiles(found: Percentiles | None) -> dict[str, int | None] | None:
    return None if found is None else {name: milliseconds(getattr(found, name)) for name in ("p50", "p95", "p99")}


def _error(group: ErrorGroup) -> dict[str, Any]:
    return {
        "fingerprint": group.fingerprint,
        "error_type": group.error_type,
        "exit_cause": group.exit_cause,
        "message": group.message,
        "events": documents.count(group.events),
        "jobs": documents.count(group.jobs),
        "task": group.task,
        "tasks": group.tasks,
        "newest_job_id": group.job_id,
        "first_at": group.first_at,
        "last_at": group.last_at,
    }
