# /// script
# requires-python = ">=3.11"
# dependencies = ["celery[redis]==5.7.0", "hiredis==3.5.0"]
#
# [tool.bench]
# title = "Celery + Redis"
# server = "redis"
# durability = "less: Redis appends to its log every second, so a crash may lose the last second; a message is gone before its task has run"
# ///
"""Celery on Redis: acknowledged before the task runs, as it comes; results are kept where a result is asked for only."""

from __future__ import annotations

import os
import sys
from typing import Any

import marks
import redis
from addresses import for_kombu
from celery import Celery
from protocol import Adapter, Unsupported, serve

RESULT_PATIENCE = 60  # seconds
BEST_PROCESSES = 2
PREFETCH = 64  # messages; its optimizing guide says so for short tasks
QUEUE = "celery"
LATE = "late"  # what is said to workers that acknowledge a message when its task has run
UNACKED = "unacked"

url = for_kombu(os.environ["BENCH_REDIS"])
app = Celery("bench", broker=url, backend=url)
app.conf.update(broker_connection_retry_on_startup=True, task_ignore_result=True)
if os.environ.get("BENCH_BEST"):
    app.conf.update(worker_prefetch_multiplier=PREFETCH, worker_send_task_events=False, task_acks_late=os.environ["BENCH_BEST"] == LATE)


@app.task(name="noop")
def noop(argument: float) -> None:  # noqa: ARG001
    """Nothing."""
    marks.mark()


@app.task(name="kept", ignore_result=False)
def kept(argument: float) -> float:
    """Nothing, with a result that is kept."""
    marks.mark()
    return argument


@app.task(name="nap")
def nap(argument: float) -> None:
    """Waits."""
    marks.nap(argument)


@app.task(name="spin")
def spin(argument: float) -> None:
    """Uses the CPU."""
    marks.spin(argument)


@app.task(name="stamp")
def stamp(argument: float) -> None:
    """Tells how long ago it was sent."""
    marks.stamp(argument)


class CeleryPeer(Adapter):
    """With redis-py."""

    distributions = ("celery", "redis", "kombu", "hiredis")

    def prepare(self) -> None:
        """Connect."""
        self.client = redis.Redis.from_url(self.redis)
        self.client.ping()

    def empty(self) -> None:
        """Empty its database."""
        self.client.flushdb()

    def one(self, task: str, argument: float) -> Any:
        """`task.delay(argument)`."""
        return app.tasks[task].delay(argument)

    def fill(self, task: str, argument: float, count: int) -> None:
        """Over one producer, which is fastest."""
        with app.producer_pool.acquire(block=True) as producer:
            for _ in range(count):
                app.tasks[task].apply_async((argument,), producer=producer)

    def result(self, number: int) -> None:
        """`AsyncResult.get`."""
        kept.delay(number).get(timeout=RESULT_PATIENCE, interval=0.002)

    def workers(self, setting: str, slots: int) -> dict[str, Any]:
        """`celery worker`."""
        command = [sys.executable, "-m", "celery", "--app", "adapter", "worker", "--loglevel", "ERROR"]
        best = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        solos = [[*command, "--pool", "solo", *best, "--hostname", f"bench{number}@%h"] for number in range(BEST_PROCESSES)]
        described = f"{BEST_PROCESSES} × solo pool, prefetch {PREFETCH}, no gossip, mingle or heartbeat"
        choices = {
            "default": ([command], {}, "prefork, as many processes as cores"),
            "best": (solos, {"BENCH_BEST": "1"}, described),
            "late": (solos, {"BENCH_BEST": LATE}, f"{described}, acks_late"),
            "many": ([[*command, "--pool", "threads", "--concurrency", str(slots)]], {}, f"{slots} threads"),
            "processes": ([[*command, "--pool", "prefork", "--concurrency", str(slots)]], {}, f"prefork, {slots} processes"),
        }
        if setting not in choices:
            raise Unsupported(f"has no setting {setting!r}")
        commands, env, described = choices[setting]
        return {"commands": commands, "env": env, "described": described}

    def left(self) -> int:
        """Messages that wait or are not acknowledged; one that is, and still runs, is not among them."""
        return int(self.client.llen(QUEUE)) + int(self.client.hlen(UNACKED))  # type: ignore[arg-type]


if __name__ == "__main__":
    import adapter  # itself, by the name that worker processes import: that of this script would be in the tasks' names

    serve(adapter.CeleryPeer())
