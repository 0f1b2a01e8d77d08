"""Owns the ledger that transactional jobs write in their own transaction, and the checker that reads it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import psycopg

if TYPE_CHECKING:
    from collections.abc import Sequence

TABLES = """
CREATE TABLE chaos_effects (job_id bigint NOT NULL, lease bigint NOT NULL, txid xid8 NOT NULL DEFAULT pg_current_xact_id());
CREATE TABLE chaos_children (parent_id bigint NOT NULL, lease bigint NOT NULL, child_id bigint NOT NULL)
"""

# Each query gives the ids of jobs of the task `settle` for which something does not hold.
_CHECKS = {
    "lost": """SELECT id FROM jobrunner.v_jobs j WHERE task = 'settle' AND state = 'succeeded'
        AND NOT EXISTS (SELECT FROM chaos_effects e WHERE e.job_id = j.id)""",
    "doubled": "SELECT job_id FROM chaos_effects GROUP BY job_id HAVING count(*) > 1",
    "undone": """SELECT job_id FROM chaos_effects e
        WHERE NOT EXISTS (SELECT FROM jobrunner.v_jobs j WHERE j.id = e.job_id AND state = 'succeeded')""",
    "stale": """SELECT job_id FROM chaos_effects e JOIN jobrunner.v_jobs j ON j.id = e.job_id WHERE j.lease <> e.lease""",
    "torn": """SELECT e.job_id FROM chaos_effects e LEFT JOIN chaos_children c ON c.parent_id = e.job_id AND c.lease = e.lease
        GROUP BY e.job_id, e.lease HAVING count(c.child_id) <> 1""",
    "childless": """SELECT id FROM jobrunner.v_jobs j WHERE task = 'settle' AND state = 'succeeded'
        AND (SELECT count(*) FROM jobrunner.v_jobs c WHERE c.task = 'child' AND c.parent_id = j.id) <> 1""",
    "orphaned": """SELECT parent_id FROM jobrunner.v_jobs c WHERE c.task = 'child'
        AND NOT EXISTS (SELECT FROM chaos_children l WHERE l.child_id = c.id AND l.parent_id = c.parent_id)""",
    "unfinished": "SELECT id FROM jobrunner.v_jobs WHERE task = 'settle' AND state <> 'succeeded'",
}


@dataclass(frozen=True)
class Verdict:
    """What the ledger says, after everything has drained; ids of jobs.

    Attributes:
        count: jobs that were enqueued.
        lost: succeeded without an effect.
        doubled: more than one effect.
        undone: an effect of a job that did not succeed.
        stale: an effect of another lease than the one under which the job succeeded.
        torn: effect and the entry about the child are not both there once.
        childless: succeeded with no child, or more than one.
        orphaned: a child that the ledger does not know.
        unfinished: not succeeded.
    """

    count: int
    lost: Sequence[int]
    doubled: Sequence[int]
    undone: Sequence[int]
    stale: Sequence[int]
    torn: Sequence[int]
    childless: Sequence[int]
    orphaned: Sequence[int]
    unfinished: Sequence[int]

    @property
    def faults(self) -> dict[str, Sequence[int]]:
        """What does not hold."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "count" and getattr(self, field.name)}

    def __str__(self) -> str:
        found = ", ".join(f"{field.name} {len(getattr(self, field.name))}" for field in fields(self) if field.name != "count")
        return f"{self.count} jobs: {found}; with 0 bad in {self.count}, 95 % bound {min(1.0, 3 / max(1, self.count)):.2%} per job"


def prepare(dsn: str) -> None:
    """Make the ledger's tables."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(TABLES.encode())


def check(dsn: str) -> Verdict:
    """Read the ledger beside the jobs."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        found = {name: [row[0] for row in connection.execute(query.encode())] for name, query in _CHECKS.items()}
        [(count,)] = connection.execute("SELECT count(*) FROM jobrunner.v_jobs WHERE task = 'settle'").fetchall()
    return Verdict(count, **found)
