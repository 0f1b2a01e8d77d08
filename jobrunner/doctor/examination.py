"""Owns which checks there are and that each is bounded: its own read-only transaction, its own time, its own failure.

It must not know what a check looks at. A check that cannot look is a note that says why and which right would help.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg
import sqlalchemy as sa
from psycopg import errors as pg

from jobrunner.doctor import (
    clocks,
    indexes,
    partitions,
    retention,
    server,
    sessions,
    snapshots,
    structure,
    tables,
    topics,
    vacuum,
    waiting,
    workers,
)
from jobrunner.doctor.findings import Finding, Limits, Look, role
from jobrunner.errors import DatabaseUnreachable, JobrunnerError, QueryTimeout, TablesLocked
from jobrunner.inspection import reading
from jobrunner.settings import SCHEMA
from jobrunner.texts import redacted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from jobrunner.database import Database

CHECK_TIMEOUT = timedelta(seconds=2)  # of one statement: a look must not become the load that it looks for

_HOLDER = sa.text("""
SELECT l.pid FROM pg_locks l JOIN pg_class c ON c.oid = l.relation
WHERE l.mode = 'AccessExclusiveLock' AND l.granted AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND c.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = :schema)
ORDER BY l.pid LIMIT 1
""")
_USER = sa.text("SELECT current_user")

GROUPS = {
    "setup": "Set-up",
    "cron": "Cron",
    "workers": "Workers and jobs",
    "snapshots": "Snapshots",
    "tables": "Tables and indexes",
    "server": "Server",
    "session": "Connection",
}


class Check(NamedTuple):
    """One check.

    Attributes:
        name: code of its finding when it could not look.
        group: one of GROUPS.
        about: what it looks at, in words.
        look: the check; gives at least one finding.
        ours: it reads tables of ours, so that it has nothing to say where the schema does not fit.
    """

    name: str
    group: str
    about: str
    look: Callable[[Look], Iterable[Finding]]
    ours: bool = True


CHECKS = (
    Check("workers", "workers", "who works", workers.alive),
    Check("lost_workers", "workers", "who has fallen silent", workers.lost),
    Check("versions", "workers", "the versions of the workers", workers.versions),
    Check("queues", "workers", "the queues that nobody serves", waiting.queues),
    Check("tasks", "workers", "the tasks that nobody registers", waiting.tasks),
    Check("topics", "workers", "the groups of topics", topics.look),
    Check("snapshots", "snapshots", "who holds a snapshot", snapshots.look, ours=False),
    Check("dead_rows", "tables", "dead rows", tables.look),
    Check("index_bloat", "tables", "the size of the indexes", indexes.look),
    Check("structure", "tables", "the shape of the schema", structure.look),
    Check("autovacuum", "tables", "autovacuum", vacuum.look),
    Check("partitions", "tables", "the partitions", partitions.look),
    Check("retention", "tables", "what keeps old history from being removed", retention.look),
    Check("freezing", "server", "the age of transaction ids", vacuum.freezing, ours=False),
    Check("server_version", "server", "the server's version", server.version, ours=False),
    Check("read_only", "server", "whether the server takes writes", server.read_only, ours=False),
    Check("durability", "server", "what a crash of the server may cost", server.durability, ours=False),
    Check("connections", "server", "the connections", server.connections, ours=False),
    Check("clock_skew", "session", "the clocks", clocks.look, ours=False),
    Check("pooler", "session", "what is between here and the server", sessions.pooler, ours=False),
    Check("timeouts", "session", "the role's time-outs", sessions.timeouts, ours=False),
)


def examine(
    database: Database, *, limits: Limits | None = None, schema_fits: bool = True, timeout: timedelta = CHECK_TIMEOUT
) -> list[Finding]:
    """Look at everything, one read-only transaction after the other, and say what was found; at least one finding for each check.

    Changes nothing and takes no lock but those of reading, for at most half a second of waiting. The comparison of the schema makes
    temporary objects in a transaction that is rolled back.

    Args:
        limits: from which figures on something is a finding.
        schema_fits: False leaves out the checks that read tables of ours.
        timeout: of one statement; most checks make one.

    Returns:
        In the order of GROUPS. A check that could not look is a `note`. When the database goes away, the last is `bad`.
    """
    found: list[Finding] = []
    for check in CHECKS:
        if not (check.ours and not schema_fits):
            findings = _run(check, database, limits or Limits(), timeout)
            found += (replace(finding, group=check.group) for finding in findings)
            if any(finding.code == "database_lost" for finding in findings):
                break
    return found


def _run(check: Check, database: Database, limits: Limits, timeout: timedelta) -> Sequence[Finding]:
    try:
        with reading(database, timeout) as reader:
            return list(check.look(Look(database, reader.connection, reader.at, limits)))
    except DatabaseUnreachable as error:
        text = f"the database went away while {check.about} was looked at: {error.reason}"
        return [Finding("database_lost", "bad", text, "jobrunner doctor")]
    except (QueryTimeout, TablesLocked) as error:
        return [_held_up(check, error, database)]
    except JobrunnerError as error:
        return [_unseen(check, str(error), error.hint)]
    except (sa.exc.SQLAlchemyError, psycopg.Error) as error:
        return [_refused(check, getattr(error, "orig", None) or error, database)]
    except Exception as error:  # noqa: BLE001  a mistake in one check must not hide what the others have found
        return [_unseen(check, f"unexpected {type(error).__name__}: {error}", "jobrunner -v doctor")]


def _held_up(check: Check, error: JobrunnerError, database: Database) -> Finding:
    """Somebody who holds a table of ours for himself is named; everybody may see who holds which lock."""
    pid = _ask(database, _HOLDER, {"schema": SCHEMA})
    if pid is None:
        return _unseen(check, str(error), "jobrunner doctor")
    reason = f"{error}; session {pid} holds a table of ours for itself alone: let it end if it is a migration, else end it"
    return _unseen(check, reason, f"select pg_terminate_backend({pid});")


def _refused(check: Check, error: BaseException, database: Database) -> Finding:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if not isinstance(error, pg.InsufficientPrivilege):
        return _unseen(check, reason, "")
    user = role(_ask(database, _USER) or "that_user")
    if check.ours:
        return _unseen(
            check, reason, f"GRANT USAGE ON SCHEMA {SCHEMA} TO {user};\nGRANT SELECT ON ALL TABLES IN SCHEMA {SCHEMA} TO {user};"
        )
    return _unseen(check, reason, f"GRANT pg_monitor TO {user};")


def _unseen(check: Check, reason: str, fix: str) -> Finding:
    reason = redacted(" ".join(reason.split()))
    return Finding(check.name, "note", f"could not look at {check.about}: {reason}", fix, {"unseen": reason})


def _ask(database: Database, query: sa.TextClause, parameters: dict[str, str] | None = None) -> Any:
    """The answer to a question about what went wrong; None when that goes wrong as well."""
    try:
        with reading(database) as reader:
            return reader.connection.scalar(query, parameters)
    except (JobrunnerError, sa.exc.SQLAlchemyError):
        return None
