"""What isolation costs: one function called bare, and as a job in a child process, in a thread and in an event loop, one slot each.

There is no database in it: jobs are handed to the worker's pool as a claim would, and their outcomes taken as the link would. So
the figures are the way to the child and back, with the app's context, arguments, result, peak memory and CPU time of each job.
`limited` is `process` with a memory_limit on each job.
Wall time per job is what bounds one slot; CPU is that of the supervising process and of all below it. Thread and event loop keep no
account of memory, and share their process.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import app as bench_app
import harness
from pools import Bench, claimed

from jobrunner.worker.pool import Shape

if TYPE_CHECKING:
    from collections.abc import Callable

APP = str(Path(__file__).with_name("app.py"))
WARM_UP = 300  # jobs before the clock starts: by then run times are known and batches have their size
MEMORY_LIMIT = '{"memory": 1000000000}'  # of the jobs of `limited`: in its columns, and never reached
MODES = {"process": Shape(1), "limited": Shape(1), "thread": Shape(1, threads=1), "async": Shape(1, coroutines=1)}
TASKS = {"noop": ("noop", "async_noop"), "1ms": ("work", "async_work")}


def measure(mode: str, task: str, count: int) -> tuple[float, float]:
    """Microseconds of wall time and of CPU for each job."""
    bench = Bench(APP, MODES[mode])
    try:
        jobs = claimed(task, limits=MEMORY_LIMIT if mode == "limited" else None)
        bench.run(jobs, task, WARM_UP)
        cpu, began = bench.cpu(), time.perf_counter()
        bench.run(jobs, task, count)
        wall, cpu = time.perf_counter() - began, bench.cpu() - cpu
    finally:
        bench.close()
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
            for mode in MODES:
                task = coroutine if mode == "async" else plain
                contestants[mode] = lambda mode=mode, task=task: measure(mode, task, options.jobs)  # type: ignore[misc]
            for mode in list(contestants) if number % 2 == 0 else list(contestants)[::-1]:
                wall, cpu = contestants[mode]()
                figures.setdefault(f"{mode}_{label}_wall", []).append(wall)
                figures.setdefault(f"{mode}_{label}_cpu", []).append(cpu)
                print(f"round {number + 1}: {mode} {label}: {wall:,.1f} us wall, {cpu:,.1f} us CPU", file=sys.stderr)
    ratios = {
        f"process_to_{other}_{label}_{kind}": (f"process_{label}_{kind}", f"{other}_{label}_{kind}", 0.0)
        for label in TASKS
        for other in ("bare", "limited", "thread", "async")
        for kind in ("wall", "cpu")
    }
    harness.report("isolation", "us/job", figures, ratios, jobs=options.jobs)


if __name__ == "__main__":
    main()
