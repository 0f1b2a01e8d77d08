"""Round trip on an idle queue: from the call of `enqueue` to the return of `job.result()`, in milliseconds, by a real worker.

300 jobs, 20 ms apart, default settings. Beside it bare psycopg doing the same against the same worker: INSERT, a NOTIFY so that the
worker wakes up, and a look at the history by primary key every 2 ms until the row is there. Last, what waiting costs the server:
transactions a second while a thousand threads wait for jobs that do not end, when all have waited for longer than a second.
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import harness
import psycopg

from jobrunner import Job, JobRunner
from jobrunner.settings import CHANNEL

if TYPE_CHECKING:
    from collections.abc import Iterator

APP = str(Path(__file__).with_name("app.py"))
PAUSE = 0.02
LOOK = 0.002  # seconds between two looks of the bare loop
SETTLING = 3  # seconds until the pace of all waiters is the slowest
COUNTING = 10  # seconds over which the server's transactions are counted
INSERT = "INSERT INTO jobrunner.jobs (task, args) VALUES ('noop', %s::jsonb) RETURNING id"
FINISHED = "SELECT state, result FROM jobrunner.job_history WHERE id = %s"
TRANSACTIONS = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()"


@contextlib.contextmanager
def worker(dsn: str) -> Iterator[None]:
    """A real worker that listens."""
    process = subprocess.Popen([sys.executable, "-m", "jobrunner", "work", "--dsn", dsn, "--app", APP], stderr=subprocess.DEVNULL)
    listening = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'jobrunner-listener'"
    try:
        with psycopg.connect(dsn, autocommit=True) as connection:
            while connection.execute(listening).fetchone() == (0,):
                time.sleep(PAUSE)
        yield
    finally:
        process.terminate()
        process.wait()


def ours(jobs: JobRunner, count: int) -> list[float]:
    """`enqueue` and `result`."""

    @jobs.task
    def noop(number: int) -> None:
        """As in app.py."""

    taken = []
    for number in range(count + 1):
        began = time.perf_counter()
        noop.enqueue(number).result(timeout=60)
        taken.append((time.perf_counter() - began) * 1000)
        time.sleep(PAUSE)
    return taken[1:]  # the first one opens connections


def bare(dsn: str, count: int) -> list[float]:
    """The same with psycopg alone."""
    taken = []
    with psycopg.connect(dsn, autocommit=True) as connection:
        for number in range(count + 1):
            began = time.perf_counter()
            row = connection.execute(INSERT, (f'{{"number": {number}}}',)).fetchone()
            connection.execute("SELECT pg_notify(%s, 'default')", (CHANNEL,))
            while connection.execute(FINISHED, row).fetchone() is None:
                time.sleep(LOOK)
            taken.append((time.perf_counter() - began) * 1000)
            time.sleep(PAUSE)
    return taken[1:]


def waiting(jobs: JobRunner, dsn: str, count: int) -> float:
    """Transactions a second on the whole database while that many threads wait."""

    @jobs.task(queue="nobody-serves-this")
    def never() -> None:
        """Is not run."""

    def wait(job_id: int) -> None:
        with contextlib.suppress(TimeoutError):
            Job(jobs, job_id, "").wait(timedelta(seconds=SETTLING + COUNTING + 5))

    ids = never.enqueue_many([() for _ in range(count)])
    with ThreadPoolExecutor(count) as threads, psycopg.connect(dsn, autocommit=True) as connection:
        for job_id in ids:
            threads.submit(wait, job_id)
        time.sleep(SETTLING)
        ((before,),) = connection.execute(TRANSACTIONS).fetchall()
        time.sleep(COUNTING)
        ((after,),) = connection.execute(TRANSACTIONS).fetchall()
    return float(after - before) / COUNTING


def percentile(values: list[float], share: float) -> float:
    """The value below which that share of the values lies."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def main() -> None:
    """Measure and print."""
    options = harness.arguments(__doc__ or "", jobs=300, waiters=1000)
    figures: dict[str, list[float]] = {f"{who}_{name}": [] for who in ("bare", "jobrunner") for name in ("p50", "p95", "p99")}
    with harness.database() as dsn:
        jobs = JobRunner(dsn=dsn)
        for number in range(options.rounds):
            harness.empty(dsn)
            order = ("bare", "jobrunner") if number % 2 == 0 else ("jobrunner", "bare")
            with worker(dsn):
                taken = {who: bare(dsn, options.jobs) if who == "bare" else ours(jobs, options.jobs) for who in order}
            for who, values in taken.items():
                for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
                    figures[f"{who}_{name}"].append(percentile(values, share))
                print(f"round {number + 1}: {who}: median {statistics.median(values):.2f} ms", file=sys.stderr)
        harness.empty(dsn)
        transactions = waiting(jobs, dsn, options.waiters)
        jobs.close()
    harness.report(
        "roundtrip",
        "ms",
        figures,
        {name: (f"jobrunner_{name}", f"bare_{name}", 1.2) for name in ("p50", "p95")},
        first_targets={"jobrunner_p50_ms": 6, "transactions_per_second_of_all_waiters": 5},
        jobs=options.jobs,
        waiters=options.waiters,
        transactions_per_second_of_all_waiters=transactions,
    )


if __name__ == "__main__":
    main()
