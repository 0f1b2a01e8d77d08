# /// script
# requires-python = ">=3.11"
# dependencies = ["pgqueuer==1.6.0", "asyncpg==0.32.0", "uvloop==0.23.0", "SQLAlchemy[asyncio]==2.1.9", "psycopg[binary]==3.3.9"]
#
# [tool.bench]
# title = "PgQueuer"
# server = "postgresql"
# durability = "at least once, within a heartbeat timeout and a dequeue timeout (30 s each unless set) of the worker's death"
# ///
"""PgQueuer: its worker with asyncpg, as its first page has it, and its synchronous calls with psycopg, as its Flask example has them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from datetime import timedelta
from typing import TYPE_CHECKING

import asyncpg
import notes
import pgqueuer
import psycopg
import uvloop
from contending import SLOTS
from coroutines import AsyncContender, roll_back
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver, SyncPsycopgDriver
from pgqueuer.queries import Queries, SyncQueries
from protocol import HERE, serve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from pgqueuer.models import Job
    from sqlalchemy.ext.asyncio import AsyncSession

KEPT = "SELECT payload FROM pgqueuer WHERE status IN ('queued', 'picked') AND entrypoint = 'work'"
BATCH = SLOTS // 2  # it demands that a batch is at most half of what may run at once


def payload(number: int, seconds: float) -> bytes:
    """It takes bytes only."""
    return json.dumps([number, seconds]).encode()


@contextlib.asynccontextmanager
async def application() -> AsyncIterator[PgQueuer]:
    """What `pgq run` is given."""
    connection = await asyncpg.connect(os.environ["BENCH_DSN"])
    try:
        queuer = PgQueuer.from_asyncpg_connection(connection)

        @queuer.entrypoint("work")
        async def work(job: Job) -> None:
            """The job, in a thread: it takes coroutines only, and has this for code that blocks."""
            number, seconds = json.loads(job.payload or b"[]")
            await asyncio.to_thread(notes.work, number, seconds, job.attempts)

        yield queuer
    finally:
        await connection.close()


class Pgqueuer(AsyncContender):
    """With both of its drivers."""

    distributions = ("pgqueuer", "asyncpg", "uvloop", "psycopg", "SQLAlchemy")

    def prepare(self) -> None:
        """Install its schema, once in the database."""

        async def install() -> None:
            connection = await asyncpg.connect(self.dsn)
            queries = Queries(AsyncpgDriver(connection))
            if not await queries.schema_is_installed():
                await queries.install()
            await connection.close()

        self.run(install())
        self.connection = psycopg.connect(self.dsn, autocommit=True)
        self.queries = SyncQueries(SyncPsycopgDriver(self.connection))

    def command(self) -> list[str]:
        """`pgqueuer.run`, which is `pgq run` without its command line: that one ends with an error with the typer of today."""
        return [sys.executable, str(HERE / "adapter.py"), "work"]

    def now(self, numbers: list[int], seconds: float) -> None:
        """`queries.enqueue(…)`."""
        for number in numbers:
            self.queries.enqueue("work", payload(number, seconds))

    def later(self, numbers: list[int], delay: float) -> None:
        """`queries.enqueue(…, execute_after=…)`."""
        for number in numbers:
            self.queries.enqueue("work", payload(number, 0.0), execute_after=timedelta(seconds=delay))

    def rolled_back(self, numbers: list[int]) -> None:
        """`queries.enqueue(…)` on the asyncpg connection of a session for coroutines: psycopg's has to be in autocommit."""
        for number in numbers:

            async def enqueue(session: AsyncSession, number: int = number) -> None:
                raw = await (await session.connection()).get_raw_connection()
                await Queries(AsyncpgDriver(raw.driver_connection)).enqueue("work", payload(number, 0.0))

            self.run(roll_back(self.dsn, "asyncpg", enqueue))

    def held(self) -> list[int]:
        """What is queued or picked."""
        return [json.loads(bytes(kept))[0] for (kept,) in self.connection.execute(KEPT).fetchall()]


async def work() -> None:
    """The worker; its heartbeat timeout is 30 s, unless a timeout is wanted."""
    timeout = os.environ.get("LOSSES_TIMEOUT")
    options = {"heartbeat_timeout": timedelta(seconds=float(timeout))} if timeout else {}
    await pgqueuer.run(application, max_concurrent_tasks=SLOTS, batch_size=BATCH, **options)


if __name__ == "__main__":
    if sys.argv[1:] == ["work"]:
        uvloop.run(work())  # as its command line does
    else:
        serve(Pgqueuer())
