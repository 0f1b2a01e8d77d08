"""Owns whether history that is too old could be archived and removed. It must not remove any."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from jobrunner.doctor.findings import Finding, Look
from jobrunner.history.days import PROBLEMS

if TYPE_CHECKING:
    from collections.abc import Iterator


def look(given: Look) -> Iterator[Finding]:
    """What the steps of retention met when they were at a day last."""
    rows = given.connection.execute(sa.text(PROBLEMS)).all()
    for row in rows:
        text = f"old rows of {row.part} stay: {row.problem}"
        data = {"partition": row.part, "problem": row.problem, "since": row.problem_at.isoformat()}
        yield Finding("retention", "bad", text, "mend that, then: jobrunner prune", data)
    if not rows:
        yield Finding("retention", "ok", "nothing keeps history that is too old from being removed")
