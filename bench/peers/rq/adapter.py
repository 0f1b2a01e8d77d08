# /// script
# requires-python = ">=3.11"
# dependencies = ["rq==3.0.0", "redis==8.1.0", "hiredis==3.5.0"]
#
# [tool.bench]
# title = "RQ"
# server = "redis"
# durability = "less: Redis appends to its log every second, so a crash may lose the last second"
# ///
"""RQ on Redis: a process forked for each job as it comes; its SimpleWorker runs jobs in the worker itself, with no isolation."""

from __future__ import annotations

import sys
import time
from typing import Any

import redis
import tasks
from protocol import HERE, Adapter, Unsupported, serve, timed
from rq import Queue
from rq.registry import StartedJobRegistry

RESULT_PATIENCE = 60  # seconds
LOOK = 0.002  # seconds between two looks for a result
BEST_PROCESSES = 2
CHUNK = 1_000  # jobs of one pipeline
RESULT_TTL = 500  # seconds; its default


class Rq(Adapter):
    """With redis-py."""

    distributions = ("rq", "redis", "hiredis")

    def prepare(self) -> None:
        """Connect."""
        self.client = redis.Redis.from_url(self.redis)
        self.queue = Queue(connection=self.client)
        self.started = StartedJobRegistry(queue=self.queue)

    def empty(self) -> None:
        """Empty its database."""
        self.client.flushdb()

    def one(self, task: str, argument: float) -> Any:
        """`queue.enqueue(task, argument)`."""
        return self.queue.enqueue(getattr(tasks, task), argument)

    def fill(self, task: str, argument: float, count: int) -> None:
        """In pipelines."""
        for low in range(0, count, CHUNK):
            self._many(task, [argument] * min(CHUNK, count - low))

    def _many(self, task: str, arguments: list[float]) -> None:
        self.queue.enqueue_many([Queue.prepare_data(getattr(tasks, task), (argument,), result_ttl=RESULT_TTL) for argument in arguments])

    def bulk(self, count: int) -> float:
        """`enqueue_many`."""
        return timed(lambda: self._many("noop", [float(number) for number in range(count)]))

    def result(self, number: int) -> None:
        """The job's latest result, looked for every 2 ms: it has no call that waits without a worker's help."""
        job = self.queue.enqueue(tasks.kept, number)
        end = time.monotonic() + RESULT_PATIENCE
        while job.latest_result() is None:
            if time.monotonic() > end:
                raise TimeoutError("no result")
            time.sleep(LOOK)

    def workers(self, setting: str, slots: int) -> dict[str, Any]:
        """`rq worker`, `rq worker-pool`."""
        command = [sys.executable, "-m", "rq.cli"]
        tail = ["--url", self.redis, "--path", f"{HERE}", "--quiet"]
        if setting == "default":
            return {"commands": [[*command, "worker", *tail]], "env": {}, "described": "one worker as it comes, a fork for each job"}
        if setting in {"best", "processes"}:
            one = [*command, "worker", "--worker-class", "rq.SimpleWorker", *tail]
            processes = BEST_PROCESSES if setting == "best" else slots
            return {"commands": [one] * processes, "env": {}, "described": f"{processes} × SimpleWorker"}
        raise Unsupported("runs one job at a time in each process")

    def left(self) -> int:
        """Jobs that wait or have started."""
        return len(self.queue) + len(self.started.get_job_ids(cleanup=False))


if __name__ == "__main__":
    serve(Rq())
