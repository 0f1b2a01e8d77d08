# /// script
# requires-python = ">=3.11"
# dependencies = ["huey==3.5.4", "SQLAlchemy==2.1.9", "psycopg[binary]==3.3.9"]
#
# [tool.bench]
# title = "Huey, PostgresHuey"
# server = "postgresql"
# durability = "less: at most once, a job is gone from the table before it runs"
# ///
"""Huey in PostgreSQL. It has no visibility timeout: what a consumer has taken is nobody else's."""

from __future__ import annotations

import os
import sys

import notes
from contending import SLOTS, Contender, roll_back
from huey import PostgresHuey
from protocol import serve

huey = PostgresHuey("losses", dsn=os.environ["BENCH_DSN"])


@huey.task(name="work")
def work(number: int, seconds: float) -> None:
    """The job."""
    notes.work(number, seconds)


class HueyPostgres(Contender):
    """With psycopg."""

    distributions = ("huey", "psycopg")

    def command(self) -> list[str]:
        """`huey_consumer`, threads as it comes."""
        return [sys.executable, "-m", "huey.bin.huey_consumer", "adapter.huey", "--workers", str(SLOTS), "--quiet"]

    def now(self, numbers: list[int], seconds: float) -> None:
        """A call of the task."""
        for number in numbers:
            work(number, seconds)

    def later(self, numbers: list[int], delay: float) -> None:
        """`work.schedule(…, delay=…)`."""
        for number in numbers:
            work.schedule((number, 0.0), delay=delay)

    def rolled_back(self, numbers: list[int]) -> None:
        """A call of the task: its storage has an autocommit connection of its own, and sets that on one that it is given."""
        for number in numbers:
            roll_back(self.dsn, lambda _, number=number: work(number, 0.0))  # type: ignore[misc]

    def held(self) -> list[int]:
        """What is in its two tables."""
        return [task.args[0] for task in (*huey.pending(), *huey.scheduled())]


if __name__ == "__main__":
    import adapter  # itself, by the name that worker processes import: that of this script would be in the tasks' names

    serve(adapter.HueyPostgres())
