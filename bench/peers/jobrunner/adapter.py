# /// script
# requires-python = ">=3.11"
#
# [tool.bench]
# title = "Jobrunner"
# server = "postgresql"
# durability = "equal: committed and flushed before the call returns"
# ///
"""Jobrunner itself: process isolation on, arguments, results and history kept, unless a setting's description says otherwise."""

from __future__ import annotations

import datetime as dt
import os
import sys
from pathlib import Path
from typing import Any

import psycopg
from protocol import HERE, Adapter, Unsupported, serve, timed

os.environ["JOBRUNNER_DSN"] = os.environ["BENCH_DSN"]

import app
import sqlalchemy as sa
from sqlalchemy.orm import Session

from bench import largeapp
from jobrunner import migrate

RESULT_PATIENCE = 60  # seconds
ORDERS = "CREATE TABLE IF NOT EXISTS bench_orders (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, note text NOT NULL)"
ORDER = "INSERT INTO bench_orders (note) VALUES (:note)"
FILL = """
INSERT INTO jobrunner.jobs (task, args, queue, priority, run_at)
SELECT %(task)s, jsonb_build_object('argument', coalesce(%(argument)s, n)), %(queue)s, %(priority)s,
       now() + make_interval(secs => %(later)s + n * %(step)s) FROM generate_series(1, %(count)s) AS n
"""
MODEL = "INSERT INTO jobrunner.jobs (task, args, run_at) VALUES ('noop', '{}', now() + interval '1 hour') RETURNING id"
FORGET = "DELETE FROM jobrunner.jobs WHERE id = %s"
DAY = """
CREATE TABLE IF NOT EXISTS jobrunner.job_history_{day:%Y%m%d} PARTITION OF jobrunner.job_history
FOR VALUES FROM ('{day:%Y-%m-%d} 00:00:00+00') TO ('{next_day:%Y-%m-%d} 00:00:00+00')
"""
# A row as the end of a job would have left it, whatever columns the table has by now: its policy is copied from a live job.
HISTORY = """
INSERT INTO jobrunner.job_history (id, task, args, queue, priority, tags, state, lease, attempt, max_attempts, backoff, backoff_base,
    backoff_cap, backoff_jitter, crash_count, max_crashes, created_at, run_at, started_at, finished_at, wait_ms, run_ms, cpu_ms,
    peak_memory)
SELECT -n, task, jsonb_build_object('argument', n), queue, priority, tags, 'succeeded', 1, 1, max_attempts, backoff, backoff_base,
    backoff_cap, backoff_jitter, 0, max_crashes, t, t, t, t + interval '5 ms', 2, 3, 1, 30000000
FROM (SELECT n, date_trunc('day', now(), 'UTC') - make_interval(secs => n * %(step)s) AS t
      FROM generate_series(%(low)s::bigint, %(high)s) AS n) AS moments, jobrunner.jobs AS model
WHERE model.id = %(model)s
"""
HISTORY_DAYS = 25  # fewer than history is kept by default
SECONDS_A_DAY = 86_400
CHUNK = 500_000  # rows of one statement
OPTIONS = {
    "default": ([], "one worker as it comes"),
    "best": (["--no-listen"], "two workers as they come, without LISTEN"),
    "many": (["-c", "{slots}"], "{slots} child processes"),
    "threads": (["--threads", "{slots}"], "{slots} threads of one child process"),
    "async": (["--async-slots", "{slots}"], "{slots} slots of one event loop"),
    "single": (["-c", "1"], "workers of one child process each"),
    "polling": (["--no-listen"], "no LISTEN, polls once a second"),
    "large": (["-c", "2"], f"two child processes, a Flask application of {largeapp.MODULES} modules"),
}


class Jobrunner(Adapter):
    """Our own."""

    distributions = ("jobrunner-pg", "psycopg", "SQLAlchemy", "Flask")

    def prepare(self) -> None:
        """Migrate, and keep one connection for looks from outside."""
        migrate.upgrade(self.dsn)
        self.connection = psycopg.connect(self.dsn, autocommit=True)
        self.connection.execute(ORDERS)
        self.engine = sa.create_engine("postgresql+psycopg" + self.dsn.removeprefix("postgresql"))

    def empty(self) -> None:
        """Empty the tables and leave nothing for autovacuum to do."""
        self.connection.execute(
            "TRUNCATE jobrunner.jobs, jobrunner.job_history, jobrunner.job_attempts, bench_orders,"
            " jobrunner.rollup_pending, jobrunner.rollup_minute, jobrunner.rollup_hour"
        )
        self.connection.execute("VACUUM ANALYZE jobrunner.jobs")

    def one(self, task: str, argument: float) -> Any:
        """`task.enqueue(argument)`."""
        return getattr(app, task).enqueue(argument)

    def fill(self, task: str, argument: float, count: int, priority: int = 0, later: float = 0, step: float = 0) -> None:
        """By plain SQL, which makes jobs as well; `later` and `step` are seconds until the first is due, and between two."""
        numbered = task == "noop"
        values = {"task": task, "argument": None if numbered else argument, "queue": "default", "priority": priority}
        self.connection.execute(FILL, {**values, "later": later, "step": step, "count": count})
        self.connection.execute("VACUUM ANALYZE jobrunner.jobs")

    def history(self, count: int) -> None:
        """So many finished jobs in the daily partitions of the last 25 days."""
        today = dt.datetime.now(dt.UTC).date()
        for age in range(HISTORY_DAYS + 1):
            day = today - dt.timedelta(days=age)
            self.connection.execute(DAY.format(day=day, next_day=day + dt.timedelta(days=1)))
        model = self.connection.execute(MODEL).fetchone()[0]  # type: ignore[index]
        for low in range(1, count + 1, CHUNK):
            step = (HISTORY_DAYS - 1) * SECONDS_A_DAY / count
            self.connection.execute(HISTORY, {"low": low, "high": min(count, low + CHUNK - 1), "step": step, "model": model})
        self.connection.execute(FORGET, (model,))
        self.connection.execute("VACUUM ANALYZE jobrunner.job_history")

    def bulk(self, count: int) -> float:
        """`enqueue_many`."""
        rows = [(float(number),) for number in range(count)]
        return timed(lambda: app.noop.enqueue_many(rows))

    def transaction(self, count: int, jobs: int) -> float:
        """In a SQLAlchemy session."""

        def all_of_them() -> None:
            with Session(self.engine) as session:
                for number in range(count):
                    session.execute(sa.text(ORDER), {"note": "order"})
                    for job in range(jobs):
                        app.noop.options(session=session).enqueue(number + job)
                    session.commit()

        return timed(all_of_them)

    def result(self, number: int) -> None:
        """`job.result()`."""
        app.noop.enqueue(number).result(timeout=RESULT_PATIENCE)

    def workers(self, setting: str, slots: int) -> dict[str, Any]:
        """`jobrunner work`; `single` starts `slots` workers, `best` two, every other setting one."""
        if setting not in OPTIONS:
            raise Unsupported(f"has no setting {setting!r}")
        options, described = OPTIONS[setting]
        application = largeapp.write_app(Path(os.environ["BENCH_MARKS"])) if setting == "large" else str(HERE / "app.py")
        command = [sys.executable, "-m", "jobrunner", "work", "--dsn", self.worker_dsn, "--app", application]
        command += [option.format(slots=slots) for option in options]
        return {"commands": [command] * {"single": slots, "best": 2}.get(setting, 1), "env": {}, "described": described.format(slots=slots)}

    def left(self) -> int:
        """Rows that are queued or run."""
        return self.connection.execute("SELECT count(*) FROM (SELECT FROM jobrunner.jobs LIMIT 1) AS any_row").fetchone()[0]  # type: ignore[index]

    def serving(self) -> int:
        """Registered workers."""
        return self.connection.execute("SELECT count(*) FROM jobrunner.workers WHERE stopped_at IS NULL").fetchone()[0]  # type: ignore[index]

    def overclaimed(self) -> int:
        """Finished jobs that were claimed more than once."""
        return self.connection.execute("SELECT count(*) FROM jobrunner.job_history WHERE lease > 1").fetchone()[0]  # type: ignore[index]


if __name__ == "__main__":
    serve(Jobrunner())
