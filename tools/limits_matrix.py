"""Breaks every limit in every way with real workers, and writes what came of it into docs/guarantees.md.

`python -m tools.limits_matrix [--check]`. With `--check` nothing is written: the exit code is 1 when an outcome is not the one on the page
(milliseconds are not compared), or when a neighbour, a worker or a figure on record suffered.
"""

from __future__ import annotations

import os
import platform
import re
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg

from tests.support import limits_app, postgres
from tests.support.limits_watch import Sight, Watch
from tests.support.workers import Worker, insert, workers
from tools.generated import Marks

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "guarantees.md"
MARKS = Marks.of("python -m tools.limits_matrix")
CELLS = "cells"  # queue of the worker with control groups, where the machine has them
SAMPLED = "sampled"  # and of the one that only samples
HEAVY = {CELLS: "heavy", SAMPLED: "heavy-sampled"}  # cells that take memory: one at a time
NEAR = {CELLS: "near", SAMPLED: "near-sampled"}  # their neighbours
SLOTS = {CELLS: 5, SAMPLED: 4}  # of each worker: one for cells that take memory, one for neighbours
SECONDS = 150.0  # after which a run is given up
_LOOK = 0.008  # seconds between looks
_ASK = 0.2  # seconds between questions to the database
_TAIL = 2000  # characters of a worker's log that are shown
_NEARLY = 0.95  # of a limit, for figures that are read at another moment than the limit was
_FEW, _MORE = 4, 6  # neighbours in a queue below which more are inserted, and how many


@dataclass(frozen=True, eq=False)
class Limit:
    """One limit, as a column of the table.

    Attributes:
        columns: of the job's row.
        load: what the cells use, unless the way says otherwise.
        cause, error: `exit_cause` and the error type on record.
        bound, measure: where the limit is passed, for `Watch`; empty when the cells note it.
        queue: which of the two workers.
    """

    title: str
    columns: Mapping[str, Any]
    load: str
    cause: str
    error: str
    bound: float
    measure: str
    queue: str = CELLS

    @property
    def name(self) -> str:
        """In a cell's name."""
        return re.sub(r"\W+", "-", self.title).strip("-")


_SOFT = {"soft_time_limit": "500ms", "time_limit": "1s"}
SOFT = Limit("soft_time_limit", _SOFT, "wait", "timeout", "SoftTimeLimitExceeded", 0.5, "seconds")
TIME = Limit("time_limit", {"time_limit": "600ms"}, "wait", "timeout", "TimeLimitExceeded", 0.6, "seconds")
CPU = Limit("cpu_limit", {"cpu_limit": "500ms"}, "burn", "cpu", "CpuLimitExceeded", 500, "cpu_ms")
MEMORY = Limit("memory_limit", {"memory_limit": 120_000_000}, "grow", "memory", "MemoryLimitExceeded", 120_000_000, "memory")
OUTPUT = Limit("output_limit", {"output_limit": 10_000}, "chatter", "output", "OutputLimitExceeded", 0, "")
PROCESSES = Limit("max_processes", {"max_processes": 8}, "spawn", "processes", "ProcessLimitExceeded", 8, "processes")
MEMORY_SAMPLED = replace(MEMORY, title="memory_limit, sampled", queue=SAMPLED)
PROCESSES_SAMPLED = replace(PROCESSES, title="max_processes, sampled", queue=SAMPLED)
LIMITS = (SOFT, TIME, CPU, MEMORY, MEMORY_SAMPLED, OUTPUT, PROCESSES, PROCESSES_SAMPLED)
_MEM, _PROC = (MEMORY, MEMORY_SAMPLED), (PROCESSES, PROCESSES_SAMPLED)


class Way(NamedTuple):
    """One way to break limits, as a row of the table: which limits it can break, and with which load where that is not the limit's own."""

    title: str
    name: str
    limits: Sequence[Limit]
    loads: Mapping[Limit, str] = {}
    soft_is_deaf: bool = False  # the exception of the soft limit cannot reach it, or is swallowed: time_limit ends it


BURNING = {SOFT: "burn", TIME: "burn"}
WAYS = (
    Way("loop in Python", "loop", LIMITS, BURNING),
    Way("`time.sleep`", "loop", (SOFT, TIME)),
    Way("one call into C", "in_c", (SOFT, TIME, CPU, *_MEM, OUTPUT), BURNING, soft_is_deaf=True),
    Way("numpy array", "numpy", _MEM),
    Way("`fork` bomb", "bomb", (TIME, CPU, *_MEM, OUTPUT, *_PROC)),
    Way("double-forked daemon", "daemon", LIMITS),
    Way("daemon that forks on and on", "runaway", (SOFT, TIME)),
    Way("stopped (`SIGSTOP`)", "stopped", (SOFT, TIME), soft_is_deaf=True),
    Way("in a thread", "thread", LIMITS),
    Way("swallows every exception", "unmoved", LIMITS, soft_is_deaf=True),
    Way("ignores SIGTERM", "deaf", LIMITS, {TIME: "burn"}),
    Way("closed stdout and stderr", "without_streams", (SOFT, TIME, CPU, *_MEM, *_PROC), {TIME: "burn"}),
)  # fmt: skip
# Ways to end the process itself, whatever the limits are.
DEATHS = {
    "`os.abort()`": ("abort", "signal 6"),
    "segfault": ("segfault", "signal 11"),
    "`os._exit(0)`": ("exit", "exit 0"),
    "`kill -9` from outside": ("kill", "signal 9"),
    "every descriptor closed": ("without_descriptors", "signal 9"),
}
GENEROUS: Mapping[str, Any] = {
    "soft_time_limit": "60s", "time_limit": "60s", "cpu_limit": "60s", "memory_limit": 1_000_000_000, "output_limit": 1_000_000,
    "max_processes": 1000,
}  # fmt: skip


class Cell(NamedTuple):
    """One job that breaks one limit in one way, or ends its own process."""

    name: str
    way: str
    load: str
    columns: Mapping[str, Any]
    cause: str
    error: str
    limit: Limit | None
    queue: str


class Record(NamedTuple):
    """What the database says of a cell's job."""

    state: str
    attempt: int
    crash_count: int
    cause: str | None
    error: str | None
    run_ms: int | None
    cpu_ms: int | None
    peak_memory: int | None


def cells() -> Iterator[Cell]:
    """All of them."""
    for number, way in enumerate(WAYS):
        for limit in way.limits:
            load = way.loads.get(limit, limit.load)
            queue = HEAVY[limit.queue] if limit in _MEM else limit.queue
            error = TIME.error if limit is SOFT and way.soft_is_deaf else limit.error
            yield Cell(f"{number}:{limit.name}", way.name, load, {"time_limit": "30s", **limit.columns}, limit.cause, error, limit, queue)
    for way_name, cause in DEATHS.values():
        yield Cell(f"death:{way_name}", way_name, "wait", GENEROUS, cause, "WorkerProcessDied", None, CELLS)


class Run:
    """One run of all cells with their neighbours."""

    def __init__(self, dsn: str, directory: Path) -> None:
        self.dsn, self.ledger = dsn, directory / "ledger"
        self.cells = list(cells())
        bounds = {cell.name: (limit.measure, limit.bound) for cell in self.cells if (limit := cell.limit) is not None and limit.measure}
        self.watch = Watch(self.ledger, bounds)
        self.records: dict[str, Record] = {}
        self.problems: list[str] = []
        self.neighbour_count = 0  # who have succeeded

    def go(self) -> None:
        """Run them; `records`, `watch` and `problems` say what came of it."""
        for cell in self.cells:
            args = f"jsonb_build_object('cell', '{cell.name}', 'way', '{cell.way}', 'load', '{cell.load}')"
            insert(self.dsn, "break_limit", 1, args, queue=cell.queue, max_attempts=1, max_crashes=1, **cell.columns)
        with ExitStack() as stack:
            started = [stack.enter_context(self._worker(name)) for name in SLOTS]
            self._wait([worker for [worker] in started])
            for [worker] in started:
                below = worker.descendants()
                worker.signal(signal.SIGTERM)
                if worker.process.wait(20) != 0:
                    self.problems.append(f"a worker left with {worker.process.returncode}:\n{worker.text()[-_TAIL:]}")
                self._wait_for_nobody(below)
        if left := self.watch.left():
            self.problems.append(f"{len(left)} processes of jobs are left")
        self._read()

    def _worker(self, name: str) -> AbstractContextManager[list[Worker]]:
        environment = {"JOBRUNNER_CGROUPS": "off"} if name == SAMPLED else {}
        queues = f"{name}:{SLOTS[name] - 2},{HEAVY[name]}:1,{NEAR[name]}:1"
        return workers(self.dsn, self.ledger, "-c", str(SLOTS[name]), "--queues", queues, app=limits_app.__file__, environment=environment)

    def _wait(self, started: list[Worker]) -> None:
        begun, asked_at, left = time.monotonic(), 0.0, len(self.cells)
        while left or self.watch.open():  # an end may be on record before the last process of its job is gone
            self.watch.look()
            now = time.monotonic()
            if now - asked_at >= _ASK:
                asked_at, left = now, self._left()
            if now - begun > SECONDS or any(worker.process.poll() is not None for worker in started):
                self.problems.append(f"{left} cells have no end")
                return
            time.sleep(_LOOK)

    def _left(self) -> int:
        """How many cells have no end yet. While there are some, neighbours are at work beside them in each worker."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            rows = connection.execute("SELECT task, queue, count(*) FROM jobrunner.jobs GROUP BY task, queue").fetchall()
            left = sum(int(count) for task, _, count in rows if task == "break_limit")
        near = {queue: count for task, queue, count in rows if task == "neighbour"}
        for queue in NEAR.values():
            if left and near.get(queue, 0) < _FEW:
                for columns in (GENEROUS, {}):
                    insert(self.dsn, "neighbour", _MORE, queue=queue, max_attempts=1, max_crashes=1, **columns)
        return left

    def _wait_for_nobody(self, pids: set[int]) -> None:
        deadline = time.monotonic() + 2
        while any(Path(f"/proc/{pid}").exists() for pid in pids):
            if time.monotonic() > deadline:
                self.problems.append("processes of a stopped worker are left")
                return
            time.sleep(_LOOK)

    def _read(self) -> None:
        query = """
            SELECT j.args->>'cell', j.state, j.attempt, j.crash_count, a.exit_cause, split_part(a.error_type, '.', 3), a.run_ms, a.cpu_ms,
                   a.peak_memory
            FROM jobrunner.v_jobs j JOIN jobrunner.v_attempts a ON a.job_id = j.id WHERE j.task = 'break_limit'"""
        spoilt = """
            SELECT count(*) FROM jobrunner.v_jobs
            WHERE task = 'neighbour'
              AND (state NOT IN ('succeeded', 'queued') OR attempt <> (state = 'succeeded')::int OR crash_count > 0)"""
        with psycopg.connect(self.dsn) as connection:
            for name, *rest in connection.execute(query).fetchall():
                self.records[name] = Record(*rest)
            [(count,)] = connection.execute(spoilt).fetchall()
            [(self.neighbour_count,)] = connection.execute(
                "SELECT count(*) FROM jobrunner.v_jobs WHERE task = 'neighbour' AND state = 'succeeded'"
            ).fetchall()
        if count:
            self.problems.append(f"{count} neighbours suffered")
        for cell in self.cells:
            self.problems += [f"{cell.name} ({cell.way}, {cell.load}): {problem}" for problem in self._problems_of(cell)]

    def _problems_of(self, cell: Cell) -> Iterator[str]:
        record = self.records.get(cell.name)
        if record is None:
            yield "no attempt on record"
            return
        wanted = ("quarantined", 1) if cell.limit is None else ("failed", 0)
        if (record.state, record.crash_count) != wanted or (cell.limit and record.attempt != 1):
            yield f"{record.state}, attempt {record.attempt}, crash_count {record.crash_count}"
        if (record.cause, record.error) != (cell.cause, cell.error):
            yield f"{record.cause}, {record.error} instead of {cell.cause}, {cell.error}"
        if record.run_ms is None or record.cpu_ms is None or not record.peak_memory:
            yield f"no figures: {record}"
        elif cell.limit is not None:
            figures = {"seconds": record.run_ms / 1000, "cpu_ms": record.cpu_ms, "memory": record.peak_memory}
            if figures.get(cell.limit.measure, cell.limit.bound) < _NEARLY * cell.limit.bound:
                yield f"a figure below the limit that was passed: {record}"
        if self.watch.sights[cell.name].gone_at is None:
            yield f"its processes were not seen to end: {self.watch.sights[cell.name]}"


def outcome(run: Run, cell: Cell) -> tuple[str, Sight]:
    """What is compared: the cause on record, and the limit that it came from where that is another one."""
    record = run.records.get(cell.name)
    if record is None:
        return "nothing on record", run.watch.sights[cell.name]
    text = f"`{record.cause}`"
    if cell.limit is SOFT and record.error == TIME.error:
        text += " by `time_limit`"
    return text, run.watch.sights[cell.name]


def table(run: Run) -> str:
    """Both tables."""
    by_name = {cell.name: cell for cell in run.cells}
    lines = ["| way \\ limit | " + " | ".join(_heading(limit) for limit in LIMITS) + " |", "|---" * (len(LIMITS) + 1) + "|"]
    for number, way in enumerate(WAYS):
        found = [by_name.get(f"{number}:{limit.name}") for limit in LIMITS]
        lines.append(f"| {way.title} | " + " | ".join("–" if cell is None else _shown(run, cell) for cell in found) + " |")
    lines += ["", "| the process ends itself | on record | process tree gone, ms |", "|---|---|---|"]
    for title, (way_name, _) in DEATHS.items():
        text, sight = outcome(run, by_name[f"death:{way_name}"])
        after = "?" if sight.gone_at is None else _rounded((sight.gone_at - sight.begun_at) * 1000)
        lines.append(f"| {title} | {text} | {after} |")
    return "\n".join(lines)


def _heading(limit: Limit) -> str:
    name, _, how = limit.title.partition(", ")
    return f"`{name}`" + (f", {how}" if how else "")


def _shown(run: Run, cell: Cell) -> str:
    text, sight = outcome(run, cell)
    return f"{text} · {'?' if sight.late_ms is None else _rounded(sight.late_ms)}"


def _rounded(milliseconds: float) -> str:
    return f"{max(10, round(milliseconds, -1)):,.0f}"


def classes(text: str) -> list[str]:
    """The rows of a table without what is measured."""
    return [re.sub(r" · [\d,?]+|\| [\d,?]+ \|$", "", line) for line in text.splitlines() if line.startswith("|")]


def facts(run: Run) -> str:
    """The sentence under the tables."""
    model = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    cores = os.cpu_count()
    return (
        f"Measured on {cores} cores ({model[1] if model else platform.machine()}), shared with other work, Linux"
        f" {platform.release().split('-')[0]}, Python {platform.python_version()}: {len(run.cells)} jobs in {sum(SLOTS.values())} slots"
        f" of two workers, and {run.neighbour_count} neighbours in the same workers meanwhile."
    )


def updated(page: str, run: Run) -> str:
    """The page with its generated part replaced. Raises ValueError when the marks are missing."""
    return MARKS.replaced(page, f"{table(run)}\n\n{facts(run)}")


def differences(page: str, run: Run) -> list[str]:
    """Rows that are not as the page has them, and what else went wrong."""
    stored = classes(MARKS.split(page)[1])
    found = classes(table(run))
    return [
        *run.problems,
        *(f"not on the page: {row}" for row in found if row not in stored),
        *(f"only on the page: {row}" for row in stored if row not in found),
    ]


def main(check: bool) -> int:  # noqa: FBT001  the one option
    """Run everything on a server of its own. Returns the exit code."""
    server = postgres.Run.begin()
    try:
        with server.postgres().temporary() as dsn, tempfile.TemporaryDirectory() as directory:
            run = Run(dsn, Path(directory))
            run.go()
    finally:
        server.end()
    wrong = differences(PAGE.read_text(), run) if check else run.problems
    for problem in wrong:
        print(problem, file=sys.stderr)
    print(table(run), facts(run), sep="\n\n")
    if not check and not wrong:
        PAGE.write_text(updated(PAGE.read_text(), run))
        print(PAGE.relative_to(ROOT))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
