"""Owns the conversation between the bench and a contender's adapter: one JSON line in, one JSON line out, until stdin ends.

It must not measure workers (the bench does, from outside, alike for all) nor need anything but the standard library: it runs in the
environment of each peer. An adapter subclasses `Adapter` and calls `serve`; a method that it does not have is something the peer cannot do.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import json
import os
import platform
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

HERE = Path(sys.argv[0]).resolve().parent
"""The adapter's own directory: where its worker processes start."""


class Unsupported(Exception):
    """The peer has no such thing; the reason stands in the published table."""


class Adapter:
    """What a contender can be asked to do. Every enqueue is committed, or accepted by the broker, when the method returns.

    Attributes:
        distributions: whose versions are reported.
        dsn, worker_dsn: the contender's own PostgreSQL database, for producers and for workers (whose BENCH_DSN it is).
        redis: the address of the bench's Redis, `unix://…`; empty when there is none.
    """

    distributions: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.dsn = os.environ["BENCH_DSN"]
        self.worker_dsn = os.environ["BENCH_WORKER_DSN"]
        self.redis = os.environ.get("BENCH_REDIS", "")

    # -- set-up

    def prepare(self) -> None:
        """Make schema and connections; asked once."""

    def empty(self) -> None:
        """Forget all jobs, waiting and finished."""
        raise NotImplementedError

    def versions(self) -> dict[str, str]:
        """Of Python and of what is installed for the contender."""
        return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in self.distributions}}

    # -- producers

    def one(self, task: str, argument: float) -> Any:
        """Enqueue one job of `noop`, `nap`, `spin` or `stamp`, by the plain call that a request handler would make."""
        raise NotImplementedError

    def fill(self, task: str, argument: float, count: int) -> None:
        """Enqueue many jobs, by whatever is fastest; not measured."""
        for _ in range(count):
            self.one(task, argument)

    def single(self, count: int) -> float:
        """Seconds that so many plain calls take, one after the other."""
        return timed(lambda: [self.one("noop", number) for number in range(count)])

    def threads(self, count: int, threads: int) -> float:
        """Seconds that so many plain calls take in all, from several threads at once."""
        return in_threads(lambda share: [self.one("noop", number) for number in range(share)], count, threads)

    def bulk(self, count: int) -> float:  # noqa: ARG002  what every adapter takes
        """Seconds that the call for many jobs takes."""
        raise Unsupported("has no call for many jobs at once")

    def transaction(self, count: int, jobs: int) -> float:  # noqa: ARG002
        """Seconds of so many transactions, each with one row of the application's own and so many jobs."""
        raise Unsupported("cannot enqueue in the application's transaction")

    def paced(self, task: str, count: int, pause: float) -> None:
        """One job every `pause` seconds, by plain calls; the argument is the monotonic clock at the call."""
        due = time.monotonic()
        for _ in range(count):
            self.one(task, time.monotonic())
            due += pause
            time.sleep(max(0.0, due - time.monotonic()))

    def roundtrip(self, count: int, pause: float) -> list[float]:
        """Seconds from the call of enqueue until the result is here, of each of so many no-op jobs."""
        taken = []
        for number in range(count):
            taken.append(timed(lambda number=number: self.result(number)))  # type: ignore[misc]
            time.sleep(pause)
        return taken

    def result(self, number: int) -> None:  # noqa: ARG002
        """Enqueue one no-op job and wait for its result."""
        raise Unsupported("does not keep results")

    # -- consumers

    def workers(self, setting: str, slots: int) -> dict[str, Any]:
        """How workers are started: `commands` (argument lists), `env`, and `described` in words.

        Args:
            setting: `default`, as the peer's first page has it; `best`, the fastest for short jobs that its documentation has; `many`, as
                many jobs at once as `slots` says; `processes`, as many processes, each at its best for jobs that compute.
            slots: for `many` and `processes`.
        """
        raise NotImplementedError

    def left(self) -> int:
        """Jobs that are not finished yet; at least one while any is waiting, reserved, or running. May stop counting at one."""
        raise NotImplementedError

    def serving(self) -> int:
        """Workers that are ready for jobs."""
        raise Unsupported("does not tell how many workers are ready")

    def overclaimed(self) -> int:
        """Finished jobs that were claimed more than once."""
        raise Unsupported("does not keep how often a job was claimed")


class AsyncAdapter(Adapter):
    """For a peer whose calls are coroutines; several threads become as many tasks of one loop."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """The coroutine's value."""
        return self.loop.run_until_complete(coroutine)

    async def one_async(self, task: str, argument: float) -> Any:
        """As `one`."""
        raise NotImplementedError

    def one(self, task: str, argument: float) -> Any:
        """As in Adapter."""
        return self.run(self.one_async(task, argument))

    async def _many(self, count: int) -> None:
        for number in range(count):
            await self.one_async("noop", number)

    def single(self, count: int) -> float:
        """As in Adapter."""
        return timed(lambda: self.run(self._many(count)))

    def threads(self, count: int, threads: int) -> float:
        """As in Adapter, with coroutines."""

        async def all_of_them() -> None:
            await asyncio.gather(*(self._many(count // threads) for _ in range(threads)))

        return timed(lambda: self.run(all_of_them()))


def timed(work: Callable[[], object]) -> float:
    """Seconds that it takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def in_threads(work: Callable[[int], object], count: int, threads: int) -> float:
    """Seconds until so many threads have each done their share; they begin together.

    Raises:
        BaseException: what the first of them raised.
    """
    barrier = threading.Barrier(threads + 1)
    raised: list[BaseException] = []

    def one() -> None:
        barrier.wait()
        try:
            work(count // threads)
        except BaseException as error:  # noqa: BLE001  raised again below, in the thread that asked
            raised.append(error)

    running = [threading.Thread(target=one) for _ in range(threads)]
    for thread in running:
        thread.start()
    barrier.wait()
    began = time.perf_counter()
    for thread in running:
        thread.join()
    if raised:
        raise raised[0]
    return time.perf_counter() - began


def serve(adapter: Adapter) -> NoReturn:
    """Answer until stdin ends. What anybody prints goes to stderr: stdout belongs to the answers."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer: dict[str, Any] = {"answer": getattr(adapter, request.pop("do"))(**request)}
        except Unsupported as reason:
            answer = {"unsupported": str(reason)}
        except Exception as error:  # noqa: BLE001  told to the bench, which ends or goes on
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    os._exit(0)  # whatever threads and pools the peer has left open
