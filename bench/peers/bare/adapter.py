# /// script
# requires-python = ">=3.11"
#
# [tool.bench]
# title = "bare psycopg"
# server = "postgresql"
# durability = "equal: committed and flushed before the call returns"
# ///
"""The ceiling: psycopg alone with the same rows and the same claim and finish statements, with no worker, no child and no limits."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from datetime import timedelta
from typing import Any

import marks
import psycopg
from protocol import HERE, Adapter, Unsupported, in_threads, serve, timed

from jobrunner import clock, migrate
from jobrunner.jobs import Floor, Succeeded
from jobrunner.settings import CHANNEL
from jobrunner.store import Crowded, Store

INSERT = "INSERT INTO jobrunner.jobs (task, args) VALUES (%s, %s::jsonb) RETURNING id"
NOTIFY = "SELECT pg_notify(%s, 'default')"
ORDERS = "CREATE TABLE IF NOT EXISTS bench_orders (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, note text NOT NULL)"
ORDER = "INSERT INTO bench_orders (note) VALUES ('order')"
FILL = """
INSERT INTO jobrunner.jobs (task, args) SELECT %s, jsonb_build_object('argument', coalesce(%s, n)) FROM generate_series(1, %s) AS n
"""
SERVING = "SELECT count(*) FROM jobrunner.workers AS w JOIN pg_stat_activity AS a ON a.application_name = w.name"
FINISHED = "SELECT FROM jobrunner.job_history WHERE id = %s"
LOOK = 0.002  # seconds between two looks for a result
BATCH = 100  # jobs of one claim
STEP_BACK = (0.02, 0.25)  # seconds until it asks again when many others are claiming
IDLE = 1.0  # seconds that it waits for a notification
CLIENTS = {"best": 2, "one": 1, "default": 1}
FACTS: dict[str, Any] = {"host": "bench", "kind": "test", "version": "0", "queues": ["default"], "slots": 1}
TASKS = ["noop", "nap", "spin", "stamp"]
ARGUMENT = len('{"argument": ')  # what stands before the number in the arguments' text


class Bare(Adapter):
    """psycopg."""

    distributions = ("psycopg",)

    def prepare(self) -> None:
        """Migrate; connections of 8 threads are opened by the threads."""
        migrate.upgrade(self.dsn)
        self.connection = psycopg.connect(self.dsn, autocommit=True)
        self.side = psycopg.connect(self.dsn, autocommit=True)
        self.connection.execute(ORDERS)

    def empty(self) -> None:
        """As Jobrunner's."""
        self.connection.execute(
            "TRUNCATE jobrunner.jobs, jobrunner.job_history, jobrunner.job_attempts, bench_orders,"
            " jobrunner.rollup_pending, jobrunner.rollup_minute, jobrunner.rollup_hour"
        )
        self.connection.execute("VACUUM ANALYZE jobrunner.jobs")

    def one(self, task: str, argument: float) -> Any:
        """INSERT, then a NOTIFY on another connection, as a wake-up has to be sent."""
        row = self.connection.execute(INSERT, (task, f'{{"argument": {argument}}}')).fetchone()
        self.side.execute(NOTIFY, (CHANNEL,))
        return row

    def fill(self, task: str, argument: float, count: int) -> None:
        """By one statement."""
        self.connection.execute(FILL, (task, None if task == "noop" else argument, count))
        self.connection.execute("VACUUM ANALYZE jobrunner.jobs")

    def _insert(self, count: int) -> None:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            for number in range(count):
                connection.execute(INSERT, ("noop", f'{{"argument": {number}}}')).fetchone()

    def single(self, count: int) -> float:
        """INSERT and commit, nothing else."""
        return timed(lambda: self._insert(count))

    def threads(self, count: int, threads: int) -> float:
        """The same, each thread on its own connection."""
        return in_threads(self._insert, count, threads)

    def bulk(self, count: int) -> float:
        """COPY, with rows made in Python."""

        def copy() -> None:
            with self.connection.cursor() as cursor, cursor.copy("COPY jobrunner.jobs (task, args) FROM STDIN") as rows:
                for number in range(count):
                    rows.write_row(("noop", f'{{"argument": {number}}}'))

        return timed(copy)

    def transaction(self, count: int, jobs: int) -> float:
        """INSERTs between BEGIN and COMMIT."""

        def all_of_them() -> None:
            for number in range(count):
                with self.connection.transaction():
                    self.connection.execute(ORDER)
                    for job in range(jobs):
                        self.connection.execute(INSERT, ("noop", f'{{"argument": {number + job}}}')).fetchone()

        return timed(all_of_them)

    def result(self, number: int) -> None:
        """INSERT, NOTIFY, and a look at the history by primary key every 2 ms."""
        row = self.one("noop", number)
        while self.connection.execute(FINISHED, row).fetchone() is None:
            time.sleep(LOOK)

    def workers(self, setting: str, slots: int) -> dict[str, Any]:
        """The loop below, one process a client; `single` starts `slots`."""
        if setting not in CLIENTS and setting != "single":
            raise Unsupported("runs one job at a time")
        clients = CLIENTS.get(setting, slots)
        command = [sys.executable, str(HERE / "adapter.py"), "loop"]
        described = f"claim and finish loop, batches of {BATCH}, {clients} client{'s' if clients > 1 else ''}"
        return {"commands": [command] * clients, "env": {}, "described": described}

    def left(self) -> int:
        """Rows that are queued or run."""
        return self.connection.execute("SELECT count(*) FROM (SELECT FROM jobrunner.jobs LIMIT 1) AS any_row").fetchone()[0]  # type: ignore[index]

    def serving(self) -> int:
        """Clients that have registered and are connected."""
        return self.connection.execute(SERVING).fetchone()[0]  # type: ignore[index]


def loop(dsn: str, stopped: threading.Event) -> None:
    """Claim, run and finish until stopped; wait for a notification when nothing is due."""
    name = f"bare-{os.getpid()}"
    with (
        psycopg.connect(dsn, autocommit=True) as listening,
        psycopg.connect(dsn, autocommit=True, prepare_threshold=None, application_name=name) as connection,
    ):
        listening.execute(f"LISTEN {CHANNEL}")
        store = Store(connection)
        me = store.register_worker({**FACTS, "name": name, "pid": os.getpid(), "tasks": TASKS}, timedelta(hours=1))
        floor = None
        while not stopped.is_set():
            try:
                jobs = store.claim(me, TASKS, "default", 0, BATCH, floor)
            except Crowded:
                time.sleep(random.uniform(*STEP_BACK))  # noqa: S311  jitter, not a secret
                continue
            if jobs:
                for job in jobs:
                    getattr(marks, "mark" if job.task == "noop" else job.task)(
                        *([] if job.task == "noop" else [float(job.args[ARGUMENT:-1])])
                    )
                now = clock.monotonic()
                store.finish([Succeeded(job.id, job.lease, None, 0, 0, now) for job in jobs])
                floor = Floor(jobs[-1].run_at, jobs[-1].id)
            elif floor is not None:
                floor = None  # what committed late lies before it
            else:
                for _ in listening.notifies(timeout=IDLE, stop_after=1):
                    pass


if __name__ == "__main__":
    if sys.argv[1:] == ["loop"]:
        stop = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: stop.set())
        loop(os.environ["BENCH_DSN"], stop)
    else:
        serve(Bare())
