"""A day of history is dropped, and one is replaced by what is to be kept of it, while another connection claims and finishes jobs.

`step` is the longest transaction of the pruner (of the drop or the replacement itself: `locked`, which begins before the lock is had);
`held up` is the longest claim or finish of the other connection meanwhile, and `undisturbed` its longest in as many seconds without a
pruner. The pruner works as `jobrunner prune` does, one step after the other without a pause.
"""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING

import harness
import psycopg

from jobrunner import clock
from jobrunner.jobs import Succeeded
from jobrunner.maintenance import prune
from jobrunner.settings import Dsn
from jobrunner.store import Database, Store

if TYPE_CHECKING:
    from datetime import timedelta

    from jobrunner.history.steps import Step

BATCH = 20  # jobs of one claim and one finish
FAILED_SHARE = 33  # one row in so many is kept
TARGET_HELD_UP_MS = 100
TARGET_DROP_MS = 1000

ROWS = """
INSERT INTO jobrunner.{part} (id, task, args, queue, priority, tags, created_at, run_at, state, lease, attempt, max_attempts,
    backoff, backoff_base, backoff_cap, backoff_jitter, crash_count, max_crashes, worker_id, started_at, finished_at, result,
    wait_ms, run_ms, cpu_ms)
SELECT 1000000000 + g, 'shop.task_' || g %% 20, jsonb_build_object('order', g, 'note', 'as usual'), 'default', 0, '{{}}', at, at,
       CASE WHEN g %% %(share)s = 0 THEN 'failed' ELSE 'succeeded' END, 1, 1, 5,
       'exponential', '5 s', '1 h', 1, 0, 3, 1, at, at, '{{"ok": true}}', 3, 12, 9
FROM (SELECT g, ((now() AT TIME ZONE 'UTC')::date - {ago}) AT TIME ZONE 'UTC' + g * interval '86399 s' / %(rows)s AS at
      FROM generate_series(1, %(rows)s) AS g) AS t
"""


class Finisher(threading.Thread):
    """A worker's database side: claims and finishes, as fast as it can, and times each call."""

    def __init__(self, dsn: str) -> None:
        super().__init__(daemon=True)
        self.dsn = dsn
        self.calls: list[tuple[float, float]] = []  # (when it began, how long it took)
        self.stopping = False

    def run(self) -> None:
        """Until told to stop."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            worker = connection.execute(
                "INSERT INTO jobrunner.workers (name, host, pid, kind, version, queues, tasks, slots, lease_expires_at)"
                " VALUES ('bench', 'h', 1, 'test', '0', '{default}', '{noop}', 1, now() + interval '1 day') RETURNING id"
            ).fetchone()
            store = Store(connection)
            while not self.stopping:
                connection.execute("INSERT INTO jobrunner.jobs (task) SELECT 'noop' FROM generate_series(1, %s)", (BATCH,))
                began = time.perf_counter()
                jobs = store.claim(worker[0] if worker else 0, ["noop"], "default", 0, BATCH)
                between = time.perf_counter()
                store.finish([Succeeded(job.id, job.lease, "null", 1, 1, clock.monotonic()) for job in jobs])
                self.calls += [(began, between - began), (between, time.perf_counter() - between)]

    def longest_ms(self, since: float, until: float) -> float:
        """The longest call that was under way in that time."""
        return max((took for began, took in self.calls if began + took >= since and began <= until), default=0.0) * 1000


def fill(dsn: str, ago: int, rows: int) -> None:
    """One day of history, so many days ago."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        found = connection.execute(
            "SELECT 'job_history_' || to_char(d, 'YYYYMMDD'), d::text, (d + 1)::text"
            " FROM (SELECT (now() AT TIME ZONE 'UTC')::date - %s AS d) t",
            (ago,),
        ).fetchone()
        part, low, high = found or ("", "", "")
        connection.execute(
            f"CREATE TABLE jobrunner.{part} PARTITION OF jobrunner.job_history FOR VALUES FROM ('{low} 00:00+00') TO ('{high} 00:00+00')"
        )
        connection.execute(ROWS.format(part=part, ago=ago), {"rows": rows, "share": FAILED_SHARE})  # type: ignore[arg-type]
        connection.execute(f"VACUUM ANALYZE jobrunner.{part}")
        connection.execute("CHECKPOINT")


def run(dsn: str, older: timedelta | None = None) -> dict[str, float]:
    """Prune, with somebody else at work; figures in ms."""
    database = Database(Dsn(dsn, "bench"))
    other = Finisher(dsn)
    other.start()
    time.sleep(1)
    steps: list[tuple[str, float, float]] = []
    last = time.perf_counter()

    def told(step: Step) -> None:
        nonlocal last
        now = time.perf_counter()
        steps.append((step.did, last, now))
        last = time.perf_counter()

    began = last
    removed = prune(database, older=older, told=told)
    ended = time.perf_counter()
    time.sleep(max(3.0, ended - began))
    other.stopping = True
    other.join()
    database.close()
    if not other.calls or other.calls[-1][0] < ended:
        raise SystemExit("the other connection did not work to the end")
    final = [(since, until) for did, since, until in steps if did in {"dropped", "replaced"}]
    print(f"{removed.removed_count:,} rows in {ended - began:.2f} s, {len(steps)} steps", file=sys.stderr)
    return {
        "total": (ended - began) * 1000,
        "step": max(until - since for _, since, until in steps) * 1000,
        "locked": max(until - since for since, until in final) * 1000,
        "held up": other.longest_ms(began, ended),
        "held up by the end": max(other.longest_ms(since, until) for since, until in final),
        "undisturbed": other.longest_ms(ended, ended + max(3.0, ended - began)),
    }


def main() -> None:
    """Measure and print."""
    options = harness.arguments(__doc__ or "", rows=1_000_000)
    figures: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        with harness.database() as dsn:
            for name, ago in (("drop", 200), ("replace", 31)):
                fill(dsn, ago, options.rows)
                for what, value in run(dsn).items():
                    figures.setdefault(f"{name}: {what}", []).append(value)
    targets = {"drop_ms": TARGET_DROP_MS, "held_up_ms": TARGET_HELD_UP_MS}
    harness.report("retention", "ms", figures, {}, rows=options.rows, kept_share=f"1/{FAILED_SHARE}", targets=targets)


if __name__ == "__main__":
    main()
