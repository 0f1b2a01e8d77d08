# /// script
# requires-python = ">=3.12"
# dependencies = ["oban==0.7.0", "psycopg[binary]==3.3.9", "uvloop==0.23.0", "SQLAlchemy[asyncio]==2.1.9"]
#
# [tool.bench]
# title = "Oban for Python"
# server = "postgresql"
# durability = "at least once, once a job has been executing for longer than `rescue_after` (5 min unless set), dead worker or not"
# ///
"""Oban for Python, the free edition: coroutines only. Its lifeline gives away what executes for too long, and asks for no heartbeat."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

import notes
import psycopg
from contending import SLOTS
from coroutines import AsyncContender, roll_back
from oban import Oban, worker
from oban.schema import install_sql
from protocol import serve

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

LOOKS = 5  # of the lifeline within the time that a job may execute: its defaults are 60 s and 300 s
KEPT = "SELECT (args->>'number')::int FROM oban_jobs WHERE state NOT IN ('completed', 'cancelled', 'discarded')"


@worker(queue="default")
class Work:
    """The job."""

    async def process(self, job: Any) -> None:
        """In a thread: what blocks would hold up the whole worker."""
        await asyncio.to_thread(notes.work, job.args["number"], job.args["seconds"], job.attempt)


class ObanContender(AsyncContender):
    """A client without queues."""

    distributions = ("oban", "psycopg", "uvloop", "SQLAlchemy")

    def prepare(self) -> None:
        """Install its schema, once in the database."""
        with psycopg.connect(self.dsn) as connection:
            if connection.execute("SELECT to_regclass('oban_jobs')").fetchone() == (None,):
                connection.execute(install_sql())

        async def begin() -> None:
            self.oban = Oban(pool=await Oban.create_pool(self.dsn))
            await self.oban.start()

        self.run(begin())

    def command(self) -> list[str]:
        """`oban start`; a job may execute for 300 s, unless a timeout is wanted."""
        command = [sys.executable, "-m", "oban", "start", "--dsn", self.worker_dsn, "--queues", f"default:{SLOTS}"]
        command += ["--cron-modules", "adapter"]  # the modules that it imports
        if self.timeout is None:
            return command
        config = self.directory / "oban.toml"
        config.write_text(f"[lifeline]\nrescue_after = {self.timeout}\ninterval = {self.timeout / LOOKS}\n")
        return [*command, "--config", str(config)]

    def now(self, numbers: list[int], seconds: float) -> None:
        """`Work.enqueue(…)`."""
        for number in numbers:
            self.run(Work.enqueue({"number": number, "seconds": seconds}))  # type: ignore[attr-defined]

    def later(self, numbers: list[int], delay: float) -> None:
        """`Work.enqueue(…, scheduled_in=…)`."""
        for number in numbers:
            self.run(Work.enqueue({"number": number, "seconds": 0.0}, scheduled_in=delay))  # type: ignore[attr-defined]

    def rolled_back(self, numbers: list[int]) -> None:
        """`Work.enqueue(…, conn=session)` with a session for coroutines, which is the only kind that it can join."""
        for number in numbers:

            async def enqueue(session: AsyncSession, number: int = number) -> None:
                await Work.enqueue({"number": number, "seconds": 0.0}, conn=session)  # type: ignore[attr-defined]

            self.run(roll_back(self.dsn, "psycopg", enqueue))

    def held(self) -> list[int]:
        """What is available, executing, scheduled or to be retried."""
        with psycopg.connect(self.dsn) as connection:
            return [number for (number,) in connection.execute(KEPT).fetchall()]


if __name__ == "__main__":
    import adapter  # itself, by the name that worker processes import: that of this script would be in the tasks' names

    serve(adapter.ObanContender())
