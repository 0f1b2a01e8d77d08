"""Owns the question whether jobs are finished: a few queries, each for all ids at once, on a connection opened when it is needed.

It must not wait nor decide when to ask. What is live is asked first and alone: that query has one table to plan, a tenth of a
millisecond, while history and attempts have a partition for each day, which costs milliseconds where nothing can be prepared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg
from psycopg import errors as pg

from jobrunner.connecting import connect, explain, plan_once
from jobrunner.errors import DatabaseUnreachable, SchemaMissing
from jobrunner.settings import CALL
from jobrunner.states import State

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Mapping, Sequence

    from jobrunner.settings import Dsn

ROWS_AT_ONCE = 100  # jobs whose results are read by one query: a result may be a megabyte

# The array that the planner cannot count keeps each of them on the primary keys, whatever the statistics say.
_LIVE = "/* jobrunner:waiting */ SELECT id, state = 'running' FROM jobrunner.jobs WHERE id = ANY (ARRAY(SELECT unnest(%(ids)s::bigint[])))"
# Live and finished jobs in one snapshot: a job that is retried is on its way from one table to the other, never in neither.
_ROWS = (
    "/* jobrunner:finished */ SELECT id, state, task, result::text, error_type, error, "  # noqa: S608  constants
    f"CASE WHEN task = '{CALL}' AND state = 'failed' THEN checkpoint::text END "
    "FROM jobrunner.v_jobs WHERE id = ANY (ARRAY(SELECT unnest(%(ids)s::bigint[])))"
)
# LIMIT keeps it a probe of the primary key for each job: a job may have thousands of attempts, each with a long traceback.
_ATTEMPTS = (
    "/* jobrunner:last_attempts */ SELECT failed.id, a.traceback, a.exit_cause "
    "FROM unnest(%(ids)s::bigint[]) AS failed (id) CROSS JOIN LATERAL ("
    "SELECT traceback, exit_cause FROM jobrunner.job_attempts WHERE job_id = failed.id ORDER BY lease DESC LIMIT 1) AS a"
)

UNANSWERED = (DatabaseUnreachable, psycopg.OperationalError, psycopg.InterfaceError)


class Row(NamedTuple):
    """A job as it was seen.

    Attributes:
        state: in the words of `v_jobs`.
        result: JSON text or None.
        traceback: of the last attempt, when the job failed or was quarantined.
        exit_cause: the same.
        checkpoint: JSON text, of a call that failed: what its exception carried.
    """

    id: int
    state: str
    task: str
    result: str | None
    error_type: str | None
    error: str | None
    traceback: str | None = None
    exit_cause: str | None = None
    checkpoint: str | None = None


class Looker:
    """Asks one database. Used by one thread; a lost connection is opened again by the next question.

    Attributes:
        running: those of the last `look` that were running.
    """

    def __init__(self, dsn: Dsn) -> None:
        self._dsn = dsn
        self._connection: psycopg.Connection[Any] | None = None
        self.running: list[int] = []

    @property
    def connected(self) -> bool:
        """Whether a connection is held."""
        return self._connection is not None

    def look(self, ids: Sequence[int], last: Container[int]) -> Iterator[tuple[int, Row | None]]:
        """Those of `ids` that are no longer live, and all that are in `last`, each with its row; None: there is none.

        Raises:
            DatabaseUnreachable, psycopg.OperationalError, psycopg.InterfaceError: no answer (`UNANSWERED`); ask again later.
            SchemaMissing: the database is not ours.
        """
        live = dict(self._ask(_LIVE, {"ids": _array(ids)}))
        self.running = [job_id for job_id, is_running in live.items() if is_running]
        wanted = [job_id for job_id in ids if job_id not in live or job_id in last]
        for start in range(0, len(wanted), ROWS_AT_ONCE):
            chunk = wanted[start : start + ROWS_AT_ONCE]
            rows = {row[0]: Row._make((*row[:-1], None, None, row[-1])) for row in self._ask(_ROWS, {"ids": _array(chunk)})}
            self._add_attempts(rows)
            for job_id in chunk:
                yield job_id, rows.get(job_id)

    def close(self) -> None:
        """Give the connection up; the next question opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _add_attempts(self, rows: dict[int, Row]) -> None:
        failed = [row for row in rows.values() if row.state in (State.FAILED, State.QUARANTINED)]
        if not failed:
            return
        for job_id, traceback, exit_cause in self._ask(_ATTEMPTS, {"ids": _array(row.id for row in failed)}):
            rows[job_id] = rows[job_id]._replace(traceback=traceback, exit_cause=exit_cause)

    def _ask(self, query: str, parameters: Mapping[str, Any]) -> list[Any]:
        held = self._connection is not None
        try:
            return self._connected().execute(query, parameters, prepare=True).fetchall()
        except pg.UndefinedTable as error:
            raise SchemaMissing(self._dsn.target) from error
        except UNANSWERED:
            self.close()
            if not held:
                raise
        # The server or a pooler ended a connection that had lain idle, or restarted: that is not a failure yet.
        return self._ask(query, parameters)

    def _connected(self) -> psycopg.Connection[Any]:
        if self._connection is None:
            self._connection = connect(self._dsn, application_name="jobrunner results")
            plan_once(self._connection)
        return self._connection


def reason(error: BaseException, dsn: Dsn) -> DatabaseUnreachable:
    """One of `UNANSWERED` in our words, as an exception of one's own: several threads may raise it."""
    return explain(error.__cause__ if isinstance(error, DatabaseUnreachable) and error.__cause__ else error, dsn)


def _array(numbers: Iterable[int]) -> str:
    """An array literal: several times cheaper than the adaptation of a list, which looks at every element's type."""
    return "{" + ",".join(map(str, numbers)) + "}"
