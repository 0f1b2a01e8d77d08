"""Owns what our jobs look like in their table."""

from __future__ import annotations

import psycopg

KEPT = "SELECT (args->>'number')::int FROM jobrunner.jobs WHERE task = 'work'"  # finished ones are in another table


def kept(dsn: str) -> list[int]:
    """The numbers of jobs that are not finished."""
    with psycopg.connect(dsn) as connection:
        return [number for (number,) in connection.execute(KEPT).fetchall()]
