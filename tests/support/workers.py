"""Owns real worker processes for tests: start, signal, wait, and what they leave behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg

from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

APP = str(Path(__file__).with_name("chaos_app.py"))


class Ledger:
    """The file in which tasks note what they do."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def lines(self) -> list[tuple[str, str, int, int]]:
        """Every event: what, number, pid, lease."""
        if not self.path.exists():
            return []
        whole, _, _ = self.path.read_text().rpartition("\n")  # a line across two pages is written in two steps: the last may not be there yet
        return [(event, number, int(pid), int(lease)) for event, number, pid, lease in map(str.split, whole.splitlines())]

    def count(self, event: str) -> Counter[str]:
        """How often each number had `event`."""
        return Counter(number for what, number, _, _ in self.lines() if what == event)

    def wait_for_ends(self, count: int, timeout: float = 60) -> None:
        """Wait until at least `count` attempts have ended."""
        wait_until(lambda: sum(self.count("end").values()) >= count, timeout=timeout, what=f"{count} attempts to have ended")


class Worker:
    """One `jobrunner work` process, or one of `jobrunner celery-worker` as `command`; `within` stands before it, such as `ip netns exec NAME`."""

    def __init__(
        self,
        dsn: str,
        ledger: Path,
        *options: str,
        app: str = APP,
        environment: Mapping[str, str] | None = None,
        within: Sequence[str] = (),
        command: str = "work",
    ) -> None:
        environment = {**os.environ, "JOBRUNNER_CHAOS_LEDGER": str(ledger), **(environment or {})}
        of_app = ("-A", app) if command == "celery-worker" else ("--app", app)
        words = [*within, sys.executable, "-m", "jobrunner", command, "--dsn", dsn, *of_app, *options]
        self.log = ledger.with_suffix(f".{os.urandom(3).hex()}.log")
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(words, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def kill(self) -> None:
        """Kill -9 the worker itself, and only it."""
        self.process.kill()
        self.process.wait()

    def signal(self, number: int) -> None:
        """Send a signal to the worker itself."""
        self.process.send_signal(number)

    def stop(self, timeout: float = 40) -> int:
        """SIGTERM and wait. Returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait(timeout)

    def wait(self, timeout: float = 60) -> int:
        """Wait for a worker that ends by itself. Returns the exit code."""
        code = self.process.wait(timeout)
        print(self.text())
        return code

    def text(self) -> str:
        """What it has printed."""
        return self.log.read_text()

    def descendants(self) -> set[int]:
        """Every process below this one, by /proc."""
        parents: dict[int, int] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
                    if fields[0] != "Z":
                        parents[int(entry.name)] = int(fields[1])
        found = {self.process.pid}
        while more := {pid for pid, parent in parents.items() if parent in found} - found:
            found |= more
        return found - {self.process.pid}


@contextlib.contextmanager
def workers(
    dsn: str,
    ledger: Path,
    *options: str,
    count: int = 1,
    app: str = APP,
    environment: Mapping[str, str] | None = None,
    command: str = "work",
) -> Iterator[list[Worker]]:
    """Start workers, with more in their environment when given; whatever is left of them at the end is killed."""
    started = [Worker(dsn, ledger, *options, app=app, environment=environment, command=command) for _ in range(count)]
    try:
        yield started
    finally:
        for worker in started:
            below = worker.descendants() if worker.process.poll() is None else set()
            worker.process.kill()
            worker.process.wait()
            for pid in below:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def insert(dsn: str, task: str, count: int, args: str = "jsonb_build_object('number', n)", **columns: object) -> None:
    """Enqueue by plain SQL: `args` is an expression over `n` from 1 to `count`."""
    names = "".join(f", {name}" for name in columns)
    values = ", %s" * len(columns)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            f"INSERT INTO jobrunner.jobs (task, args{names}) SELECT %s, {args}{values} FROM generate_series(1, %s) AS n",
            [task, *columns.values(), count],
        )


def states(dsn: str) -> Counter[str]:
    """How many jobs are in each state, as `v_jobs` shows it."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        return Counter(dict(connection.execute("SELECT state, count(*) FROM jobrunner.v_jobs GROUP BY state").fetchall()))


def rows(dsn: str, query: str) -> list[tuple[object, ...]]:
    """Whatever a query returns."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        return connection.execute(query).fetchall()


def wait_for_states(dsn: str, timeout: float, **wanted: int) -> None:
    """Wait until exactly these states are there, and no other."""
    wait_until(lambda: states(dsn) == Counter(wanted), timeout=timeout, what=f"jobs to be {wanted}")


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
