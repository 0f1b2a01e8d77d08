"""Owns what the tests in tests/integration/messages see of the messages of a queue."""

from __future__ import annotations

PATIENCE = 30  # seconds until a call that should come back is given up


def states(connection) -> dict[int, str]:
    """The state of every message, by its id."""
    return dict(connection.execute("SELECT id, state FROM jobrunner.v_jobs").fetchall())
