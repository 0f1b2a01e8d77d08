"""Owns what the roll-ups should say, reckoned from the rows of history and attempts, and what they do say.

It must not use the database's arithmetic for the former: no triggers, no buckets, no views.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

from jobrunner.histograms import BUCKETS, bucket_of

if TYPE_CHECKING:
    from datetime import datetime

    import psycopg

NOT_LAST = ("retried", "crashed", "snoozed", "released")  # outcomes of attempts after which the job goes on
EVERY_ROW = """
SELECT finished_at, queue, task, state AS outcome, run_ms, wait_ms, cpu_ms FROM jobrunner.job_history
UNION ALL
SELECT finished_at, queue, task, outcome, run_ms, NULL, cpu_ms FROM jobrunner.job_attempts WHERE outcome = ANY (%s)
"""
NUMBERS = "ended_count::bigint, run_ms::bigint, wait_ms::bigint, cpu_ms::bigint, run_histogram, wait_histogram"


class Key(NamedTuple):
    """What is counted together."""

    at: datetime
    queue: str
    task: str
    outcome: str


class Numbers(NamedTuple):
    """What is counted of it."""

    ended: int
    run_ms: int
    wait_ms: int
    cpu_ms: int
    run: tuple[int, ...]
    wait: tuple[int, ...]


def reckoned(connection: psycopg.Connection[Any], *, hourly: bool = False) -> dict[Key, Numbers]:
    """What the rows say: each job that ended, each attempt that was not its job's last."""
    rows = defaultdict[Key, list[tuple[int | None, int | None, int | None]]](list)
    for finished_at, queue, task, outcome, *times in connection.execute(EVERY_ROW, (list(NOT_LAST),)):
        at = finished_at.replace(second=0, microsecond=0, **({"minute": 0} if hourly else {}))
        rows[Key(at, queue, task, outcome)].append((times[0], times[1], times[2]))
    return {key: _numbers(found) for key, found in rows.items()}


def counted(connection: psycopg.Connection[Any], *, hourly: bool = False) -> dict[Key, Numbers]:
    """What the views say."""
    at, view = ("hour", "v_throughput_hourly") if hourly else ("minute", "v_throughput")
    found = connection.execute(f"SELECT {at}, queue, task, outcome, {NUMBERS} FROM jobrunner.{view}").fetchall()
    return {Key(*row[:4]): Numbers._make([*row[4:8], tuple(row[8]), tuple(row[9])]) for row in found}


def outcomes(connection: psycopg.Connection[Any]) -> dict[str, int]:
    """How many ended how, by the view."""
    return dict(connection.execute("SELECT outcome, sum(ended_count)::bigint FROM jobrunner.v_throughput GROUP BY 1").fetchall())


def _numbers(rows: list[tuple[int | None, int | None, int | None]]) -> Numbers:
    run, wait, cpu = ([ms for ms in values if ms is not None] for values in zip(*rows, strict=True))
    return Numbers(len(rows), sum(run), sum(wait), sum(cpu), _histogram(run), _histogram(wait))


def _histogram(values: list[int]) -> tuple[int, ...]:
    counts = [0] * BUCKETS
    for value in values:
        counts[bucket_of(value)] += 1
    return tuple(counts)
