"""Who spends what on a job that does nothing: CPU by process, WAL by table and index, from enqueue to history.

Workers run as they come, on a server with PostgreSQL's default durability; jobs are enqueued by one statement. CPU is read from /proc
between the first thousand jobs and the last, WAL with pg_waldump over the whole. `total` is everything together, the server's own
background included. Shares are what to take from it: a machine that is busy or shared makes all of them larger.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import harness
import psycopg

from jobrunner.embedded import find_binaries
from jobrunner.worker import procfs

if TYPE_CHECKING:
    from collections.abc import Iterator

APP = str(Path(__file__).with_name("app.py"))
FILL = "INSERT INTO jobrunner.jobs (task, args) SELECT 'noop', jsonb_build_object('number', n) FROM generate_series(1, %s) AS n"
LEFT = "SELECT count(*) FROM (SELECT FROM jobrunner.jobs LIMIT %s) AS left_ones"
SESSIONS = "SELECT pid, application_name, backend_type FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
RELATIONS = (
    "SELECT pg_relation_filenode(c.oid)::text, CASE WHEN i.indexrelid IS NULL THEN c.relname ELSE c.relname || ' (index)' END"
    " FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace LEFT JOIN pg_index AS i ON i.indexrelid = c.oid"
    " WHERE n.nspname = 'jobrunner' AND pg_relation_filenode(c.oid) IS NOT NULL"
)
EDGE = 1000  # jobs at either end that are not measured
LOOK = 0.02  # seconds
PATIENCE = 120.0  # seconds
WORKERS = {"one worker": (1, ()), "two workers, no LISTEN": (2, ("--no-listen",))}
_TOTAL = re.compile(r"len \(rec/tot\):\s*\d+/\s*(\d+)")
_RELATION = re.compile(r"blkref #0: rel \d+/\d+/(\d+)")
_KIND = re.compile(r"desc: ([A-Z_+]+)")
_DAY = re.compile(r"_\d{8}")


@contextmanager
def workers(dsn: str, count: int, options: tuple[str, ...]) -> Iterator[list[int]]:
    """Run workers; their process ids."""
    command = [sys.executable, "-m", "jobrunner", "work", "--dsn", dsn, "--app", APP, *options]
    with ExitStack() as stack:
        started = []
        for _ in range(count):
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            stack.callback(process.wait)
            stack.callback(process.terminate)
            started.append(process.pid)
        yield started


def spent(connection: psycopg.Connection[Any], roots: list[int]) -> Counter[str]:
    """Seconds of CPU by role since its processes began."""
    found: Counter[str] = Counter()
    for root in roots:
        tree, own = procfs.usage(root), own_cpu(root)
        found["supervisor"] += own
        found["children"] += (tree.cpu_ms / 1000 if tree is not None else 0.0) - own
    for pid, name, kind in connection.execute(SESSIONS).fetchall():
        role = "server: a worker's sessions" if name.startswith("jobrunner") else "server: background"
        found[role if kind == "client backend" else "server: background"] += own_cpu(pid)
    return found


def own_cpu(pid: int) -> float:
    """Seconds that one process has used, without those below it; 0 when it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wait_until_left(connection: psycopg.Connection[Any], most: int) -> None:
    """Wait until fewer jobs than that are left."""
    deadline = time.monotonic() + PATIENCE
    while connection.execute(LEFT, (most,)).fetchone() == (most,):
        if time.monotonic() > deadline:
            raise SystemExit(f"error: more than {most} jobs were left after {PATIENCE:.0f} s")
        time.sleep(LOOK)


def drain(dsn: str, jobs: int, count: int, options: tuple[str, ...]) -> tuple[dict[str, float], dict[str, float]]:
    """Microseconds of CPU a job by role, and bytes of WAL a job by relation."""
    harness.empty(dsn)
    with psycopg.connect(dsn, autocommit=True) as connection:
        began = position(connection)
        connection.execute(FILL, (jobs,))
        connection.execute("VACUUM ANALYZE jobrunner.jobs")
        with workers(dsn, count, options) as roots:
            wait_until_left(connection, jobs - EDGE)
            before, clock = spent(connection, roots), time.monotonic()
            wait_until_left(connection, EDGE)
            after, clock = spent(connection, roots), time.monotonic() - clock
            measured = jobs - 2 * EDGE
            wait_until_left(connection, 1)
            wal = written(connection, began, position(connection))
    cpu = {role: (after[role] - before[role]) / measured * 1e6 for role in after}
    rare = sum(size for size in wal.values() if size < jobs)
    kinds = {name: size / jobs for name, size in wal.items() if size >= jobs} | {"less than a byte each": rare / jobs}
    return cpu | {"total": sum(cpu.values()), "jobs a second": measured / clock}, kinds


def position(connection: psycopg.Connection[Any]) -> str:
    """Where the log ends now, on disk."""
    row = connection.execute("SELECT pg_current_wal_flush_lsn()::text").fetchone()
    return str(row[0]) if row else ""


def written(connection: psycopg.Connection[Any], began: str, ended: str) -> Counter[str]:
    """Bytes of WAL between two positions by relation; partitions of all days together."""
    names = dict(connection.execute(RELATIONS).fetchall())
    row = connection.execute("SHOW data_directory").fetchone()
    directory = Path(str(row[0] if row else "")) / "pg_wal"
    command = [str(find_binaries() / "pg_waldump"), "--path", str(directory), "--start", began, "--end", ended]
    found: Counter[str] = Counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        for line in process.stdout or ():
            size, relation = _TOTAL.search(line), _RELATION.search(line)
            if size is not None:
                name = names.get(relation[1], "other tables") if relation is not None else "commits and the rest"
                kind = _KIND.search(line)
                found[_DAY.sub("", name) + (f" {kind[1]}" if kind is not None and relation is not None else "")] += int(size[1])
                found["total"] += int(size[1])
    return found


def main() -> None:
    """Measure and print."""
    options = harness.arguments(__doc__ or "", jobs=100_000)
    figures: dict[str, list[float]] = {}
    with harness.database() as dsn:
        for number in range(options.rounds):
            for label, (count, more) in list(WORKERS.items()) if number % 2 == 0 else list(WORKERS.items())[::-1]:
                cpu, wal = drain(dsn, options.jobs, count, more)
                for kind, shares in (("us", cpu), ("WAL bytes", wal)):
                    for name, value in shares.items():
                        figures.setdefault(f"{label}, {kind}, {name}", []).append(value)
                print(f"round {number + 1}: {label}: {cpu['total']:,.0f} us, {wal['total']:,.0f} bytes a job", file=sys.stderr)
    harness.report("shares", "us of CPU and bytes of WAL a job", figures, {}, jobs=options.jobs)


if __name__ == "__main__":
    main()
