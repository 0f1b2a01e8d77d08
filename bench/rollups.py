"""What counting costs: claim and finish, without task code, with the triggers of the roll-ups and without them.

Two clients take turns, batch by batch, on the same tables; one's triggers are off (`session_replication_role`). Batches of 1, 100 and
1,000; run times spread over seven buckets, four tasks in two queues, one job in fifty is retried once. Medians of all batches, for each
job: the rate, microseconds of CPU of client and server process, which a disk that others use does not change, and bytes of WAL. Target:
at batch 100 about 1.1 times the CPU that it takes without triggers, or less. Needs a superuser, and Linux.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import time
from datetime import timedelta
from pathlib import Path

import harness
import psycopg

from jobrunner import clock
from jobrunner.jobs import Ending, Outcome, Succeeded, Unsuccessful
from jobrunner.store import Store

BATCHES = {1: 600, 100: 120, 1000: 24}  # size → how many of each client in a round
RUN_MS = (0, 2, 7, 20, 80, 200, 700)
TASKS = ("mail.send", "mail.digest", "etl.load", "report.daily")
QUEUES = ("default", "mail")
RETRIED = 50  # one in so many
MODES = {"counted": "origin", "not": "replica"}  # what session_replication_role is
FACTS = {
    "name": "bench", "host": "bench", "pid": 1, "kind": "test", "version": "0", "queues": list(QUEUES), "tasks": list(TASKS), "slots": 1,
}  # fmt: skip


def fill(connection: psycopg.Connection, count: int) -> None:
    """Enqueue `count` jobs."""
    connection.execute(
        "INSERT INTO jobrunner.jobs (task, queue, args, backoff_base) SELECT (%s::text[])[1 + n %% %s], (%s::text[])[1 + n %% %s],"
        " jsonb_build_object('number', n), '0' FROM generate_series(1, %s) AS n",
        (list(TASKS), len(TASKS), list(QUEUES), len(QUEUES), count),
    )
    connection.execute("VACUUM ANALYZE jobrunner.jobs")


def outcome(job_id: int, lease: int, now: float) -> Outcome:
    """How the attempt ended."""
    if job_id % RETRIED == 0 and lease == 1:
        return Unsuccessful(Ending.RETRY, job_id, lease, "ValueError", "no", run_ms=RUN_MS[job_id % len(RUN_MS)], ended_at=now, delay_ms=0)
    return Succeeded(job_id, lease, None, RUN_MS[job_id % len(RUN_MS)], 1, now)


class Client:
    """A worker on a connection of its own, and what each of its batches cost, per job."""

    def __init__(self, connection: psycopg.Connection, role: str) -> None:
        connection.execute(f"SET session_replication_role = {role}")
        self.connection, self.store = connection, Store(connection)
        self.worker = self.store.register_worker(FACTS, timedelta(hours=1))
        self.costs: dict[str, list[float]] = {"seconds": [], "cpu_us": [], "wal_bytes": []}

    def cpu_seconds(self) -> float:
        """What this process and the server's process for it have used so far, to the nanosecond."""
        schedstat = Path(f"/proc/{self.connection.info.backend_pid}/schedstat").read_text()
        return time.process_time() + int(schedstat.split()[0]) / 1e9

    def wal(self) -> int:
        """Bytes of WAL so far, of all."""
        row = self.connection.execute("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint").fetchone()
        return int(row[0])  # type: ignore[index]

    def batch(self, queue: str, size: int) -> None:
        """Claim and finish so many jobs."""
        wal, cpu, began = self.wal(), self.cpu_seconds(), time.perf_counter()
        claimed = self.store.claim(self.worker, TASKS, queue, 0, size)
        now = clock.monotonic()
        self.store.finish([outcome(job.id, job.lease, now) for job in claimed])
        seconds, cpu_us = time.perf_counter() - began, (self.cpu_seconds() - cpu) * 1e6
        if len(claimed) != size:
            raise SystemExit(f"{len(claimed)} jobs in a batch of {size}")
        for what, amount in (("seconds", seconds), ("cpu_us", cpu_us), ("wal_bytes", self.wal() - wal)):
            self.costs[what].append(amount / size)


def measure(dsn: str, size: int, batches: int) -> dict[str, float]:
    """One round; medians of what a job cost, by mode and cost."""
    harness.empty(dsn)
    with contextlib.ExitStack() as stack:
        clients = {
            mode: Client(stack.enter_context(psycopg.connect(dsn, autocommit=True, prepare_threshold=None)), role)
            for mode, role in MODES.items()
        }
        fill(clients["not"].connection, 2 * (batches + 1) * size * len(QUEUES))
        for number in range(batches + 1):
            for mode in list(clients)[:: 1 if number % 2 else -1]:
                clients[mode].batch(QUEUES[number % len(QUEUES)], size)
        row = clients["not"].connection.execute("SELECT sum(ended_count)::bigint FROM jobrunner.v_throughput").fetchone()
    if row != ((batches + 1) * size,):
        raise SystemExit(f"{row} counted of {(batches + 1) * size}")
    return {  # without the first: plans are made in it
        f"{mode}_{what}": statistics.median(amounts[1:]) for mode, client in clients.items() for what, amounts in client.costs.items()
    }


def main() -> None:
    """Measure and print."""
    options = harness.arguments(__doc__ or "")
    figures: dict[str, list[float]] = {}
    with harness.database() as dsn:
        for number in range(options.rounds):
            for size, batches in BATCHES.items():
                for name, cost in measure(dsn, size, batches).items():
                    rate = name.endswith("seconds")
                    key = f"batch_{size}_{name.replace('seconds', 'jobs_per_second')}"
                    figures.setdefault(key, []).append(1 / cost if rate else cost)
                print(f"round {number + 1}: batches of {size}", file=sys.stderr)
    ratios = {
        f"batch_{size}_{what}": (f"batch_{size}_counted_{what}", f"batch_{size}_not_{what}", target)
        for size in BATCHES
        for what, target in (("jobs_per_second", 0.9), ("cpu_us", 1.1), ("wal_bytes", 1.3))
    }
    harness.report("rollups", "for each job", figures, ratios)


if __name__ == "__main__":
    main()
