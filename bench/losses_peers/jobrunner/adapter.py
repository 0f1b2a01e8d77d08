# /// script
# requires-python = ">=3.11"
#
# [tool.bench]
# title = "Jobrunner"
# server = "postgresql"
# durability = "at least once, within a lease (30 s unless set) of the worker's death"
# ///
"""Jobrunner with a worker of its own."""

from __future__ import annotations

import sys

import app
import ourjobs
from contending import SLOTS, Contender, roll_back
from protocol import HERE, serve

from jobrunner import migrate


class Jobrunner(Contender):
    """`jobrunner work`."""

    distributions = ("jobrunner-pg", "psycopg", "SQLAlchemy", "Flask")

    def prepare(self) -> None:
        """`jobrunner db upgrade`."""
        migrate.upgrade(self.dsn)

    def command(self) -> list[str]:
        """The worker; its lease is 30 s, unless a timeout is wanted."""
        lease = [] if self.timeout is None else ["--lease", f"{self.timeout:g}s"]
        return [sys.executable, "-m", "jobrunner", "work", "--app", str(HERE / "app.py"), "--concurrency", str(SLOTS), *lease]

    def now(self, numbers: list[int], seconds: float) -> None:
        """`work.enqueue(…)`."""
        for number in numbers:
            app.work.enqueue(number, seconds)

    def later(self, numbers: list[int], delay: float) -> None:
        """`work.options(delay=…).enqueue(…)`."""
        for number in numbers:
            app.work.options(delay=delay).enqueue(number, 0.0)

    def rolled_back(self, numbers: list[int]) -> None:
        """`work.options(session=…).enqueue(…)`."""
        for number in numbers:
            roll_back(self.dsn, lambda session, number=number: app.work.options(session=session).enqueue(number, 0.0))  # type: ignore[misc]

    def held(self) -> list[int]:
        """What is in the table."""
        return ourjobs.kept(self.dsn)


if __name__ == "__main__":
    serve(Jobrunner())
