"""What counting costs: claim and finish, without task code, with the triggers of the roll-ups and without them.

One client, batches of 1, 100 and 1,000; run times spread over seven buckets, four tasks in two queues, one job in fifty is retried once.
Beside the rate, for each job: microseconds of CPU of client and server process, which a disk that others use does not change, and bytes of
WAL. Target: at batch 100 at most 1.1 times the CPU that it takes without triggers.
"""

from __future__ import annotations

import time
from datetime import timedelta
from functools import partial
from pathlib import Path

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


def cpu_seconds(pid: int) -> float:
    """What a process has used so far, to the nanosecond."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def drain(dsn: str, jobs: int, batch: int, *, counted: bool, costs: dict[str, dict[str, list[float]]], name: str) -> float:
    """Claim and finish until nothing is left; jobs a second. What each job cost besides time is added to `costs`."""
    count = jobs // SINGLES if batch == 1 else jobs
    with psycopg.connect(dsn, autocommit=True, prepare_threshold=None) as connection:
        for table, trigger in TRIGGERS:
            connection.execute(f"ALTER TABLE jobrunner.{table} {'ENABLE' if counted else 'DISABLE'} TRIGGER {trigger}")
        fill(connection, count)
        store = Store(connection)
        worker = store.register_worker(FACTS, timedelta(hours=1))
        before = connection.execute("SELECT pg_current_wal_insert_lsn()").fetchone()[0]  # type: ignore[index]
        used, began = time.process_time() + cpu_seconds(connection.info.backend_pid), time.perf_counter()
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
        used = time.process_time() + cpu_seconds(connection.info.backend_pid) - used
        written = connection.execute("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), %s)", (before,)).fetchone()[0]  # type: ignore[index]
        for what, amount in (("cpu_us", used * 1e6), ("wal_bytes", float(written))):
            costs[what].setdefault(name, []).append(amount / count)
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
    costs: dict[str, dict[str, list[float]]] = {"cpu_us": {}, "wal_bytes": {}}
    with harness.database() as dsn:
        contestants = {
            f"batch_{batch}_{'counted' if counted else 'not'}": partial(drain, dsn, options.jobs, batch, counted=counted, costs=costs)
            for batch in BATCHES
            for counted in (True, False)
        }
        figures = harness.interleave(
            options.rounds, {name: partial(run, name=name) for name, run in contestants.items()}, lambda: harness.empty(dsn)
        )
    figures |= {f"{name}_{what}": values for what, found in costs.items() for name, values in found.items()}
    ratios = {f"batch_{batch}": (f"batch_{batch}_counted", f"batch_{batch}_not", 0.9) for batch in BATCHES}
    ratios |= {
        f"{what}_batch_{batch}": (f"batch_{batch}_counted_{what}", f"batch_{batch}_not_{what}", 1.1) for what in costs for batch in BATCHES
    }
    harness.report("rollups", "jobs/s", figures, ratios, jobs=options.jobs)


if __name__ == "__main__":
    main()
