# /// script
# requires-python = ">=3.11"
# dependencies = ["dramatiq[redis]==2.2.1", "hiredis==3.5.0"]
#
# [tool.bench]
# title = "Dramatiq + Redis"
# server = "redis"
# durability = "less: Redis appends to its log every second, so a crash may lose the last second"
# ///
"""Dramatiq on Redis: acknowledged after the task has run; two processes of eight threads as it comes."""

from __future__ import annotations

import os
import sys
from typing import Any

import dramatiq
import marks
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend
from protocol import Adapter, Unsupported, serve

RESULT_PATIENCE = 60_000  # milliseconds
PREFETCH = {"dramatiq_queue_prefetch": "1000"}  # messages; as it comes twice the number of threads, which short tasks wait for

broker = RedisBroker(url=os.environ["BENCH_REDIS"])
backend = RedisBackend(url=os.environ["BENCH_REDIS"])
broker.add_middleware(Results(backend=backend))
dramatiq.set_broker(broker)


@dramatiq.actor(actor_name="noop")
def noop(argument: float) -> None:  # noqa: ARG001
    """Nothing."""
    marks.mark()


@dramatiq.actor(actor_name="kept", store_results=True)
def kept(argument: float) -> float:
    """Nothing, with a result that is kept."""
    marks.mark()
    return argument


@dramatiq.actor(actor_name="nap")
def nap(argument: float) -> None:
    """Waits."""
    marks.nap(argument)


@dramatiq.actor(actor_name="spin")
def spin(argument: float) -> None:
    """Uses the CPU."""
    marks.spin(argument)


@dramatiq.actor(actor_name="stamp")
def stamp(argument: float) -> None:
    """Tells how long ago it was sent."""
    marks.stamp(argument)


class DramatiqPeer(Adapter):
    """With redis-py."""

    distributions = ("dramatiq", "redis", "hiredis")

    def empty(self) -> None:
        """Empty its database."""
        broker.client.flushdb()

    def one(self, task: str, argument: float) -> Any:
        """`actor.send(argument)`."""
        broker.get_actor(task).send(argument)

    def result(self, number: int) -> None:
        """`message.get_result`."""
        kept.send(number).get_result(backend=backend, block=True, timeout=RESULT_PATIENCE)

    def workers(self, setting: str, slots: int) -> dict[str, Any]:
        """`dramatiq`."""
        command = [sys.executable, "-m", "dramatiq", "adapter"]
        choices = {
            "default": ([], {}, "as many processes as cores × 8 threads, as it comes"),
            "best": ([], PREFETCH, "as many processes as cores × 8 threads, prefetch 1,000"),
            "many": (["--processes", "1", "--threads", str(slots)], PREFETCH, f"{slots} threads of one process, prefetch 1,000"),
            "processes": (["--processes", str(slots), "--threads", "2"], {}, f"{slots} processes of 2 threads"),
        }
        if setting not in choices:
            raise Unsupported(f"has no setting {setting!r}")
        options, env, described = choices[setting]
        return {"commands": [[*command, *options]], "env": env, "described": described}

    def left(self) -> int:
        """Messages that wait, or were fetched and are not acknowledged."""
        return int(broker.do_qsize("default"))


if __name__ == "__main__":
    import adapter  # itself, by the name that worker processes import: that of this script would be in the tasks' names

    serve(adapter.DramatiqPeer())
