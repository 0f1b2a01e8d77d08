# /// script
# requires-python = ">=3.11"
# dependencies = ["procrastinate==3.10.0", "psycopg[binary]==3.3.9", "SQLAlchemy==2.1.9"]
#
# [tool.bench]
# title = "Procrastinate"
# server = "postgresql"
# durability = "less: a killed worker's jobs stay `doing`, unless the application has a task of its own that retries stalled ones"
# ///
"""Procrastinate as it comes. A worker whose heartbeat is late counts as stalled; nobody is given its jobs until the application says so."""

from __future__ import annotations

import os
import sys

import notes
import psycopg
from contending import SLOTS, Contender, roll_back
from procrastinate import App, JobContext, PsycopgConnector
from protocol import serve

BEATS = 3  # within the time after which a worker counts as stalled: its defaults are 10 s and 30 s
KEPT = "SELECT (args->>'number')::int FROM procrastinate_jobs WHERE status IN ('todo', 'doing') AND task_name = 'work'"


def stalled_after(timeout: str) -> dict[str, float]:
    """What `App(worker_defaults=…)` is given: its command line has no option for either."""
    return {"stalled_worker_timeout": float(timeout), "update_heartbeat_interval": float(timeout) / BEATS} if timeout else {}


app = App(
    connector=PsycopgConnector(conninfo=os.environ["BENCH_DSN"]),
    worker_defaults=stalled_after(os.environ.get("LOSSES_TIMEOUT", "")),  # type: ignore[arg-type]
)


@app.task(name="work", pass_context=True)
def work(context: JobContext, number: int, seconds: float) -> None:
    """The job, in a thread of the worker, as every function is that is no coroutine."""
    notes.work(number, seconds, context.job.attempts + 1)


class Procrastinate(Contender):
    """With psycopg."""

    distributions = ("procrastinate", "psycopg", "SQLAlchemy")

    def prepare(self) -> None:
        """Apply its schema, once in the database."""
        app.open()  # the synchronous counterpart of its connector
        with psycopg.connect(self.dsn) as connection:
            there = connection.execute("SELECT to_regclass('procrastinate_jobs')").fetchone() != (None,)
        if not there:
            app.schema_manager.apply_schema()

    def command(self) -> list[str]:
        """`procrastinate worker`."""
        return [sys.executable, "-m", "procrastinate", "--app", "adapter.app", "worker", "--concurrency", str(SLOTS)]

    def now(self, numbers: list[int], seconds: float) -> None:
        """`work.defer(…)`."""
        for number in numbers:
            work.defer(number=number, seconds=seconds)

    def later(self, numbers: list[int], delay: float) -> None:
        """`work.configure(schedule_in=…).defer(…)`."""
        for number in numbers:
            work.configure(schedule_in={"seconds": delay}).defer(number=number, seconds=0.0)

    def rolled_back(self, numbers: list[int]) -> None:
        """`work.configure(connection=…).defer(…)` on the session's own psycopg connection."""
        for number in numbers:
            roll_back(
                self.dsn,
                lambda session, number=number: work.configure(  # type: ignore[misc]
                    connection=session.connection().connection.driver_connection
                ).defer(number=number, seconds=0.0),
            )

    def held(self) -> list[int]:
        """What is to do or being done: whoever retries stalled jobs would run the latter again."""
        with psycopg.connect(self.dsn) as connection:
            return [number for (number,) in connection.execute(KEPT).fetchall()]


if __name__ == "__main__":
    import adapter  # itself, by the name that worker processes import: that of this script would be in the tasks' names

    serve(adapter.Procrastinate())
