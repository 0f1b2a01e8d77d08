# /// script
# requires-python = ">=3.11"
# dependencies = ["huey==3.5.4", "redis==8.1.0", "hiredis==3.5.0"]
#
# [tool.bench]
# title = "Huey + Redis"
# server = "redis"
# durability = "less: at most once, a job is gone from Redis before it runs; and Redis appends to its log every second"
# ///
"""Huey on Redis: at most once; a job leaves the queue before it runs."""

from __future__ import annotations

import os
import sys
from typing import Any

import marks
from huey import RedisHuey
from protocol import Adapter, Unsupported, serve

RESULT_PATIENCE = 60  # seconds
BEST_PROCESSES, BEST_THREADS = 2, 2

huey = RedisHuey("bench", url=os.environ["BENCH_REDIS"])


@huey.task(name="noop")
def noop(argument: float) -> None:  # noqa: ARG001
    """Nothing."""
    marks.mark()


@huey.task(name="kept")
def kept(argument: float) -> float:
    """Nothing, with a result that is kept."""
    marks.mark()
    return argument


@huey.task(name="nap")
def nap(argument: float) -> None:
    """Waits."""
    marks.nap(argument)


@huey.task(name="spin")
def spin(argument: float) -> None:
    """Uses the CPU."""
    marks.spin(argument)


@huey.task(name="stamp")
def stamp(argument: float) -> None:
    """Tells how long ago it was enqueued."""
    marks.stamp(argument)


TASKS: dict[str, Any] = {"noop": noop, "nap": nap, "spin": spin, "stamp": stamp}


class HueyPeer(Adapter):
    """With redis-py."""

    distributions = ("huey", "redis", "hiredis")

    def empty(self) -> None:
        """Empty its database."""
        huey.storage.conn.flushdb()

    def one(self, task: str, argument: float) -> Any:
        """A call of the task."""
        return TASKS[task](argument)

    def result(self, number: int) -> None:
        """`result(blocking=True)`."""
        kept(number)(blocking=True, timeout=RESULT_PATIENCE, backoff=1.0, max_delay=0.002)

    def workers(self, setting: str, slots: int) -> dict[str, Any]:
        """`huey_consumer`."""
        command = [sys.executable, "-m", "huey.bin.huey_consumer", "adapter.huey", "--quiet"]
        choices = {
            "default": ([command], "one worker thread, as it comes"),
            "best": ([[*command, "--workers", str(BEST_THREADS)]] * BEST_PROCESSES, f"{BEST_PROCESSES} processes × {BEST_THREADS} threads"),
            "many": ([[*command, "--workers", str(slots)]], f"{slots} threads of one process"),
            "processes": ([[*command, "--worker-type", "process", "--workers", str(slots)]], f"{slots} worker processes"),
        }
        if setting not in choices:
            raise Unsupported(f"has no setting {setting!r}")
        commands, described = choices[setting]
        return {"commands": commands, "env": {}, "described": described}

    def left(self) -> int:
        """Jobs that wait; one that runs is not among them."""
        return int(huey.pending_count())


if __name__ == "__main__":
    import adapter  # itself, by the name that worker processes import: that of this script would be in the tasks' names

    serve(adapter.HueyPeer())
