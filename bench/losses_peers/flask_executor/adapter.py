# /// script
# requires-python = ">=3.11"
# dependencies = ["Flask-Executor==1.0.0", "Flask==3.1.3", "gunicorn==27.0.1", "SQLAlchemy==2.1.9", "psycopg[binary]==3.3.9"]
#
# [tool.bench]
# title = "Flask-Executor under gunicorn"
# server = "postgresql"
# durability = "less: jobs are in the memory of a web process"
# ///
"""Flask-Executor in two web processes. It has no visibility timeout: a job is in one process, and nowhere else."""

from __future__ import annotations

from protocol import serve
from websites import Website


class FlaskExecutor(Website):
    """Threads of the web processes."""

    distributions = ("Flask-Executor", "Flask", "gunicorn")

    def held(self) -> list[int]:
        """It has no storage: what a process has in memory is seen when it runs."""
        return []


if __name__ == "__main__":
    serve(FlaskExecutor())
