# /// script
# requires-python = ">=3.11"
# dependencies = ["procrastinate==3.10.0", "psycopg[binary]==3.3.9"]
#
# [tool.bench]
# title = "Procrastinate"
# server = "postgresql"
# durability = "equal: committed and flushed before the call returns"
# ///
"""Procrastinate: synchronous calls to defer, as a Flask application makes them; its worker is one event loop."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

import marks
import psycopg
from procrastinate import App, PsycopgConnector
from protocol import Adapter, Unsupported, serve, timed

ORDERS = "CREATE TABLE IF NOT EXISTS bench_orders (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, note text NOT NULL)"
ORDER = "INSERT INTO bench_orders (note) VALUES ('order')"
CHUNK = 5_000  # jobs of one fill
CONCURRENCY = 50  # the best found for short jobs, twice
BEST_PROCESSES = 2
LEFT = "SELECT count(*) FROM (SELECT FROM procrastinate_jobs WHERE status IN ('todo', 'doing') LIMIT 1) AS any_row"

app = App(connector=PsycopgConnector(conninfo=os.environ["BENCH_DSN"]))


@app.task(name="noop")
async def noop(argument: float) -> None:  # noqa: ARG001
    """Nothing."""
    marks.mark()


@app.task(name="nap")
async def nap(argument: float) -> None:
    """Waits."""
    marks.mark()
    await asyncio.sleep(argument)


@app.task(name="spin")
async def spin(argument: float) -> None:
    """Uses the CPU."""
    marks.spin(argument)


@app.task(name="stamp")
async def stamp(argument: float) -> None:
    """Tells how long ago it was deferred."""
    marks.stamp(argument)


class Procrastinate(Adapter):
    """With its synchronous connector."""

    distributions = ("procrastinate", "psycopg")

    def prepare(self) -> None:
        """Apply its schema."""
        app.open()  # the synchronous counterpart of its connector
        self.tasks = app.tasks
        self.connection = psycopg.connect(self.dsn, autocommit=True)
        if self.connection.execute("SELECT to_regclass('procrastinate_jobs')").fetchone() == (None,):
            app.schema_manager.apply_schema()
        self.connection.execute(ORDERS)

    def empty(self) -> None:
        """Empty its tables."""
        self.connection.execute("TRUNCATE procrastinate_jobs, procrastinate_events, procrastinate_workers, bench_orders CASCADE")
        self.connection.execute("VACUUM ANALYZE procrastinate_jobs")

    def one(self, task: str, argument: float) -> Any:
        """`task.defer(argument=…)`."""
        return self.tasks[task].defer(argument=argument)

    def fill(self, task: str, argument: float, count: int) -> None:
        """In batches."""
        for low in range(0, count, CHUNK):
            self.tasks[task].batch_defer(*({"argument": argument} for _ in range(min(CHUNK, count - low))))
        self.connection.execute("VACUUM ANALYZE procrastinate_jobs")

    def bulk(self, count: int) -> float:
        """`batch_defer`."""
        rows = [{"argument": float(number)} for number in range(count)]
        return timed(lambda: self.tasks["noop"].batch_defer(*rows))

    def transaction(self, count: int, jobs: int) -> float:
        """On the application's own psycopg connection."""

        def all_of_them() -> None:
            for number in range(count):
                with self.connection.transaction():
                    self.connection.execute(ORDER)
                    for job in range(jobs):
                        self.tasks["noop"].configure(connection=self.connection).defer(argument=number + job)

        return timed(all_of_them)

    def workers(self, setting: str, slots: int) -> dict[str, Any]:
        """`procrastinate worker`."""
        options = {"default": (1, None), "best": (BEST_PROCESSES, CONCURRENCY), "many": (1, slots), "processes": (slots, 1)}
        if setting not in options:
            raise Unsupported(f"has no setting {setting!r}")
        processes, concurrency = options[setting]
        command = [sys.executable, "-m", "procrastinate", "--app", "adapter.app", "worker"]
        command += ["--concurrency", str(concurrency)] if concurrency else []
        described = f"{processes} × concurrency {concurrency}" if concurrency else "one worker as it comes"
        return {"commands": [command] * processes, "env": {}, "described": described}

    def left(self) -> int:
        """Jobs to do, or being done."""
        return self.connection.execute(LEFT).fetchone()[0]  # type: ignore[index]


if __name__ == "__main__":
    import adapter  # itself, by the name that worker processes import: that of this script would be in the tasks' names

    serve(adapter.Procrastinate())
