"""How long every read of the command line and the dashboard takes beside ten million finished jobs, against its budget.

Each is called as they call it, with other parameters each time, on warm caches, by one client on an otherwise idle database. The budget is
of the database's time: from sending a statement to having its rows, planning of some dozen partitions included, all statements of a
call together. `call` is the whole call in this process, with statements built and rows made into values. What does not go through
SQLAlchemy has the whole call as both. `indexes` are those that one call has used. The recipes of the cookbook read what their question
is about, days of jobs some of them, so they have no budget.
`--dsn` measures in a database that is filled already.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import re
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import harness
import history_set
import psycopg
import sqlalchemy as sa

from jobrunner import inspection
from jobrunner.database import Database
from jobrunner.errors import JobNotFound, JobrunnerError
from jobrunner.filters import parse
from jobrunner.inspection.cursors import Cursor, Key, encode
from jobrunner.looking import Looker
from jobrunner.settings import Dsn

if TYPE_CHECKING:
    from collections.abc import Callable

ROWS = 10_000_000
RUNS = 60  # calls of each; a twentieth of them are above the 95th percentile
WARM_UP = 12  # calls before them: a pooled connection plans what it has prepared anew for its first ten or so, then keeps the plan
RECIPE_RUNS = 3
RECIPE_TIMEOUT = "60s"
FINISHED = "-state:queued,scheduled,retrying,running"
SETTLED = 30.0  # seconds that the server's statistics may take to arrive
LIST, SELECTIVE, ONE, CAPPED, SCREEN, DAY = 15, 40, 5, 10, 20, 120  # milliseconds, 95 of 100 calls; docs/explanation/history-at-scale.md

COOKBOOK = Path(__file__).resolve().parents[1] / "docs" / "cookbook.md"
_RECIPE = re.compile(r"^## ([^\n]+\?)\n.*?^```sql\n(.*?)^```", re.MULTILINE | re.DOTALL)
HEAD = "| read | p50 ms | p95 ms | call p50 | call p95 | budget ms | indexes |\n|---|---|---|---|---|---|---|"
_VARIABLE = re.compile(r"(?<!:):'?(\w+)'?")


class Read(NamedTuple):
    """One of the reads.

    Attributes:
        budget: milliseconds; None for one that has none.
    """

    name: str
    budget: int | None
    call: Callable[[], object]


class Subject:
    """The database that is read, and what may be asked of it."""

    def __init__(self, dsn: str, seed: int) -> None:
        self.dsn, self.database, self.looker = dsn, Database(Dsn(dsn, "bench")), Looker(Dsn(dsn, "bench"))
        self.waited = 0.0  # milliseconds for the database, since it was last put back
        sa.event.listen(self.database.engine, "before_cursor_execute", self._sent)
        sa.event.listen(self.database.engine, "after_cursor_execute", self._answered)
        self.random = random.Random(seed)  # noqa: S311  varies parameters, guards nothing
        with psycopg.connect(dsn) as connection:
            ids = "SELECT min(id), max(id), count(*) FROM jobrunner.job_history"
            self.first, self.last, self.rows = connection.execute(ids).fetchone() or (0, 0, 0)
            self.keys = self._keys(connection, "true")
            self.failed = self._keys(connection, "state = 'failed'")

    def _keys(self, connection: psycopg.Connection, condition: str) -> list[Key]:
        """The keys of some rows from all over history."""
        wanted = [self.random.randint(self.first, self.last) for _ in range(RUNS)]
        query = (
            "SELECT h.finished_at, h.id FROM unnest(%s::bigint[]) AS w (id) CROSS JOIN LATERAL (SELECT finished_at, id"  # noqa: S608  constants
            f" FROM jobrunner.job_history h WHERE h.id BETWEEN w.id AND w.id + 5000 AND {condition} LIMIT 1) AS h"
        )
        return [Key(*row) for row in connection.execute(query, (wanted,)).fetchall()]  # type: ignore[arg-type]

    def _sent(self, *_: object) -> None:
        self.waited -= time.perf_counter() * 1000

    def _answered(self, *_: object) -> None:
        self.waited += time.perf_counter() * 1000

    def close(self) -> None:
        """Give the connections up."""
        self.database.close()
        self.looker.close()

    def task(self) -> str:
        """The name of a task, common ones and rare ones alike."""
        return f"shop.task_{self.random.randrange(history_set.TASKS)}"

    def job_id(self) -> int:
        """Of a finished job."""
        return self.random.choice(self.keys).id

    def page(self, text: str, key: Key | None = None, *, newer: bool = False) -> object:
        """A page of the list, from a key on."""
        return inspection.list_jobs(self.database, filter=parse(text), cursor=encode(Cursor(key, newer=newer)) if key else None)

    def past(self, text: str, key: Key | None = None, *, newer: bool = False) -> object:
        """The same of finished jobs only."""
        return self.page(f"{FINISHED} {text}", key, newer=newer)

    def count(self, text: str) -> object:
        """As pages show it."""
        return inspection.count_jobs(self.database, parse(text))

    def absent(self) -> None:
        """A job that is not there."""
        with contextlib.suppress(JobNotFound):
            inspection.get_job(self.database, self.last + 500_000_000)

    def nothing(self) -> None:
        """What the other reads cost before they read."""
        with inspection.reading(self.database):
            pass

    def query(self, text: str) -> object:
        """SQL on the public views."""
        with self.database.store() as store:
            return store.connection.execute(text).fetchall()  # type: ignore[arg-type]

    def reads(self) -> list[Read]:
        """All of them."""
        database, choice = self.database, self.random.choice
        any_key, a_failed = partial(choice, self.keys), partial(choice, self.failed)
        any_way = partial(choice, (True, False))
        percentile = "jobrunner.histogram_percentile(array_agg(run_histogram), 0.95)"
        counted = f"SELECT queue, outcome, sum(ended_count), {percentile} FROM jobrunner.{{}} > now() - interval '{{}}' GROUP BY 1, 2"  # noqa: S608  constants
        by_minute, by_hour = counted.format("v_throughput WHERE minute", "1 h"), counted.format("v_throughput_hourly WHERE hour", "24 h")
        return [
            Read("nothing: a transaction as each has it", None, self.nothing),
            Read("list, newest 50", LIST, lambda: self.page("")),
            Read("list, newest 50 finished", LIST, lambda: self.past("")),
            Read("list, deep page", LIST, lambda: self.past("", any_key(), newer=any_way())),
            Read("list state:failed", LIST, lambda: self.page("state:failed")),
            Read("list state:failed, deep page", LIST, lambda: self.page("state:failed", a_failed(), newer=any_way())),
            Read("list state:failed,quarantined,cancelled", LIST, lambda: self.page("state:failed,quarantined,cancelled")),
            Read("list task:X", LIST, lambda: self.past(f"task:{self.task()}")),
            Read("list task:X, deep page", LIST, lambda: self.past(f"task:{self.task()}", any_key())),
            Read("list task:X, one job in 200,000", LIST, lambda: self.past(f"task:{history_set.RARE_TASK}")),
            Read("list task:X, which there never was", LIST, lambda: self.past("task:shop.nothing")),
            Read("list task:shop.*", SELECTIVE, lambda: self.past("task:shop.*")),
            Read("list task:X state:failed", SELECTIVE, lambda: self.page(f"task:{self.task()} state:failed")),
            Read("list task:X state:failed, deep page", SELECTIVE, lambda: self.page(f"task:{self.task()} state:failed", a_failed())),
            Read("list task:X state:failed, none", SELECTIVE, lambda: self.page(f"task:{history_set.RARE_TASK} state:failed")),
            Read("list task:shop.task_1* state:failed", SELECTIVE, lambda: self.page("task:shop.task_1* state:failed")),
            Read("list queue:Q", LIST, lambda: self.past(f"queue:{choice(('default', 'mail', 'reports'))}")),
            Read("list queue:Q, deep page", LIST, lambda: self.past(f"queue:{choice(('default', 'mail'))}", any_key())),
            Read("list queue:Q, one job in 1,000", LIST, lambda: self.past("queue:imports")),
            Read("list queue:Q, unused for weeks", LIST, lambda: self.past(f"queue:{history_set.OLD_QUEUE}")),
            Read("list queue:Q, empty", LIST, lambda: self.past("queue:nobody")),
            Read("list queue:Q state:failed", SELECTIVE, lambda: self.page(f"state:failed queue:{choice(('default', 'mail', 'imports'))}")),
            Read("list queue:Q state:failed, empty", SELECTIVE, lambda: self.page("state:failed queue:nobody")),
            Read("list queue:Q task:X, both common", SELECTIVE, lambda: self.past(f"queue:mail task:{self.task()}")),
            Read("list queue:Q task:X, both rare", SELECTIVE, lambda: self.past("queue:imports task:shop.task_19")),
            Read("job by id", ONE, lambda: inspection.get_job(database, self.job_id())),
            Read("job by id, with attempts", ONE, lambda: inspection.get_job(database, a_failed().id)),
            Read("job by id, not there", ONE, self.absent),
            Read("result of a job", ONE, lambda: list(self.looker.look([self.job_id()], ()))),
            Read("result of a job that failed", ONE, lambda: list(self.looker.look([a_failed().id], ()))),
            Read("list id:N", ONE, lambda: self.page(f"id:{self.job_id()}")),
            Read("count, all", CAPPED, lambda: self.count("")),
            Read("count state:failed", CAPPED, lambda: self.count("state:failed")),
            Read("count task:X", CAPPED, lambda: self.count(f"task:{self.task()}")),
            Read("count task:X state:failed", CAPPED, lambda: self.count(f"task:{self.task()} state:failed")),
            Read("count queue:Q", CAPPED, lambda: self.count("queue:default")),
            Read("count queue:Q, one job in 1,000", SELECTIVE, lambda: self.count("queue:imports")),
            Read("count queue:Q, empty", CAPPED, lambda: self.count("queue:nobody")),
            Read("counts of all states", 5 * CAPPED, lambda: inspection.count_states(database)),
            Read("queues", SCREEN, lambda: inspection.list_queues(database)),
            Read("workers", SCREEN, lambda: inspection.list_workers(database)),
            Read("status", SCREEN, lambda: inspection.status(database)),
            Read("top: throughput, queues, running", 2 * SCREEN, lambda: inspection.glance(database, "running")),
            Read("top: failed", 2 * SCREEN + LIST, lambda: inspection.glance(database, "failed")),
            Read("top: errors of the last hour", 2 * SCREEN + LIST, lambda: inspection.glance(database, "errors")),
            Read("throughput by minute, 1 h", SCREEN, lambda: self.query(by_minute)),
            Read("throughput by hour, 24 h", DAY, lambda: self.query(by_hour)),
        ]  # fmt: skip

    def recipes(self) -> list[Read]:
        """Those of the cookbook that need no table of the user's."""
        with psycopg.connect(self.dsn) as connection:
            row = connection.execute("SELECT id FROM jobrunner.jobs WHERE state = 'queued' LIMIT 1").fetchone()
        values = {"job": str(row[0] if row else 1), "worker": "'web-1'"}
        found = _RECIPE.findall(COOKBOOK.read_text())
        texts = {title: _VARIABLE.sub(lambda match: values[match[1]], query) for title, query in found if "orders" not in query}
        limited = f"SET statement_timeout = '{RECIPE_TIMEOUT}'; "
        return [Read(title, None, lambda text=text: self._recipe(limited, text)) for title, text in texts.items()]  # type: ignore[misc]

    def _recipe(self, limited: str, text: str) -> object:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute(limited)  # type: ignore[arg-type]
            return connection.execute(text).fetchall()  # type: ignore[arg-type]


def timed(subject: Subject, read: Read, runs: int) -> tuple[list[float], list[float], str]:
    """Milliseconds of each call: the database's, the whole; and what went wrong."""
    waited: list[float] = []
    took: list[float] = []
    for number in range(runs + WARM_UP):
        subject.waited, began = 0.0, time.perf_counter()
        try:
            read.call()
        except (JobrunnerError, psycopg.Error) as error:
            return waited, took, type(error).__name__
        if number >= WARM_UP or runs <= RECIPE_RUNS:
            took.append((time.perf_counter() - began) * 1000)
            waited.append(subject.waited or took[-1])
        if len(took) >= runs:
            break
    return waited, took, ""


def indexes(subject: Subject, read: Read) -> list[str]:
    """The indexes that one call uses, those of partitions by the name of the whole; as the server counts when its session has ended."""
    query = (
        "SELECT coalesce(p.relname, s.indexrelname), sum(s.idx_scan) FROM pg_stat_user_indexes s"
        " LEFT JOIN pg_inherits i ON i.inhrelid = s.indexrelid LEFT JOIN pg_class p ON p.oid = i.inhparent"
        " WHERE s.schemaname = 'jobrunner' GROUP BY 1"
    )
    alone = "SELECT count(*) = 1 FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend'"

    def settled() -> dict[str, int]:
        subject.close()
        with psycopg.connect(subject.dsn, autocommit=True) as connection:
            ends = time.monotonic() + SETTLED
            while connection.execute(alone).fetchone() != (True,) and time.monotonic() < ends:
                time.sleep(0.01)
            return dict(connection.execute(query).fetchall())

    before = settled()
    with contextlib.suppress(JobrunnerError, psycopg.Error):
        read.call()
    return sorted(name for name, scans in settled().items() if scans > before.get(name, 0))


def percentiles(milliseconds: list[float]) -> tuple[float | None, float | None]:
    """Half of the calls, 95 of 100."""
    if len(milliseconds) < 2:  # noqa: PLR2004  there is nothing between one call
        return (milliseconds[0] if milliseconds else None), None
    return round(statistics.median(milliseconds), 2), round(statistics.quantiles(milliseconds, n=20)[-1], 2)


def row(read: Read, waited: list[float], took: list[float], trouble: str, used: list[str]) -> dict[str, Any]:
    """What the table and the document have of one read."""
    (p50, p95), (call_p50, call_p95) = percentiles(waited), percentiles(took)
    return {
        "read": read.name,
        "p50_ms": p50,
        "p95_ms": p95,
        "call_p50_ms": call_p50,
        "call_p95_ms": call_p95,
        "budget_ms": read.budget,
        "within": None if read.budget is None else bool(p95 is not None and p95 <= read.budget and not trouble),
        "trouble": trouble,
        "indexes": used,
    }


def line(found: dict[str, Any]) -> str:
    """Of the table."""
    names = ("p50_ms", "p95_ms", "call_p50_ms", "call_p95_ms")
    shown = [found["trouble"] or "–" if found[name] is None else f"{found[name]:,.1f}" for name in names]
    budget = "" if found["budget_ms"] is None else f"{found['budget_ms']}{'' if found['within'] else ' **missed**'}"
    return f"| {found['read']} | {' | '.join(shown)} | {budget} | {', '.join(found['indexes'])} |"


def measure(dsn: str, seed: int, runs: int, recipe_runs: int) -> list[dict[str, Any]]:
    """All reads, and the recipes; prints the table as it goes."""
    subject, found = Subject(dsn, seed), []
    print(f"{subject.rows:,} finished jobs\n\n{HEAD}", flush=True)
    try:
        for reads, times in ((subject.reads(), runs), (subject.recipes(), recipe_runs)):
            for read in reads if times else ():
                waited, took, trouble = timed(subject, read, times)
                found.append(row(read, waited, took, trouble, indexes(subject, read)))
                print(line(found[-1]), flush=True)
    finally:
        subject.close()
    return found


def main() -> int:
    """Build, measure, print; 1 when a budget is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=ROWS, help="finished jobs (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=1, help="of all reads (default %(default)s)")
    parser.add_argument("--runs", type=int, default=RUNS, help="calls of each read (default %(default)s)")
    parser.add_argument("--recipe-runs", type=int, default=RECIPE_RUNS, help="of each recipe; 0 for none (default %(default)s)")
    parser.add_argument("--dsn", help="a database that is filled already")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the figures as JSON as well")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        dsn = options.dsn
        if dsn is None:
            dsn = stack.enter_context(harness.database())
            history_set.build(dsn, options.rows)
        rounds = [measure(dsn, number, options.runs, options.recipe_runs) for number in range(options.rounds)]
    if options.json:
        options.json.write_text(json.dumps(rounds, indent=1) + "\n")
    missed = [found["read"] for found in rounds[-1] if found["within"] is False]
    print(f"{len(missed)} missed: {', '.join(missed)}" if missed else "all within their budgets", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
