"""What counting costs: claim and finish, without task code, with the triggers of the roll-ups and without them; and WAL for each job.

One client, batches of 1, 100 and 1,000; run times spread over seven buckets, four tasks in two queues, one job in fifty is retried once.
Target: at batch 100 at least 0.9 of the rate without triggers.
"""

from __future__ import annotations

import statistics
import time
from datetime import timedelta
from functools import partial

import harness
import psycopg

from jobrunner import clock
from jobrunner.jobs import Ending, Outcome, Succeeded, Unsuccessful
from jobrunner.store import Floor, Store

BATCHES = (1, 100, 1000)
RUN_MS = (0, 2, 7, 20, 80, 200, 700)
TASKS = ("mail.send", "mail.digest", "etl.load", "report.daily")
QUEUES = ("default", "mail")
RETRIED = 50  # one in so many
SINGLES = 10  # a batch of 1 is a commit for each job: so many times fewer of them
TRIGGERS = (("job_history", "job_history_count"), ("job_attempts", "job_attempts_count"))
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


def drain(dsn: str, jobs: int, batch: int, *, counted: bool, wal: dict[str, list[float]], name: str) -> float:
    """Claim and finish until nothing is left; jobs a second. The bytes of WAL for each job are added to `wal`."""
    count = jobs // SINGLES if batch == 1 else jobs
    with psycopg.connect(dsn, autocommit=True, prepare_threshold=None) as connection:
        for table, trigger in TRIGGERS:
            connection.execute(f"ALTER TABLE jobrunner.{table} {'ENABLE' if counted else 'DISABLE'} TRIGGER {trigger}")
        fill(connection, count)
        store = Store(connection)
        worker = store.register_worker(FACTS, timedelta(hours=1))
        before = connection.execute("SELECT pg_current_wal_insert_lsn()").fetchone()[0]  # type: ignore[index]
        began = time.perf_counter()
        for queue in QUEUES:
            floor = None
            while True:
                claimed = store.claim(worker, TASKS, queue, 0, batch, floor)
                if not claimed and floor is None:
                    break
                floor = Floor(claimed[-1].run_at, claimed[-1].id) if claimed else None
                now = clock.monotonic()
                store.finish([outcome(job.id, job.lease, now) for job in claimed])
        rate = count / (time.perf_counter() - began)
        written = connection.execute("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), %s)", (before,)).fetchone()[0]  # type: ignore[index]
        wal.setdefault(name, []).append(float(written) / count)
        ended, history = connection.execute(  # type: ignore[misc]
            "SELECT (SELECT coalesce(sum(ended_count), 0) FROM jobrunner.v_throughput WHERE outcome = 'succeeded'), count(*)"
            " FROM jobrunner.job_history"
        ).fetchone()
    if history != count or ended != (count if counted else 0):
        raise SystemExit(f"{count} jobs, {history} in history, {ended} counted")
    return rate


def main() -> None:
    """Measure and print."""
    options = harness.arguments(__doc__ or "", jobs=20_000)
    wal: dict[str, list[float]] = {}
    with harness.database() as dsn:
        contestants = {
            f"batch_{batch}_{'counted' if counted else 'not'}": partial(drain, dsn, options.jobs, batch, counted=counted, wal=wal)
            for batch in BATCHES
            for counted in (True, False)
        }
        figures = harness.interleave(
            options.rounds, {name: partial(run, name=name) for name, run in contestants.items()}, lambda: harness.empty(dsn)
        )
    ratios = {f"batch_{batch}": (f"batch_{batch}_counted", f"batch_{batch}_not", 0.9) for batch in BATCHES}
    per_job = {name: round(statistics.median(values)) for name, values in wal.items()}
    harness.report("rollups", "jobs/s", figures, ratios, jobs=options.jobs, wal_bytes_per_job=per_job)


if __name__ == "__main__":
    main()
