"""Drain of no-op jobs by a real worker with process isolation, beside the bare loop that runs the same claim and finish SQL.

`worker_memory_limit` is the same with a limit on each job, `worker_threads` with ten threads instead of two processes.

The worker's figure is steady state: from the first finished job to the last, by the database's clock; its start is reported apart.
"""

from __future__ import annotations

import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import harness
import psycopg

from jobrunner import clock
from jobrunner.jobs import Succeeded
from jobrunner.store import Floor, Store

APP = str(Path(__file__).with_name("app.py"))
BATCH = 100
MEMORY_LIMIT = 1_000_000_000  # bytes; never reached


def fill(dsn: str, count: int, memory_limit: int | None = None) -> None:
    """Enqueue `count` no-op jobs."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO jobrunner.jobs (task, args, memory_limit) "
            "SELECT 'noop', jsonb_build_object('number', n), %s FROM generate_series(1, %s) AS n",
            (memory_limit, count),
        )
        connection.execute("VACUUM ANALYZE jobrunner.jobs")


def bare(dsn: str, count: int) -> float:
    """One client, batches of 100: claim, finish, nothing else."""
    fill(dsn, count)
    with psycopg.connect(dsn, autocommit=True, prepare_threshold=None) as connection:
        store = Store(connection)
        facts = {
            "name": "bench",
            "host": "bench",
            "pid": 1,
            "kind": "test",
            "version": "0",
            "queues": ["default"],
            "tasks": ["noop"],
            "slots": 1,
        }
        worker = store.register_worker(facts, timedelta(hours=1))
        floor = None
        began = time.perf_counter()
        while jobs := store.claim(worker, ["noop"], "default", 0, BATCH, floor):
            floor = Floor(jobs[-1].run_at, jobs[-1].id)
            now = clock.monotonic()
            store.finish([Succeeded(job.id, job.lease, None, 0, 0, now) for job in jobs])
        return count / (time.perf_counter() - began)


def worker(dsn: str, count: int, *options: str, memory_limit: int | None = None) -> float:
    """`jobrunner work --drain` with two children."""
    fill(dsn, count, memory_limit)
    command = [sys.executable, "-m", "jobrunner", "work", "--dsn", dsn, "--app", APP, "--drain", *(options or ("-c", "2"))]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    with psycopg.connect(dsn) as connection:
        done, seconds = connection.execute(  # type: ignore[misc]
            "SELECT count(*), extract(epoch FROM max(finished_at) - min(started_at)) FROM jobrunner.job_history WHERE state = 'succeeded'"
        ).fetchone()
    if done != count:
        raise SystemExit(f"only {done} of {count} jobs succeeded")
    return count / float(seconds)


def main() -> None:
    """Measure and print."""
    options = harness.arguments(__doc__ or "", jobs=20_000)
    with harness.database() as dsn:
        figures = harness.interleave(
            options.rounds,
            {
                "bare_loop_batch_100": lambda: bare(dsn, options.jobs),
                "worker": lambda: worker(dsn, options.jobs),
                "worker_memory_limit": lambda: worker(dsn, options.jobs, memory_limit=MEMORY_LIMIT),
                "worker_threads": lambda: worker(dsn, options.jobs, "--threads", "10"),
            },
            lambda: harness.empty(dsn),
        )
        ratios = {
            "drain": ("worker", "bare_loop_batch_100", 0.3),
            "memory_limit": ("worker_memory_limit", "worker", 0.75),
            "threads": ("worker_threads", "worker", 0.75),
        }
        harness.report("drain", "jobs/s", figures, ratios, jobs=options.jobs)


if __name__ == "__main__":
    main()
