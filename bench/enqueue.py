"""Enqueue from one process, beside the bare psycopg that does the same SQL: single calls, eight threads, 100,000 in bulk."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import harness
import psycopg

from jobrunner import JobRunner

if TYPE_CHECKING:
    from collections.abc import Callable

INSERT = "INSERT INTO jobrunner.jobs (task, args) VALUES (%s, %s::jsonb) RETURNING id"
THREADS = 8


def in_threads(work: Callable[[int], None], total: int) -> float:
    """Jobs per second of THREADS threads that each do their share."""
    barrier = threading.Barrier(THREADS + 1)

    def one() -> None:
        barrier.wait()
        work(total // THREADS)

    threads = [threading.Thread(target=one) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    barrier.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    return total / (time.perf_counter() - began)


def main() -> None:
    """Measure and print."""
    options = harness.arguments(__doc__ or "", single=2000, threaded=8000, bulk=100_000)
    with harness.database() as dsn:
        jobs = JobRunner(dsn=dsn)

        @jobs.task
        def noop(number: int) -> None:
            """Nothing."""

        def bare(count: int) -> None:
            with psycopg.connect(dsn, autocommit=True) as connection:
                for number in range(count):
                    connection.execute(INSERT, ("noop", f'{{"number": {number}}}')).fetchone()

        def ours(count: int) -> None:
            for number in range(count):
                noop.enqueue(number)

        def rate(work: Callable[[int], None], count: int) -> float:
            began = time.perf_counter()
            work(count)
            return count / (time.perf_counter() - began)

        def bulk_bare() -> float:
            rows = [(number,) for number in range(options.bulk)]
            began = time.perf_counter()
            with (
                psycopg.connect(dsn) as connection,
                connection.cursor() as cursor,
                cursor.copy("COPY jobrunner.jobs (task, args) FROM STDIN") as copy,
            ):
                for (number,) in rows:
                    copy.write_row(("noop", f'{{"number": {number}}}'))
            return options.bulk / (time.perf_counter() - began)

        def bulk_ours() -> float:
            rows = [(number,) for number in range(options.bulk)]
            began = time.perf_counter()
            noop.enqueue_many(rows)
            return options.bulk / (time.perf_counter() - began)

        figures = harness.interleave(
            options.rounds,
            {
                "single_bare": lambda: rate(bare, options.single),
                "single_ours": lambda: rate(ours, options.single),
                "threads_bare": lambda: in_threads(bare, options.threaded),
                "threads_ours": lambda: in_threads(ours, options.threaded),
                "bulk_copy": bulk_bare,
                "bulk_ours": bulk_ours,
            },
            lambda: harness.empty(dsn),
        )
        ratios = {
            "single": ("single_ours", "single_bare", 0.6),
            "8 threads": ("threads_ours", "threads_bare", 0.6),
            "enqueue_many": ("bulk_ours", "bulk_copy", 0.4),
        }
        harness.report(
            "enqueue", "jobs/s", figures, ratios, sizes={"single": options.single, "threads": options.threaded, "bulk": options.bulk}
        )


if __name__ == "__main__":
    main()
