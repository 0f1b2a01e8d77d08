"""How soon a killed child is replaced: from SIGKILL of a child that runs a job to the moment when its successor has run one.

The application imports 300 modules of its own, Flask and SQLAlchemy. `forked` is when the worker knows the successor's process,
`ready` when a job of its own has been through it and back. No database is involved: nothing of this waits for one.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import harness
from pools import Bench, claimed

from bench.largeapp import MODULES, write_app
from jobrunner.jobs import Succeeded
from jobrunner.worker.pool import Shape

SHARES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
TARGET_P95_MS = 50


def sample(bench: Bench, number: int) -> tuple[float, float]:
    """Kill one child. Returns milliseconds until the next is forked, and until it has run a job."""
    lane = bench.pool.lanes[0]
    lane.backlog.append(next(claimed("hold", id=2 * number + 1)))
    while not any(child.runs for child in lane.children.values()):
        bench.turn()
    victim = next(child for child in lane.children.values() if child.runs)
    while not bench.pool.take_words()[0]:
        bench.turn()
    killed = time.perf_counter()
    os.kill(victim.pid or 0, signal.SIGKILL)
    lane.backlog.append(next(claimed("noop", id=2 * number + 2)))
    forked = 0.0
    while True:
        ended = bench.turn()
        if not forked and any(child.pid not in {None, victim.pid} for child in lane.children.values()):
            forked = time.perf_counter()
        if any(isinstance(one, Succeeded) for one in ended):
            return (forked - killed) * 1000, (time.perf_counter() - killed) * 1000


def percentile(values: list[float], share: float) -> float:
    """The value below which that share of the values lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def main() -> None:
    """Measure and print."""
    options = harness.arguments(__doc__ or "", kills=200)
    figures: dict[str, list[float]] = {}
    logging.getLogger("jobrunner.worker").setLevel(logging.CRITICAL)  # each kill would be a line
    with tempfile.TemporaryDirectory() as directory:
        app = write_app(Path(directory))
        for number in range(options.rounds):
            bench = Bench(app, Shape(1))
            try:
                samples = [sample(bench, number) for number in range(options.kills)]
            finally:
                bench.close()
            for what, values in zip(("forked", "ready"), zip(*samples, strict=True), strict=True):
                for name, share in SHARES.items():
                    figures.setdefault(f"{what}_{name}", []).append(percentile(list(values), share))
            print(
                f"round {number + 1}: ready p50 {figures['ready_p50'][-1]:.1f} ms, p95 {figures['ready_p95'][-1]:.1f} ms", file=sys.stderr
            )
    harness.report("replacement", "ms", figures, {}, targets={"ready_p95": TARGET_P95_MS}, kills=options.kills, modules=MODULES)


if __name__ == "__main__":
    main()
