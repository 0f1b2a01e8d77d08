"""Claims and finishes beside ten million finished jobs, and with no history: two databases alike, each on a server of its own, in turn.

A client in each claims and finishes batch by batch, without task code; the two take turns, so that whatever else happens happens to both.
Milliseconds of a claim and of a finish, half of them and 99 of 100, and microseconds of CPU for each job of client and server process,
which a disk that others use does not change. Target: with history at most 1.1 times what it is without. Needs Linux.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import time
from datetime import timedelta
from pathlib import Path

import harness
import history_set
import psycopg

from jobrunner import clock
from jobrunner.jobs import Succeeded
from jobrunner.store import Floor, Store

ROWS = 10_000_000
SIZES = {1: 1500, 20: 600, 300: 200}  # jobs of a batch → how many batches in a round
WARM_UP = 20  # batches before them: plans are made, pages come into memory
TASKS = tuple(f"shop.task_{number}" for number in range(history_set.TASKS))
QUEUE = "measured"  # a queue of our own: the set of data has jobs that wait in others
FACTS = {
    "name": "bench", "host": "bench", "pid": 1, "kind": "test", "version": "0", "queues": [QUEUE], "tasks": list(TASKS), "slots": 1,
}  # fmt: skip
TARGET = 1.1


class Client:
    """A worker in one of the databases, and what its batches took."""

    def __init__(self, dsn: str, stack: contextlib.ExitStack) -> None:
        self.connection = stack.enter_context(psycopg.connect(dsn, autocommit=True, prepare_threshold=None))
        self.store = Store(self.connection)
        self.worker = self.store.register_worker(FACTS, timedelta(hours=4))

    def begin(self, count: int) -> None:
        """So many jobs that are due, and nothing left to write or to clean up from before."""
        self.connection.execute(
            "INSERT INTO jobrunner.jobs (task, queue, args) SELECT (%s::text[])[1 + n %% %s], %s, jsonb_build_object('number', n)"
            " FROM generate_series(1, %s) AS n",
            (list(TASKS), len(TASKS), QUEUE, count),
        )
        self.connection.execute("VACUUM ANALYZE jobrunner.jobs")
        self.connection.execute("CHECKPOINT")
        self.floor: Floor | None = None  # as a worker has it: not from the start of the queue, over all that was taken
        self.claims: list[float] = []
        self.finishes: list[float] = []
        self.cpu: list[float] = []

    def cpu_seconds(self) -> float:
        """What this process and the server's process for it have used so far."""
        schedstat = Path(f"/proc/{self.connection.info.backend_pid}/schedstat").read_text()
        return time.process_time() + int(schedstat.split()[0]) / 1e9

    def batch(self, size: int) -> None:
        """Claim and finish so many jobs."""
        cpu, began = self.cpu_seconds(), time.perf_counter()
        claimed = self.store.claim(self.worker, TASKS, QUEUE, 0, size, self.floor)
        between, now = time.perf_counter(), clock.monotonic()
        self.store.finish([Succeeded(job.id, job.lease, '{"ok": true}', job.id % 700, job.id % 50, now) for job in claimed])
        ended = time.perf_counter()
        if len(claimed) != size:
            raise SystemExit(f"{len(claimed)} jobs in a batch of {size}")
        self.floor = Floor(claimed[-1].run_at, claimed[-1].id)
        self.claims.append((between - began) * 1000)
        self.finishes.append((ended - between) * 1000)
        self.cpu.append((self.cpu_seconds() - cpu) * 1e6 / size)

    def found(self) -> dict[str, float]:
        """Of the batches after the first ones."""
        claims, finishes, cpu = self.claims[WARM_UP:], self.finishes[WARM_UP:], self.cpu[WARM_UP:]
        return {
            "claim_p50_ms": statistics.median(claims),
            "claim_p99_ms": statistics.quantiles(claims, n=100)[-1],
            "finish_p50_ms": statistics.median(finishes),
            "finish_p99_ms": statistics.quantiles(finishes, n=100)[-1],
            "cpu_us_per_job": statistics.median(cpu),
        }


def main() -> None:
    """Build, measure, print."""
    options = harness.arguments(__doc__ or "", rows=ROWS)
    figures: dict[str, list[float]] = {}
    with contextlib.ExitStack() as stack:
        full, empty = (stack.enter_context(harness.database()) for _ in range(2))
        history_set.build(full, options.rows)
        clients = {"full": Client(full, stack), "empty": Client(empty, stack)}
        for round_number in range(options.rounds):
            for size, batches in SIZES.items():
                for client in clients.values():
                    client.begin(size * (batches + WARM_UP))
                for number in range(batches + WARM_UP):
                    for name in list(clients)[:: 1 if number % 2 else -1]:
                        clients[name].batch(size)
                for name, client in clients.items():
                    for what, value in client.found().items():
                        figures.setdefault(f"{what} of {size}, {name}", []).append(value)
                print(f"round {round_number + 1}: batches of {size}", file=sys.stderr)
    measured = [f"{what} of {size}" for size in SIZES for what in clients["full"].found()]
    ratios = {name: (f"{name}, full", f"{name}, empty", TARGET) for name in measured}
    harness.report("claim_times", "milliseconds; microseconds of CPU for each job", figures, ratios, rows=options.rows)


if __name__ == "__main__":
    main()
