"""Owns transactional jobs: the task's writes, the jobs it enqueues and the end of the job itself commit together, or not at all.

It must not commit anything when the attempt has been superseded: the fence is checked by the statement that ends the job, in the
same transaction.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from psycopg import errors as pg
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from jobrunner import arrays, payload, places, statements
from jobrunner.errors import ConfigurationError
from jobrunner.jobs import Succeeded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import sqlalchemy as sa

    from jobrunner.app import JobRunner
    from jobrunner.current import JobContext
    from jobrunner.worker.executing import Spent

# Once the job's row is locked a process that stands still would hold up those who rescue jobs: the server ends its transaction.
_LAST_STEP = "SET LOCAL idle_in_transaction_session_timeout = '5s'"
_ISOLATION = "READ COMMITTED"


def run(jobs: JobRunner, context: JobContext, spent: Spent, body: Callable[[Session], Any]) -> bool:
    """Call `body` with a Session and end the job in its transaction.

    The session is the application's own default session when it has one, else a new one on Jobrunner's database.

    Returns:
        False when another attempt has superseded this one: everything was rolled back.

    Raises:
        Whatever `body` raises, and what the database says to the commit: everything was rolled back, or, when the connection
        broke during COMMIT, perhaps all of it is there; the fence then refuses what the worker writes about this attempt.
    """
    with _session(jobs) as session:
        context.session = session
        try:
            result = body(session)
            text = None if result is None else payload.encode_result(result, jobs.max_result_bytes)
            session.flush()
            run_ms, cpu_ms, peak = spent.read()
            if not _succeed(session, Succeeded(context.id, context.lease, text, run_ms, cpu_ms, 0.0, peak)):
                session.rollback()
                return False
            session.commit()
        except BaseException:
            session.rollback()
            raise
        finally:
            context.session = None
    return True


@contextlib.contextmanager
def _session(jobs: JobRunner) -> Iterator[Session]:
    if jobs.session is not None:
        session = places.resolve_session(jobs.session)
        if session.in_transaction():
            session.rollback()  # of what ran before the task, such as a `before` hook of the app context: not part of the job
        yield session
        return
    with Session(jobs.database.engine.execution_options(isolation_level=_ISOLATION)) as session:
        yield session


def _succeed(session: Session, outcome: Succeeded) -> bool:
    connection = places.connection_of(session)
    try:
        connection.exec_driver_sql(_LAST_STEP)
        rows = connection.exec_driver_sql(statements.load("succeed"), arrays.successes([outcome], 0.0)).fetchall()
    except DBAPIError as error:
        if isinstance(error.orig, (pg.UndefinedTable, pg.InvalidSchemaName)):
            raise ConfigurationError(
                f"a transactional task needs the application's session on the database of the jobs, not on {_place(connection)}",
                hint="one database for both: point JOBRUNNER_DSN at the application's, or leave it out",
            ) from error
        raise
    return bool(rows)


def _place(connection: sa.Connection) -> str:
    return connection.engine.url.render_as_string(hide_password=True)
