"""How long short jobs wait that were claimed together with a long one, and are taken back from the child that runs it.

Two children; no-op jobs with a long one among them, all claimed at once. `behind` are jobs that were in the hands of the long
one's child when it began: how many milliseconds later they began elsewhere. `others` are those of the other child, for comparison.
No database is involved. Target: all within 200 ms while a slot is free.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import harness
from pools import Bench, claimed

from jobrunner import clock
from jobrunner.jobs import Succeeded
from jobrunner.worker.pool import Shape

APP = str(Path(__file__).with_name("app.py"))
SHORT_JOBS = 60  # beside the long one: what two children are given at once
WARM_UP = 300
TARGET_MS = 200
SHARES = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}


def sample(bench: Bench, seed: int) -> tuple[list[float], list[float]]:
    """Milliseconds from the long job's start to the end of each short one: of those that waited behind it, and of the others."""
    lane = bench.pool.lanes[0]
    jobs = claimed("nap", args='{"seconds": 0}', id=0)
    batch = [next(jobs)._replace(id=seed * 1000 + number) for number in range(1, SHORT_JOBS + 1)]
    long = next(jobs)._replace(id=seed * 1000, args='{"seconds": 0.6}')
    batch.insert(random.Random(seed).randrange(SHORT_JOBS // 2), long)  # noqa: S311  a place in a row
    lane.backlog.extend(batch)
    began, behind = 0.0, set[int]()
    ends: dict[int, float] = {}
    while len(ends) <= SHORT_JOBS:
        ended = bench.turn()
        now = clock.monotonic()
        ends.update({one.id: now for one in ended if isinstance(one, Succeeded)})
        for child in lane.children.values():
            run = child.runs.get(long.id)
            if run is not None and run.since and not began:
                began, behind = run.since, set(child.runs) - {long.id}
    late = {number: (end - began) * 1000 for number, end in ends.items() if number != long.id and end > began}
    return [ms for number, ms in late.items() if number in behind], [ms for number, ms in late.items() if number not in behind]


def percentile(values: list[float], share: float) -> float:
    """The value below which that share of the values lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def main() -> None:
    """Measure and print."""
    options = harness.arguments(__doc__ or "", samples=30)
    figures: dict[str, list[float]] = {}
    for number in range(options.rounds):
        bench = Bench(APP, Shape(2))
        try:
            bench.run(claimed("nap", args='{"seconds": 0}'), "nap", WARM_UP)
            samples = [sample(bench, seed) for seed in range(1, options.samples + 1)]
        finally:
            bench.close()
        for what, parts in zip(("behind", "others"), zip(*samples, strict=True), strict=True):
            values = [ms for part in parts for ms in part]
            for name, share in SHARES.items():
                figures.setdefault(f"{what}_{name}", []).append(percentile(values, share))
            figures.setdefault(f"{what}_count", []).append(len(values))
        print(f"round {number + 1}: behind a long job: at most {figures['behind_max'][-1]:.0f} ms", file=sys.stderr)
    harness.report("fairness", "ms", figures, {}, targets={"behind_max": TARGET_MS}, samples=options.samples)


if __name__ == "__main__":
    main()
