"""Owns putting jobs and workers into any state with plain SQL, and reading every row back to compare.

It must not use the statements under test for that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, cast

from psycopg.rows import dict_row

from jobrunner import schema, statements
from jobrunner.states import LIVE, State
from jobrunner.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import psycopg

TASK = "tests.work"
TABLES = ("jobs", "job_history", "job_attempts")
FINISHED_COLUMNS = [column.name for column in schema.jobs.columns if column.name in schema.job_history.columns]
LEASE = 7  # of a job that is put somewhere: room for older and newer ones
ALIVE, EXPIRED, STOPPED = "alive", "expired", "stopped"
_WORKER_TIMES = {ALIVE: ("now() + interval '1 hour'", "NULL"), EXPIRED: ("now()", "NULL"), STOPPED: ("now() + interval '1 hour'", "now()")}


class Snapshot(NamedTuple):
    """Every row there is, whole, ordered; equal when nothing at all has changed."""

    jobs: tuple[object, ...]
    job_history: tuple[object, ...]
    job_attempts: tuple[object, ...]

    def without(self, job_id: int) -> Snapshot:
        """The same without the rows of one job."""
        ids = (("id", self.jobs), ("id", self.job_history), ("job_id", self.job_attempts))
        return Snapshot(*(tuple(row for row in rows if cast("dict[str, object]", row)[key] != job_id) for key, rows in ids))


class Scene:
    """A database, with verbs to set it up and to look at it."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self.connection = connection
        self.store = Store(connection)

    def execute(self, query: str, parameters: object = None) -> psycopg.Cursor[Any]:
        """Plain SQL."""
        return self.connection.execute(query, cast("Any", parameters))

    def one(self, query: str, parameters: object = None) -> Any:
        """The only column of the only row of a query."""
        row = self.execute(query, parameters).fetchone()
        assert row is not None
        return row[0]

    def worker(self, life: str = ALIVE) -> int:
        """A worker row; `expired` is one whose lease is over and nobody noticed, `stopped` one that was closed or given up."""
        expires, stopped = _WORKER_TIMES[life]
        return cast(
            "int",
            self.one(
                "INSERT INTO jobrunner.workers (name, host, pid, kind, version, queues, tasks, slots, lease_expires_at, stopped_at)"
                f" VALUES ('w', 'h', 1, 'test', '0', '{{default}}', '{{{TASK}}}', 1, {expires}, {stopped}) RETURNING id"
            ),
        )

    def job(self, state: State = State.QUEUED, **columns: object) -> int:
        """A job in this state, with these columns (a value that starts with `=` is SQL); running ones get a living worker."""
        values: dict[str, object] = {"task": TASK, "lease": LEASE, **columns}
        if state is State.RUNNING:
            values = {"worker_id": None, "claimed_at": "=now()", "attempt": 1, "state": "running", **values}
            values["worker_id"] = values["worker_id"] or self.worker()
        given = [value for value in values.values() if not _is_sql(value)]
        marks = ", ".join(str(value)[1:] if _is_sql(value) else "%s" for value in values.values())
        job_id = cast("int", self.one(f"INSERT INTO jobrunner.jobs ({', '.join(values)}) VALUES ({marks}) RETURNING id", given))
        if state not in LIVE:
            self.put_into_history(job_id, state)
        return job_id

    def put_into_history(self, job_id: int, state: State) -> None:
        """Move a live row to a finished state, as if it had gone through it."""
        columns = ", ".join(FINISHED_COLUMNS)
        selected = ", ".join("%(state)s" if name == "state" else name for name in FINISHED_COLUMNS)
        self.execute(
            f"WITH gone AS (DELETE FROM jobrunner.jobs WHERE id = %(id)s RETURNING *)"
            f" INSERT INTO jobrunner.job_history ({columns}, finished_at) SELECT {selected}, now() FROM gone",
            {"id": job_id, "state": state.value},
        )

    def set(self, job_id: int, assignments: str) -> None:
        """Change columns of a live job behind everybody's back."""
        assert self.execute(f"UPDATE jobrunner.jobs SET {assignments} WHERE id = %s", (job_id,)).rowcount == 1

    def age_worker(self, worker_id: int, assignments: str = "lease_expires_at = now()") -> None:
        """Change columns of a worker; as it stands its lease is over."""
        assert self.execute(f"UPDATE jobrunner.workers SET {assignments} WHERE id = %s", (worker_id,)).rowcount == 1

    def snapshot(self) -> Snapshot:
        """All rows of the three tables of jobs, in one reading."""
        with self.connection.transaction(), self.connection.cursor(row_factory=dict_row) as cursor:
            self.connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            read = (f"SELECT * FROM jobrunner.{table} ORDER BY 1, lease, finished_at" for table in TABLES[1:])
            queries = ["SELECT * FROM jobrunner.jobs ORDER BY id", *read]
            return Snapshot(*(tuple(cursor.execute(query).fetchall()) for query in queries))

    def rows(self, job_id: int) -> list[dict[str, Any]]:
        """The rows of one job, live and finished: there is always exactly one."""
        found = self.snapshot()
        return [row for row in cast("tuple[dict[str, Any], ...]", found.jobs + found.job_history) if row["id"] == job_id]

    def row(self, job_id: int) -> dict[str, Any]:
        """The one row of a job."""
        (row,) = self.rows(job_id)
        return row

    def attempts(self, job_id: int) -> list[dict[str, Any]]:
        """The attempts on record for one job, oldest lease first."""
        rows = cast("tuple[dict[str, Any], ...]", self.snapshot().job_attempts)
        return [row for row in rows if row["job_id"] == job_id]

    def state(self, job_id: int) -> State:
        """Where a job is."""
        return State(self.row(job_id)["state"])

    def run(self, name: str, parameters: Mapping[str, object]) -> list[int]:
        """Run a statement as it is in its file; returns the ids it reports."""
        return sorted(row[0] for row in self.execute(statements.load(name), parameters).fetchall())


def array(values: Iterable[object]) -> str:
    """An array literal of numbers or NULLs."""
    return "{" + ",".join("NULL" if value is None else str(value) for value in values) + "}"


def fenced_parameters(
    name: str, attempts: Iterable[tuple[int, int]], *, run_ms: int | None = 5, delay_ms: int | None = None
) -> dict[str, object]:
    """Parameters of a fenced statement for attempts given as (id, lease), in the order given."""
    pairs = list(attempts)
    known: dict[str, object] = {
        "ids": array(job_id for job_id, _ in pairs),
        "leases": array(lease for _, lease in pairs),
        "run_ms": array(run_ms for _ in pairs),
        "cpu_ms": array(1 for _ in pairs),
        "age_ms": array(2 for _ in pairs),
        "delay_ms": array(delay_ms for _ in pairs),
        "error_types": ["builtins.ValueError"] * len(pairs),
        "messages": ["what went wrong"] * len(pairs),
        "results": ['{"a": 1}'] * len(pairs),
    }
    return {key: known.get(key, array(None for _ in pairs)) for key in statements.parameters(name)}


def _is_sql(value: object) -> bool:
    return isinstance(value, str) and value.startswith("=")
