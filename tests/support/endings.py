"""Owns ending jobs by plain SQL, as if a worker had run them, and bringing them back."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import psycopg

_FINISH = """
WITH gone AS (DELETE FROM jobrunner.jobs WHERE id = %(id)s RETURNING *)
INSERT INTO jobrunner.job_history (id, task, args, queue, priority, tags, created_at, run_at, state, lease, attempt, max_attempts, backoff,
    backoff_base, backoff_cap, backoff_jitter, crash_count, max_crashes, last_error_type, last_error, result)
SELECT id, task, args, queue, priority, tags, created_at, run_at, %(state)s, lease, 1, max_attempts, backoff,
    backoff_base, backoff_cap, backoff_jitter, crash_count, max_crashes, %(error_type)s, %(error)s, %(result)s
FROM gone
"""
_ATTEMPT = """
INSERT INTO jobrunner.job_attempts (job_id, attempt, lease, task, queue, outcome, traceback, exit_cause)
VALUES (%s, %s, %s, 'x', 'x', %s, %s, %s)
"""


def finish(
    connection: psycopg.Connection[Any],
    job_id: int,
    state: str = "succeeded",
    *,
    result: object = None,
    error_type: str | None = None,
    error: str | None = None,
) -> None:
    """Move a live job to history."""
    parameters = {"id": job_id, "state": state, "result": json.dumps(result), "error_type": error_type, "error": error}
    assert connection.execute(_FINISH, parameters).rowcount == 1


def record_attempt(
    connection: psycopg.Connection[Any], job_id: int, lease: int, outcome: str, traceback: str | None, exit_cause: str
) -> None:
    """Put an attempt that did not succeed on record."""
    connection.execute(_ATTEMPT, (job_id, lease, lease, outcome, traceback, exit_cause))
