"""Pickup latency on an idle queue: from the call of `enqueue` to the first line of the task, in milliseconds.

300 jobs, 50 ms apart, default settings. Beside it the bare loop: a psycopg process that LISTENs, claims and finishes with the
same SQL, woken by a NOTIFY on a side connection, with no child process between.
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import harness
import psycopg

from jobrunner import JobRunner, clock
from jobrunner.jobs import Succeeded
from jobrunner.store import Store

APP = str(Path(__file__).with_name("app.py"))
PAUSE = 0.05


def enqueue_all(dsn: str, count: int) -> None:
    """Enqueue one job every 50 ms and wait until all are done."""
    jobs = JobRunner(dsn=dsn)

    @jobs.task
    def stamp(sent: float) -> float:
        """As in app.py."""
        return sent

    for _ in range(count):
        stamp.enqueue(time.clock_gettime(time.CLOCK_MONOTONIC))
        time.sleep(PAUSE)
    with psycopg.connect(dsn, autocommit=True) as connection:
        while connection.execute("SELECT count(*) FROM jobrunner.job_history").fetchone() != (count,):
            time.sleep(PAUSE)


def latencies(dsn: str) -> list[float]:
    """Every job's own measurement, in milliseconds, sorted."""
    with psycopg.connect(dsn) as connection:
        return sorted(float(value) * 1000 for (value,) in connection.execute("SELECT result FROM jobrunner.job_history"))


def percentile(values: list[float], share: float) -> float:
    """The value below which that share of the values lies."""
    return values[min(len(values) - 1, int(len(values) * share))]


def listen_loop(dsn: str, count: int, ready: multiprocessing.synchronize.Event) -> None:  # type: ignore[name-defined]
    """The bare loop, in a process of its own."""
    with psycopg.connect(dsn, autocommit=True) as listening, psycopg.connect(dsn, autocommit=True, prepare_threshold=None) as connection:
        listening.execute("LISTEN jobrunner")
        store = Store(connection)
        facts = {
            "name": "bench",
            "host": "bench",
            "pid": 1,
            "kind": "test",
            "version": "0",
            "queues": ["default"],
            "tasks": ["stamp"],
            "slots": 1,
        }
        me = store.register_worker(facts, timedelta(hours=1))
        ready.set()
        done = 0
        while done < count:
            for job in store.claim(me, ["stamp"], "default", 0, 10):
                took = time.clock_gettime(time.CLOCK_MONOTONIC) - json.loads(job.args)["sent"]
                store.finish([Succeeded(job.id, job.lease, json.dumps(took), 0, 0, clock.monotonic())])
                done += 1
            for _ in listening.notifies(timeout=1.0, stop_after=1):
                pass


def bare(dsn: str, count: int) -> list[float]:
    """Latencies of the bare loop."""
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=listen_loop, args=(dsn, count, ready))
    process.start()
    ready.wait()
    enqueue_all(dsn, count)
    process.join()
    return latencies(dsn)


def worker(dsn: str, count: int) -> list[float]:
    """Latencies of a real worker."""
    process = subprocess.Popen([sys.executable, "-m", "jobrunner", "work", "--dsn", dsn, "--app", APP], stderr=subprocess.DEVNULL)
    try:
        with psycopg.connect(dsn, autocommit=True) as connection:
            while connection.execute("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'jobrunner-listener'").fetchone() == (
                0,
            ):
                time.sleep(PAUSE)
        time.sleep(1)
        enqueue_all(dsn, count)
    finally:
        process.terminate()
        process.wait()
    return latencies(dsn)


def main() -> None:
    """Measure and print."""
    options = harness.arguments(__doc__ or "", jobs=300)
    figures: dict[str, list[float]] = {f"{who}_{name}": [] for who in ("bare", "worker") for name in ("p50", "p95", "p99")}
    with harness.database() as dsn:
        for number in range(options.rounds):
            for who, measure in (("bare", bare), ("worker", worker)):
                harness.empty(dsn)
                values = measure(dsn, options.jobs)
                for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
                    figures[f"{who}_{name}"].append(percentile(values, share))
                print(f"round {number + 1}: {who}: median {statistics.median(values):.2f} ms", file=sys.stderr)
    targets = {"p50_ms": 10, "p99_ms": 50}
    harness.report("pickup", "ms", figures, {"p50": ("worker_p50", "bare_p50", 0.0)}, first_targets=targets, jobs=options.jobs)


if __name__ == "__main__":
    main()
