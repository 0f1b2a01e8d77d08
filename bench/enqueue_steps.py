"""What of a job in the caller's transaction is the round trip, what the row, and what Jobrunner: wall time and CPU of client and server.

Each is done over and over on one connection, ten to a transaction, on a server with the default durability: a statement that does nothing,
the bare INSERT of a row with a task and arguments, and `enqueue` in a Session. `rows in the server` is the same INSERT in a loop in the
server: no round trip, no client. Commits are not counted.
"""

from __future__ import annotations

import os
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import harness
import psycopg
import sqlalchemy as sa
from app import noop
from sqlalchemy.orm import Session

from jobrunner.worker import procfs

if TYPE_CHECKING:
    from collections.abc import Callable

EACH = 10  # to a transaction
MICROSECONDS = 1_000_000
NOTHING = "SELECT 1"
INSERT = "INSERT INTO jobrunner.jobs (task, args) VALUES (%s, %s) RETURNING id"
LOOP = """
DO $$ BEGIN FOR number IN 1..{count} LOOP
    INSERT INTO jobrunner.jobs (task, args) VALUES ('noop', '{{"number": 1}}');
END LOOP; END $$
"""


def timed(count: int, pid: int, one: Callable[[], object], commit: Callable[[], object]) -> dict[str, float]:
    """Microseconds of each call: wall, CPU of this process, CPU of the session (to 10 ms in all)."""
    wall = client = 0.0
    server = procfs.usage(pid).cpu_ms  # type: ignore[union-attr]
    for _ in range(count // EACH):
        began, cpu = time.perf_counter(), time.process_time()
        for _ in range(EACH):
            one()
        wall, client = wall + time.perf_counter() - began, client + time.process_time() - cpu
        commit()
    used = (procfs.usage(pid).cpu_ms - server) / 1000  # type: ignore[union-attr]
    return {name: seconds * MICROSECONDS / count for name, seconds in (("wall", wall), ("client", client), ("server", used))}


def main() -> None:
    """Measure and print."""
    options = harness.arguments(__doc__ or "", jobs=10_000)
    figures: dict[str, list[float]] = {}
    with harness.database() as dsn:
        os.environ["JOBRUNNER_DSN"] = dsn
        engine = sa.create_engine(dsn.replace("postgresql://", "postgresql+psycopg://", 1))
        with psycopg.connect(dsn) as bare, Session(engine) as session:
            ours: Any = session.connection().connection.driver_connection
            ways: dict[str, tuple[int, Callable[[], object], Callable[[], object]]] = {
                "nothing": (bare.info.backend_pid, partial(bare.execute, NOTHING), bare.commit),
                "bare INSERT": (bare.info.backend_pid, lambda: bare.execute(INSERT, ("noop", '{"number": 1}')).fetchone(), bare.commit),
                "enqueue": (ours.info.backend_pid, lambda: noop.options(session=session).enqueue(1), session.commit),
            }
            for number in range(options.rounds):
                harness.empty(dsn)
                for name, (pid, one, commit) in list(ways.items()) if number % 2 == 0 else list(ways.items())[::-1]:
                    timed(EACH * 10, pid, one, commit)
                    for what, each in timed(options.jobs, pid, one, commit).items():
                        figures.setdefault(f"{name}, {what}", []).append(each)
                began = time.perf_counter()
                bare.execute(LOOP.format(count=options.jobs))
                figures.setdefault("rows in the server, wall", []).append((time.perf_counter() - began) * MICROSECONDS / options.jobs)
                bare.commit()
        engine.dispose()
    ratios = {"enqueue": ("enqueue, wall", "bare INSERT, wall", 1.3), "round trip": ("nothing, wall", "bare INSERT, wall", 1.0)}
    harness.report("enqueue-steps", "us", figures, ratios, jobs=options.jobs)


if __name__ == "__main__":
    main()
