"""A day of history is dropped, and one is replaced by what is to be kept of it, while another connection claims and finishes jobs.

`locked out` is the longest read of history by a third connection meanwhile: it writes nothing, so it waits for locks, and for the
machine: `stalled` is the longest answer to a fourth one, which reads no table. `held up` is the longest claim or finish, which also
waits for the disk while that takes back the files of a dropped table, after the locks; `undisturbed` is the same in as many seconds
without a pruner. `end` is the transaction that drops or replaces, `step` the longest of all.
The pruner works as `jobrunner prune` does, one step after the other without a pause.

A day goes weeks after its rows were written, when the kernel has long given its pages to others. So for `drop` and `replace` the day's
files are taken out of the kernel's memory first; for `drop in memory` they are not, and a million pages are given back as well.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import harness
import psycopg

from jobrunner import clock
from jobrunner.database import Database
from jobrunner.jobs import Succeeded
from jobrunner.maintenance import prune
from jobrunner.settings import Dsn
from jobrunner.store import Store

if TYPE_CHECKING:
    from jobrunner.history.steps import Step

BATCH = 20  # jobs of one claim and one finish
FAILED_SHARE = 33  # one row in so many is kept
TARGET_LOCKED_OUT_MS = 100
TARGET_DROP_MS = 1000

_SETTLED, _LOOK = 2.0, 7.0  # seconds after the end between which nothing is disturbed

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


class Timed(threading.Thread):
    """A connection of its own that does the same again and again until it is told to stop, and times each call."""

    def __init__(self, dsn: str) -> None:
        super().__init__(daemon=True)
        self.dsn = dsn
        self.calls: list[tuple[float, float]] = []  # (when it began, how long it took)
        self.stopping = False

    def longest_ms(self, since: float, until: float) -> float:
        """The longest call that was under way in that time."""
        if not self.calls or self.calls[-1][0] < until:
            raise SystemExit(f"{type(self).__name__} did not work to the end")
        return max((took for began, took in self.calls if began + took >= since and began <= until), default=0.0) * 1000

    def end(self) -> None:
        """Stop it."""
        self.stopping = True
        self.join()


class Reader(Timed):
    """Reads a row of history, with a pause of a millisecond."""

    query = "SELECT id FROM jobrunner.job_history ORDER BY finished_at DESC LIMIT 1"

    def run(self) -> None:
        """Until told to stop."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            while not self.stopping:
                began = time.perf_counter()
                connection.execute(self.query).fetchone()  # type: ignore[call-overload]
                self.calls.append((began, time.perf_counter() - began))
                time.sleep(0.001)


class Bystander(Reader):
    """Reads no table, so that nothing can lock it out: when it waits, the machine had no time for anybody."""

    query = "SELECT 1"


class Finisher(Timed):
    """A worker's database side: claims and finishes, as fast as it can."""

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


def fill(dsn: str, ago: int, rows: int) -> str:
    """One day of history, so many days ago; the name of its partition."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        found = connection.execute(
            "SELECT 'job_history_' || to_char(d, 'YYYYMMDD'), d::text, (d + 1)::text"
            " FROM (SELECT (now() AT TIME ZONE 'UTC')::date - %s AS d) t",
            (ago,),
        ).fetchone()
        part, low, high = found or ("", "", "")
        # Filled before it has indexes: ten million rows take minutes less.
        connection.execute(f"CREATE TABLE jobrunner.{part} (LIKE jobrunner.job_history INCLUDING DEFAULTS INCLUDING CONSTRAINTS)")
        connection.execute(ROWS.format(part=part, ago=ago), {"rows": rows, "share": FAILED_SHARE})  # type: ignore[arg-type]
        bounds = f"FOR VALUES FROM ('{low} 00:00+00') TO ('{high} 00:00+00')"
        connection.execute(f"ALTER TABLE jobrunner.job_history ATTACH PARTITION jobrunner.{part} {bounds}")
        connection.execute(f"VACUUM ANALYZE jobrunner.{part}")
        connection.execute("CHECKPOINT")
    return part


def forget(dsn: str, part: str) -> None:
    """Take the files of a day out of the kernel's memory, of which a CHECKPOINT has left nothing to write.

    Raises:
        SystemExit: they are on another machine.
    """
    with psycopg.connect(dsn) as connection:
        found = connection.execute(
            "SELECT current_setting('data_directory'), array_agg(pg_relation_filepath(t.oid)) FROM pg_class AS t"
            " WHERE t.oid = %(part)s::regclass OR t.oid IN (SELECT indexrelid FROM pg_index WHERE indrelid = %(part)s::regclass)",
            {"part": f"jobrunner.{part}"},
        ).fetchone()
    directory, names = found or ("", [])
    if not Path(directory, names[0]).exists():
        raise SystemExit(f"{directory}: not on this machine; run this where the server is")
    for name in names:
        for path in Path(directory, name).parent.glob(f"{Path(name).name}*"):
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def run(dsn: str) -> dict[str, float]:
    """Prune, with somebody else at work; figures in ms."""
    database = Database(Dsn(dsn, "bench"))
    finisher, reader, bystander = everybody = Finisher(dsn), Reader(dsn), Bystander(dsn)
    for thread in everybody:
        thread.start()
    time.sleep(1)
    steps: list[tuple[str, float, float]] = []
    last = time.perf_counter()

    def told(step: Step) -> None:
        nonlocal last
        now = time.perf_counter()
        steps.append((step.did, last, now))
        last = time.perf_counter()

    began = last
    removed = prune(database, told=told)
    ended = time.perf_counter()
    time.sleep(_LOOK + 0.5)
    for thread in everybody:
        thread.end()
    database.close()
    final = [(since, until) for did, since, until in steps if did in {"dropped", "replaced"}]
    print(f"{removed.removed_count:,} rows in {ended - began:.2f} s, {len(steps)} steps", file=sys.stderr)
    return {
        "total": (ended - began) * 1000,
        "step": max(until - since for _, since, until in steps) * 1000,
        "end": max(until - since for since, until in final) * 1000,
        "locked out": reader.longest_ms(began, ended),
        "stalled": bystander.longest_ms(began, ended),
        "held up": finisher.longest_ms(began, ended),
        "locked out, undisturbed": reader.longest_ms(ended + _SETTLED, ended + _LOOK),
        "held up, undisturbed": finisher.longest_ms(ended + _SETTLED, ended + _LOOK),
    }


def main() -> None:
    """Measure and print."""
    options = harness.arguments(__doc__ or "", rows=1_000_000)
    figures: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        with harness.database() as dsn:
            for name, ago, in_memory in (("drop", 200, False), ("drop in memory", 200, True), ("replace", 31, False)):
                part = fill(dsn, ago, options.rows)
                if not in_memory:
                    forget(dsn, part)
                for what, value in run(dsn).items():
                    figures.setdefault(f"{name}: {what}", []).append(value)
    targets = {"drop_ms": TARGET_DROP_MS, "locked_out_ms": TARGET_LOCKED_OUT_MS}
    harness.report("retention", "ms", figures, {}, rows=options.rows, kept_share=f"1/{FAILED_SHARE}", targets=targets)


if __name__ == "__main__":
    main()
