# /// script
# requires-python = ">=3.11"
#
# [tool.bench]
# title = "Jobrunner embedded under gunicorn"
# server = "postgresql"
# durability = "at least once, within a lease (30 s) of the worker's death"
# ///
"""Jobrunner's worker beside two web processes."""

from __future__ import annotations

import ourjobs
from protocol import serve
from websites import Website

from jobrunner import migrate


class Embedded(Website):
    """`embedded_worker="processes:2"`."""

    distributions = ("jobrunner-pg", "psycopg", "SQLAlchemy", "Flask", "gunicorn")
    fixed_timeout = 30.0  # seconds: its lease cannot be set

    def prepare(self) -> None:
        """`jobrunner db upgrade`."""
        migrate.upgrade(self.dsn)

    def later(self, numbers: list[int], delay: float) -> None:
        """POST /later."""
        for number in numbers:
            self.post("/later", number=number, delay=delay)

    def held(self) -> list[int]:
        """What is in the table."""
        return ourjobs.kept(self.dsn)


if __name__ == "__main__":
    serve(Embedded())
