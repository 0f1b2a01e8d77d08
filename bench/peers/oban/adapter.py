# /// script
# requires-python = ">=3.12"
# dependencies = ["oban==0.7.0", "psycopg[binary]==3.3.9", "uvloop==0.23.0"]
#
# [tool.bench]
# title = "Oban for Python"
# server = "postgresql"
# durability = "equal: committed and flushed before the call returns"
# ///
"""Oban for Python, the free edition: coroutines in one process; results, many processes and bulk acknowledgement are in the paid one."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import marks
from oban import Oban, worker
from oban.schema import install_sql
from protocol import AsyncAdapter, Unsupported, serve, timed

ORDERS = "CREATE TABLE IF NOT EXISTS bench_orders (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, note text NOT NULL)"
ORDER = "INSERT INTO bench_orders (note) VALUES ('order')"
CHUNK = 2_000  # jobs of one statement
DEFAULT_LIMIT = 10  # of its first page
BEST_LIMIT, BEST_PROCESSES = 50, 2
POOL = 8  # connections, for as many enqueuing coroutines
LEFT = "SELECT count(*) FROM (SELECT FROM oban_jobs WHERE state IN ('available', 'executing', 'scheduled', 'retryable') LIMIT 1) AS any_row"


@worker(queue="default")
class Noop:
    """Nothing."""

    async def process(self, job: Any) -> None:  # noqa: ARG002
        """Nothing."""
        marks.mark()


@worker(queue="default")
class Nap:
    """Waits."""

    async def process(self, job: Any) -> None:
        """Waits."""
        marks.mark()
        await asyncio.sleep(job.args["argument"])


@worker(queue="default")
class Spin:
    """Uses the CPU."""

    async def process(self, job: Any) -> None:
        """Uses the CPU."""
        marks.spin(job.args["argument"])


@worker(queue="default")
class Stamp:
    """Tells how long ago it was enqueued."""

    async def process(self, job: Any) -> None:
        """Tells how long ago it was enqueued."""
        marks.stamp(job.args["argument"])


TASKS: dict[str, Any] = {"noop": Noop, "nap": Nap, "spin": Spin, "stamp": Stamp}


class ObanPeer(AsyncAdapter):
    """A client without queues."""

    distributions = ("oban", "psycopg", "uvloop")

    def prepare(self) -> None:
        """Install its schema."""

        async def begin() -> None:
            self.pool = await Oban.create_pool(self.dsn, max_size=POOL)
            async with self.pool.connection() as connection:
                if (await (await connection.execute("SELECT to_regclass('oban_jobs')")).fetchone()) == (None,):
                    await connection.execute(install_sql())
                await connection.execute(ORDERS)
            self.oban = Oban(pool=self.pool)
            await self.oban.start()

        self.run(begin())

    async def _execute(self, sql: str) -> Any:
        async with self.pool.connection() as connection:
            await connection.set_autocommit(True)
            cursor = await connection.execute(sql)
            rows = await cursor.fetchall() if cursor.description else []
            await connection.set_autocommit(False)
            return rows

    def empty(self) -> None:
        """Empty its tables."""
        self.run(self._execute("TRUNCATE oban_jobs, oban_producers, oban_leaders, bench_orders"))
        self.run(self._execute("VACUUM ANALYZE oban_jobs"))

    async def one_async(self, task: str, argument: float) -> Any:
        """`Worker.enqueue`."""
        return await self.oban.enqueue(TASKS[task].new({"argument": argument}))

    def fill(self, task: str, argument: float, count: int) -> None:
        """In batches."""
        for low in range(0, count, CHUNK):
            self.run(self.oban.enqueue_many([TASKS[task].new({"argument": argument}) for _ in range(min(CHUNK, count - low))]))
        self.run(self._execute("VACUUM ANALYZE oban_jobs"))

    def bulk(self, count: int) -> float:
        """`enqueue_many`."""
        return timed(lambda: self.run(self.oban.enqueue_many([Noop.new({"argument": number}) for number in range(count)])))  # type: ignore[attr-defined]

    def transaction(self, count: int, jobs: int) -> float:
        """On the application's own psycopg connection."""

        async def all_of_them() -> None:
            async with self.pool.connection() as connection:
                for number in range(count):
                    async with connection.transaction():
                        await connection.execute(ORDER)
                        for job in range(jobs):
                            await self.oban.enqueue(Noop.new({"argument": number + job}), conn=connection)  # type: ignore[attr-defined]

        return timed(lambda: self.run(all_of_them()))

    def result(self, number: int) -> None:  # noqa: ARG002
        """It keeps results; waiting for one is in the paid edition."""
        raise Unsupported("has no call that waits for a result in its free edition")

    def workers(self, setting: str, slots: int) -> dict[str, Any]:
        """`oban start`."""
        limits = {
            "default": (1, DEFAULT_LIMIT),
            "best": (BEST_PROCESSES, BEST_LIMIT),
            "many": (1, slots),
            "processes": (slots, DEFAULT_LIMIT),
        }
        if setting not in limits:
            raise Unsupported(f"has no setting {setting!r}")
        processes, limit = limits[setting]
        command = [sys.executable, "-m", "oban", "start", "--dsn", self.worker_dsn, "--queues", f"default:{limit}", "--log-level", "ERROR"]
        command += ["--cron-modules", "adapter"]  # the modules that it imports
        return {"commands": [command] * processes, "env": {}, "described": f"{processes} × limit {limit}, uvloop"}

    def left(self) -> int:
        """Jobs that are available or executing."""
        return self.run(self._execute(LEFT))[0][0]  # type: ignore[no-any-return]


if __name__ == "__main__":
    import adapter  # itself, by the name that worker processes import: that of this script would be in the tasks' names

    serve(adapter.ObanPeer())
