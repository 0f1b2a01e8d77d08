# /// script
# requires-python = ">=3.11"
# dependencies = ["rq==3.0.0", "redis==8.1.0", "hiredis==3.5.0", "SQLAlchemy==2.1.9", "psycopg[binary]==3.3.9"]
#
# [tool.bench]
# title = "RQ"
# server = "redis"
# durability = "less: a killed worker's jobs, and those over their timeout (180 s unless set), fail, and are repeated with `Retry` only"
# ///
"""RQ on Redis as it comes. It gives nobody a job that somebody else has: its job timeout ends a job, which has then failed."""

from __future__ import annotations

import math
import sys
from datetime import timedelta

import notes
import redis
from contending import SLOTS, Contender, roll_back
from protocol import serve
from rq import Queue
from rq.job import Job
from rq.registry import BaseRegistry, FailedJobRegistry, ScheduledJobRegistry, StartedJobRegistry


class Rq(Contender):
    """With redis-py."""

    distributions = ("rq", "redis", "hiredis")

    def prepare(self) -> None:
        """Begin with an empty database."""
        self.client = redis.Redis.from_url(self.redis)
        self.client.flushdb()
        # its default is 180 s; whole seconds, because it is an alarm
        self.queue = Queue(connection=self.client, default_timeout=None if self.timeout is None else math.ceil(self.timeout))

    def command(self) -> list[str]:
        """`rq worker-pool`: a process forked for each job, and a scheduler, as it comes."""
        return [sys.executable, "-m", "rq.cli", "worker-pool", "--num-workers", str(SLOTS), "--url", self.redis]

    def now(self, numbers: list[int], seconds: float) -> None:
        """`queue.enqueue(…)`."""
        for number in numbers:
            self.queue.enqueue(notes.work, number, seconds)

    def later(self, numbers: list[int], delay: float) -> None:
        """`queue.enqueue_in(…)`."""
        for number in numbers:
            self.queue.enqueue_in(timedelta(seconds=delay), notes.work, number, 0.0)

    def rolled_back(self, numbers: list[int]) -> None:
        """`queue.enqueue(…)` amid a transaction."""
        for number in numbers:
            roll_back(self.dsn, lambda _, number=number: self.queue.enqueue(notes.work, number, 0.0))  # type: ignore[misc]

    def held(self) -> list[int]:
        """What waits, has started, or has failed: `rq requeue` would run the last again. In the order in which a job moves."""
        found = self._kept_by(ScheduledJobRegistry) + self.queue.get_job_ids() + self.queue.intermediate_queue.get_job_ids()
        found += self._kept_by(StartedJobRegistry) + self._kept_by(FailedJobRegistry)
        jobs = Job.fetch_many(list(dict.fromkeys(found)), connection=self.client)
        return [job.args[0] for job in jobs if job is not None]

    def _kept_by(self, kind: type[BaseRegistry]) -> list[str]:
        # without its clean-up, which is the worker's maintenance
        return [name.split(":")[0] for name in kind(queue=self.queue).get_job_ids(cleanup=False)]


if __name__ == "__main__":
    serve(Rq())
