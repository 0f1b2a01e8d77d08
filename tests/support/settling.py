"""Owns the transactional task of the tests in tests/integration/transactional, and what it leaves behind."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session  # noqa: TC002  the annotation of a task's parameter is read

EFFECT = sa.text("INSERT INTO test_effects VALUES (:number)")


def effects(connection) -> list[int]:
    return [row[0] for row in connection.execute("SELECT number FROM test_effects ORDER BY number")]


def states(connection) -> dict[str, int]:
    return dict(connection.execute("SELECT state, count(*) FROM jobrunner.v_jobs GROUP BY state").fetchall())


def register(jobs, body, **options: Any):
    """A transactional task `settle` that runs `body(session)`, and a plain one to enqueue."""

    @jobs.task
    def child(number: int) -> None: ...

    @jobs.task(transactional=True, **options)
    def settle(*, session: Session) -> Any:
        return body(session, child)

    return settle


def failure(line) -> tuple[str, str, str]:
    """Ending, type and message of an attempt that did not succeed."""
    return line[2], line[3], line[4]
