# /// script
# requires-python = ">=3.11"
# dependencies = ["pgqueuer==1.6.0", "asyncpg==0.32.0", "uvloop==0.23.0"]
#
# [tool.bench]
# title = "PgQueuer"
# server = "postgresql"
# durability = "equal: committed and flushed before the call returns"
# ///
"""PgQueuer with asyncpg, its fastest driver: coroutines only, in one process, with no isolation; its log keeps no arguments."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import asyncpg
import marks
import uvloop
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver, AsyncpgPoolDriver
from pgqueuer.queries import Queries
from protocol import HERE, AsyncAdapter, Unsupported, serve, timed

if TYPE_CHECKING:
    from pgqueuer.models import Job

ORDERS = "CREATE TABLE IF NOT EXISTS bench_orders (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, note text NOT NULL)"
ORDER = "INSERT INTO bench_orders (note) VALUES ('order')"
SERVING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'bench-worker'"
CHUNK = 20_000  # jobs of one fill
BEST_BATCH, BEST_PROCESSES = 500, 2
POOL = 8  # connections, for as many enqueuing coroutines


def payload(argument: float) -> bytes:
    """The same arguments that the others keep."""
    return json.dumps({"argument": argument}).encode()


def argument_of(job: Job) -> float:
    """What was given."""
    return float(json.loads(job.payload or b"{}")["argument"])


async def application() -> PgQueuer:
    """The tasks."""
    queuer = PgQueuer.from_asyncpg_connection(
        await asyncpg.connect(os.environ["BENCH_DSN"], server_settings={"application_name": "bench-worker"})
    )

    @queuer.entrypoint("noop")
    async def noop(job: Job) -> None:  # noqa: ARG001
        marks.mark()

    @queuer.entrypoint("nap")
    async def nap(job: Job) -> None:
        marks.mark()
        await asyncio.sleep(argument_of(job))

    @queuer.entrypoint("spin")
    async def spin(job: Job) -> None:
        marks.spin(argument_of(job))

    @queuer.entrypoint("stamp")
    async def stamp(job: Job) -> None:
        marks.stamp(argument_of(job))

    return queuer


class Pgqueuer(AsyncAdapter):
    """With a pool of asyncpg connections."""

    distributions = ("pgqueuer", "asyncpg", "uvloop")

    def prepare(self) -> None:
        """Install its schema."""

        async def begin() -> None:
            self.pool = await asyncpg.create_pool(self.dsn, min_size=1, max_size=POOL)
            self.connection = await asyncpg.connect(self.dsn)
            self.own = Queries(AsyncpgDriver(self.connection))
            self.queries = Queries(AsyncpgPoolDriver(self.pool))
            if not await self.own.schema_is_installed():
                await self.own.install()
            await self.connection.execute(ORDERS)

        self.run(begin())

    def empty(self) -> None:
        """Empty its tables."""
        self.run(self.connection.execute("TRUNCATE pgqueuer, pgqueuer_log, pgqueuer_statistics, bench_orders"))
        self.run(self.connection.execute("VACUUM ANALYZE pgqueuer"))

    async def one_async(self, task: str, argument: float) -> Any:
        """`queries.enqueue` with one job."""
        return await self.queries.enqueue(task, payload(argument))

    def fill(self, task: str, argument: float, count: int) -> None:
        """In batches."""
        for low in range(0, count, CHUNK):
            size = min(CHUNK, count - low)
            self.run(self.own.enqueue([task] * size, [payload(argument)] * size, [0] * size))
        self.run(self.connection.execute("VACUUM ANALYZE pgqueuer"))

    def bulk(self, count: int) -> float:
        """`queries.enqueue` with lists."""
        return timed(lambda: self.run(self.own.enqueue(["noop"] * count, [payload(number) for number in range(count)], [0] * count)))

    def transaction(self, count: int, jobs: int) -> float:
        """On the application's own asyncpg connection."""

        async def all_of_them() -> None:
            for number in range(count):
                async with self.connection.transaction():
                    await self.connection.execute(ORDER)
                    for job in range(jobs):
                        await self.own.enqueue("noop", payload(number + job))

        return timed(lambda: self.run(all_of_them()))

    def result(self, number: int) -> None:  # noqa: ARG002
        """Its CompletionWatcher tells how a job ended, not what it returned."""
        raise Unsupported("keeps no results; one can wait for a job's status")

    def workers(self, setting: str, slots: int) -> dict[str, Any]:
        """What `pgq run` does; that command cannot be told its log level with the versions here, and a line for each job is no default."""
        work = [sys.executable, str(HERE / "adapter.py"), "work"]
        if setting == "default":
            return {"commands": [work], "env": {}, "described": "one process as it comes, batches of 10, uvloop"}
        if setting not in {"best", "many", "processes", "single"}:
            raise Unsupported(f"has no setting {setting!r}")
        if setting == "many":
            # it demands that a batch is at most half of what may run at once
            return {"commands": [[*work, str(slots // 2), str(slots)]], "env": {}, "described": f"{slots} at once, uvloop"}
        if setting == "processes":
            return {"commands": [work] * slots, "env": {}, "described": f"{slots} processes as they come, batches of 10, uvloop"}
        processes = BEST_PROCESSES if setting == "best" else slots
        described = f"{processes} × batches of {BEST_BATCH}, uvloop"
        return {"commands": [[*work, str(BEST_BATCH)]] * processes, "env": {}, "described": described}

    def serving(self) -> int:
        """Sessions that have sent its LISTEN."""
        return self.run(self.connection.fetchval(SERVING))  # type: ignore[no-any-return]

    def left(self) -> int:
        """Rows that are queued or picked."""
        return self.run(self.connection.fetchval("SELECT count(*) FROM (SELECT FROM pgqueuer LIMIT 1) AS any_row"))  # type: ignore[no-any-return]


async def work(options: list[str]) -> None:
    """Run until SIGTERM; the options are a batch's size and the most tasks at once, its own defaults without them."""
    queuer = await application()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, queuer.shutdown.set)
    names = ("batch_size", "max_concurrent_tasks")
    await queuer.run(**{name: int(option) for name, option in zip(names, options, strict=False)})


if __name__ == "__main__":
    if sys.argv[1:2] == ["work"]:
        uvloop.run(work(sys.argv[2:]))
    else:
        serve(Pgqueuer())
