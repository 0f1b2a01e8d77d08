"""What isolation costs: one function called bare, and as a job in a child process, in a thread and in an event loop, one slot each.

There is no database in it: jobs are handed to the worker's pool as a claim would, and their outcomes taken as the link would. So
the figures are the way to the child and back, with the app's context, arguments, result, peak memory and CPU time of each job.
Wall time per job is what bounds one slot; CPU is that of the supervising process and of all below it. Thread and event loop keep no
account of memory, and share their process.
"""

from __future__ import annotations

import asyncio
import selectors
import sys
import time
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import app as bench_app
import harness

from jobrunner import clock
from jobrunner.jobs import ClaimedJob, Ending, Succeeded, Unsuccessful
from jobrunner.worker import procfs
from jobrunner.worker.pool import Pool, Shape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

APP = str(Path(__file__).with_name("app.py"))
NOWHERE = "postgresql://127.0.0.1:1/none"  # the tasks do not use it
WARM_UP = 300  # jobs before the clock starts: by then run times are known and batches have their size
MODES = {"process": Shape(1), "thread": Shape(1, threads=1), "async": Shape(1, coroutines=1)}
TASKS = {"noop": ("noop", "async_noop"), "1ms": ("work", "async_work")}


class Bench:
    """A pool with nothing around it."""

    def __init__(self, shape: Shape) -> None:
        self.selector = selectors.DefaultSelector()
        self.pool = Pool(APP, NOWHERE, shape, self.selector)
        self.pool.start()

    def run(self, jobs: Iterator[ClaimedJob], task: str, count: int) -> None:
        """Let the pool run `count` of the jobs, as the supervisor's loop does."""
        lane = next(lane for lane in self.pool.lanes if task in self.pool.tasks_of(lane))
        left, ended = count, 0
        while ended < count:
            now = clock.monotonic()
            self.pool.enforcer.check(self.pool.children(), now)
            lane.rebalance(now)
            self.pool.fork_missing(now)
            taken = min(left, lane.room(now))
            lane.backlog.extend(islice(jobs, taken))
            left -= taken
            lane.hand_out(now)
            for key, _ in self.selector.select(self.pool.next_deadline(clock.monotonic()) or 1.0):
                key.data()
            for one in self.pool.take_ended():
                if isinstance(one, Succeeded):
                    ended += 1
                elif isinstance(one, Unsuccessful) and one.ending is Ending.RELEASE:
                    left += 1  # a busy machine: it would have waited for more than a tenth of a second
                else:
                    raise SystemExit(f"a job did not succeed: {one}")

    def cpu(self) -> float:
        """Seconds that this process and all below it have used."""
        used = procfs.usage(self.pool.forking.process.pid)
        return time.process_time() + (used.cpu_ms / 1000 if used is not None else 0.0)


def claimed(task: str) -> Iterator[ClaimedJob]:
    """Jobs without end, as a claim gives them."""
    number = 0
    while True:
        number += 1
        yield ClaimedJob(number, 1, 1, 5, task, "default", f'{{"number": {number}}}', None, None, suspect=False)  # type: ignore[arg-type]


def measure(shape: Shape, task: str, count: int) -> tuple[float, float]:
    """Microseconds of wall time and of CPU for each job."""
    bench = Bench(shape)
    try:
        jobs = claimed(task)
        bench.run(jobs, task, WARM_UP)
        cpu, began = bench.cpu(), time.perf_counter()
        bench.run(jobs, task, count)
        wall, cpu = time.perf_counter() - began, bench.cpu() - cpu
    finally:
        bench.pool.halt("bench")
    return wall / count * 1e6, cpu / count * 1e6


def bare(function: Callable[[int], object], count: int) -> tuple[float, float]:
    """The same function, called in a loop."""
    cpu, began = time.process_time(), time.perf_counter()
    for number in range(count):
        function(number)
    return (time.perf_counter() - began) / count * 1e6, (time.process_time() - cpu) / count * 1e6


async def bare_async(function: Callable[[int], object], count: int) -> tuple[float, float]:
    """The same coroutine, awaited in a loop."""
    cpu, began = time.process_time(), time.perf_counter()
    for number in range(count):
        await function(number)  # type: ignore[misc]
    return (time.perf_counter() - began) / count * 1e6, (time.process_time() - cpu) / count * 1e6


def main() -> None:
    """Measure and print."""
    options = harness.arguments(__doc__ or "", jobs=5_000)
    figures: dict[str, list[float]] = {}
    for number in range(options.rounds):
        for label, (plain, coroutine) in TASKS.items():
            contestants: dict[str, Callable[[], tuple[float, float]]] = {
                "bare": lambda plain=plain: bare(getattr(bench_app, plain), options.jobs),  # type: ignore[misc]
                "bare_async": lambda coroutine=coroutine: asyncio.run(bare_async(getattr(bench_app, coroutine), options.jobs)),  # type: ignore[misc]
            }
            for mode, shape in MODES.items():
                task = coroutine if mode == "async" else plain
                contestants[mode] = lambda shape=shape, task=task: measure(shape, task, options.jobs)  # type: ignore[misc]
            for mode in list(contestants) if number % 2 == 0 else list(contestants)[::-1]:
                wall, cpu = contestants[mode]()
                figures.setdefault(f"{mode}_{label}_wall", []).append(wall)
                figures.setdefault(f"{mode}_{label}_cpu", []).append(cpu)
                print(f"round {number + 1}: {mode} {label}: {wall:,.1f} us wall, {cpu:,.1f} us CPU", file=sys.stderr)
    ratios = {
        f"process_to_{other}_{label}_{kind}": (f"process_{label}_{kind}", f"{other}_{label}_{kind}", 0.0)
        for label in TASKS
        for other in ("bare", "thread", "async")
        for kind in ("wall", "cpu")
    }
    harness.report("isolation", "us/job", figures, ratios, jobs=options.jobs)


if __name__ == "__main__":
    main()
