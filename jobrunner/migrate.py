"""Owns the schema's version: upgrade, check, print as SQL, and the refusals when it does not fit this program.

It must not run by itself: workers and web processes only check.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import sqlalchemy as sa
from psycopg.conninfo import conninfo_to_dict
from psycopg.errors import DeadlockDetected, InsufficientPrivilege, LockNotAvailable, ReadOnlySqlTransaction
from sqlalchemy.exc import DBAPIError

from jobrunner import jitter, schema
from jobrunner.drift import Expected
from jobrunner.drift import differences as compare
from jobrunner.errors import ConfigurationError, SchemaError, SchemaMissing, SchemaOutdated, SchemaTooNew
from jobrunner.settings import SCHEMA, describe_target, parse_dsn

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from alembic.config import Config

    from jobrunner.drift import Difference

logger = logging.getLogger(__name__)

_VERSION_TABLE = "alembic_version"
# Any number that no other program is likely to use; xact-level, so that it works through a transaction-mode pooler.
_UPGRADE_LOCK = 7_077_260_914_201_931_001
_TURN_PAUSE = (0.05, 0.25)  # seconds between two looks at the lock

# A revision waits 2 s for a lock (its own lock_timeout: enqueues queue up behind it), then lets others pass: about a minute in all.
LOCK_ATTEMPTS = 20
_LOCK_PAUSE = (0.5, 1.5)  # seconds

# The role is called like our schema, or its search_path says so: its own tables would be made among ours, and its own Alembic
# would read our version table.
_SHADOWED = "tables of %(target)s without a schema's name are made in schema %(schema)s: ALTER ROLE that_user SET search_path = public"

# What the owner of the database does about a missing right.
_MAY_READ = f"GRANT USAGE ON SCHEMA {SCHEMA} TO that_user; GRANT SELECT ON ALL TABLES IN SCHEMA {SCHEMA} TO that_user"
_MAY_MIGRATE = f"give the address of the schema's owner; or make one: CREATE SCHEMA {SCHEMA} AUTHORIZATION that_user"
_MAY_COMPARE = "GRANT TEMPORARY ON DATABASE this_database TO that_user; and let it read the schema"

_CONNECTING = {"application_name": "jobrunner-migrate", "connect_timeout": 10}
# A role's time-outs are meant for its queries; the connection with the lock waits idle for the other. The server looks whether
# the client is still there (PostgreSQL 14, Linux), so that what a killed upgrade was doing ends, and its locks with it.
_TRANSACTION_SETTINGS = """
SELECT set_config('statement_timeout', '0', true), set_config('idle_in_transaction_session_timeout', '0', true),
       set_config('lock_timeout', '2s', true),
       (SELECT set_config(name, '1s', true) FROM pg_settings
        WHERE name = 'client_connection_check_interval' AND version() LIKE '%%linux%%')
"""

# Who holds a lock on a table of ours that lets no DDL pass, longest first.
_LOCK_HOLDERS = """
SELECT format('pid %s, %s, %s since %s', a.pid, coalesce(nullif(a.application_name, ''), a.usename), a.state,
              to_char(a.xact_start AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"'))
FROM pg_stat_activity a
WHERE a.pid <> pg_backend_pid() AND a.xact_start IS NOT NULL AND a.pid IN (
    SELECT l.pid FROM pg_locks l JOIN pg_class c ON c.oid = l.relation
    WHERE l.granted AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND c.relnamespace = to_regnamespace(:schema)
)
ORDER BY a.xact_start LIMIT 5
"""

_DROP_EMPTY_SCHEMA = f"""
DO $$ BEGIN
    IF has_database_privilege(current_database(), 'CREATE') AND to_regnamespace('{SCHEMA}') IS NOT NULL THEN
        DROP SCHEMA {SCHEMA};
    END IF;
EXCEPTION WHEN dependent_objects_still_exist OR insufficient_privilege THEN
    NULL;
END $$
"""


@dataclass(frozen=True, slots=True)
class SchemaVersion:
    """Where the schema of a database stands.

    Attributes:
        current: the revision in the database; None when there is no schema.
        head: the revision this program needs.
        pending: revisions between the two, oldest first; empty when up to date or newer.
        known: False when `current` is a revision this program has never heard of (made by a newer one).
    """

    current: str | None
    head: str
    pending: tuple[str, ...]
    known: bool

    @property
    def up_to_date(self) -> bool:
        """Whether the schema is exactly what this program needs."""
        return self.current == self.head


def migrations_dir() -> Path:
    """The directory of the revisions: inside the installed package, else at the top of a checkout."""
    here = Path(__file__).resolve().parent
    for candidate in (here / "migrations", here.parent / "migrations"):
        if (candidate / "env.py").is_file():
            return candidate
    raise ConfigurationError("the migrations of Jobrunner are not installed", hint="reinstall: pip install --force-reinstall jobrunner-pg")


def version(dsn: str) -> SchemaVersion:
    """Read the schema's version; writes nothing.

    Raises:
        SchemaError: the user of `dsn` may not read it.
        sqlalchemy.exc.OperationalError: the database does not answer; `jobrunner.connecting.explain` says why.
    """
    with _engine(dsn) as engine, _explained(dsn, _MAY_READ), engine.connect() as connection:
        return _version(connection)


def version_on(connection: sa.Connection) -> SchemaVersion:
    """Read the schema's version on an open connection, inside its transaction; writes nothing."""
    return _version(connection)


def check(dsn: str) -> SchemaVersion:
    """Read the schema's version and refuse one that does not fit.

    Raises:
        SchemaMissing: no schema `jobrunner`.
        SchemaOutdated: older than this program needs.
        SchemaTooNew: a revision that this program does not know.
        SchemaError: the user of `dsn` may not read it.
    """
    found = version(dsn)
    if found.current is None:
        raise SchemaMissing(describe_target(dsn))
    if not found.known:
        raise SchemaTooNew(found.current, found.head)
    if not found.up_to_date:
        raise SchemaOutdated(found.current, found.head, len(found.pending))
    return found


def upgrade(dsn: str, revision: str = "head") -> tuple[str, ...]:
    """Bring the schema to `revision`; safe when any number of processes do it at once.

    A second connection holds a transaction with an advisory lock while the first migrates; late comers wait and then find
    nothing to do. Each revision is its own transaction: a kill in the middle leaves the schema at a whole revision. A revision
    gives way to running queries after its own lock_timeout, and is tried again for about a minute.

    Returns:
        The revisions that were run, oldest first; empty when there was nothing to do.

    Raises:
        SchemaTooNew: the schema is newer than this program; it is left alone.
        SchemaError: the user of `dsn` lacks a right, or others kept the tables locked.
        sqlalchemy.exc.OperationalError: the database does not answer; `jobrunner.connecting.explain` says why.
    """
    with _engine(dsn) as engine, _explained(dsn, _MAY_MIGRATE), _turn(engine) as guard, engine.connect() as connection:
        before = _version(connection)
        connection.rollback()
        if not before.known:
            raise SchemaTooNew(str(before.current), before.head)
        if before.up_to_date:
            return ()
        _run_patiently(connection, revision, guard)
        if connection.scalar(sa.text("SELECT current_schema()")) == SCHEMA:
            logger.warning(_SHADOWED, {"target": describe_target(dsn), "schema": SCHEMA})
        after = _version(connection)
        return tuple(step for step in before.pending if step not in after.pending)


def downgrade(dsn: str, revision: str) -> None:
    """Take the schema back to `revision`. For development and tests.

    `base` removes the tables with everything in them, and the schema itself unless something of somebody else's is in it or
    the user could not make it again.
    """
    from alembic import command

    with _engine(dsn) as engine, _explained(dsn, _MAY_MIGRATE), _turn(engine), engine.connect() as connection:
        command.downgrade(_config(connection=connection), revision)
        if _version(connection).current is None:
            connection.execute(sa.text(f"DROP TABLE IF EXISTS {SCHEMA}.{_VERSION_TABLE}"))
            connection.execute(sa.text(_DROP_EMPTY_SCHEMA))
        connection.commit()


def as_sql(start: str = "base", end: str = "head") -> str:
    """The SQL of the revisions after `start` up to `end`, for teams that migrate with another tool. Needs no connection."""
    from alembic import command

    out = io.StringIO()
    command.upgrade(_config(out=out), f"{start}:{end}" if start != "base" else end, sql=True)
    return out.getvalue()


def drift(dsn: str) -> list[str]:
    """The sentences of `differences`."""
    return [each.text for each in differences(dsn)]


def differences(dsn: str, *, timeout_ms: int = 0) -> list[Difference]:
    """Differences between the database and what this program expects, each with what puts it right; empty when there are none.

    Makes the expected tables, views, functions and triggers in the session's temporary schema and rolls back: takes no lock on a table
    of ours that a running job would notice.

    Args:
        timeout_ms: milliseconds after which the server breaks a statement off; 0: never.

    Raises:
        SchemaError: the server is read-only, or the user may not make temporary tables.
    """
    views: dict[str, str | None] = {}
    functions: dict[str, str | None] = {}
    triggers: dict[str, str | None] = {}
    from alembic.script import ScriptDirectory

    script = ScriptDirectory.from_config(_config())
    for step in reversed(list(script.walk_revisions())):
        views |= getattr(step.module, "VIEWS", {})
        functions |= getattr(step.module, "FUNCTIONS", {})
        triggers |= getattr(step.module, "TRIGGERS", {})
    expected = Expected(_present(views), _present(functions), _present(triggers), frozenset({_VERSION_TABLE}))
    with _engine(dsn) as engine, _explained(dsn, _MAY_COMPARE), engine.connect() as connection:
        return compare(connection, expected, timeout_ms)


def include_name(name: str | None, type_: str, parent_names: Mapping[str, str | None]) -> bool:
    """For the `include_name` of a user's own Alembic `env.py`: keeps their `--autogenerate` away from our schema.

    Use it as `context.configure(..., include_name=jobrunner.migrate.include_name)`, or call it from your own hook and go on
    when it returns True.
    """
    if type_ == "schema":
        return name != SCHEMA
    return parent_names.get("schema_name") != SCHEMA


def _version(connection: sa.Connection) -> SchemaVersion:
    order = _revisions()
    head = order[-1] if order else ""
    found = connection.scalar(sa.text("SELECT to_regclass(:table)"), {"table": f"{SCHEMA}.{_VERSION_TABLE}"})
    current = connection.scalar(sa.text(f"SELECT version_num FROM {SCHEMA}.{_VERSION_TABLE}")) if found else None  # noqa: S608  constants
    known = current is None or current in order
    pending = order[order.index(current) + 1 :] if current in order else (order if current is None else [])
    return SchemaVersion(current, head, tuple(pending), known)


@functools.cache
def _revisions() -> list[str]:
    """The revisions this program knows, oldest first. Read once: a dashboard asks on every page.

    From the files' names, `NNNN_…`: importing Alembic would be a quarter of the time of every reading command. A test holds them
    to what Alembic reads in the files.
    """
    return sorted(path.name.partition("_")[0] for path in (migrations_dir() / "versions").glob("[0-9]*.py"))


def _config(connection: sa.Connection | None = None, out: io.StringIO | None = None) -> Config:
    from alembic.config import Config

    config = Config(output_buffer=out) if out is not None else Config()
    config.set_main_option("script_location", str(migrations_dir()).replace("%", "%%"))
    config.attributes["connection"] = connection
    config.attributes["target_metadata"] = schema.metadata
    return config


@contextlib.contextmanager
def _turn(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A connection whose open transaction holds the upgrade lock; waits for it as long as it takes.

    By asking again and again, in statements without parameters: a session that waits inside a statement, or whose last one
    had parameters (its portal stays open), keeps a snapshot. CREATE INDEX CONCURRENTLY of the one that migrates would wait
    for it, and both for ever.
    """
    with engine.connect() as guard:
        told = False
        while not guard.exec_driver_sql(f"SELECT pg_try_advisory_xact_lock({_UPGRADE_LOCK})").scalar():
            guard.rollback()
            if not told:
                logger.info("another process is upgrading the schema; waiting until it is done")
                told = True
            _pause(_TURN_PAUSE)
        yield guard


def _run_patiently(connection: sa.Connection, revision: str, guard: sa.Connection) -> None:
    """Run the revisions; one that meets a lock or a deadlock is tried again, from the last whole revision on."""
    from alembic import command

    for attempt in range(1, LOCK_ATTEMPTS + 1):
        try:
            command.upgrade(_config(connection=connection), revision)
        except DBAPIError as error:
            connection.rollback()
            if not isinstance(error.orig, (LockNotAvailable, DeadlockDetected)):
                raise
            if attempt == LOCK_ATTEMPTS:
                raise _locked_out(guard) from error
            _pause(_LOCK_PAUSE)
        else:
            return


def _pause(seconds: tuple[float, float]) -> None:
    time.sleep(jitter.between(*seconds))  # spreads processes


def _locked_out(guard: sa.Connection) -> SchemaError:
    holders = guard.scalars(sa.text(_LOCK_HOLDERS), {"schema": SCHEMA}).all()
    return SchemaError(
        f"the upgrade gave up after {LOCK_ATTEMPTS} attempts: others keep the tables of Jobrunner locked"
        + (f" ({'; '.join(holders)})" if holders else ""),
        hint="wait for those transactions to end, or end them: select pg_terminate_backend(PID); then upgrade again",
    )


@contextlib.contextmanager
def _explained(dsn: str, mend: str) -> Iterator[None]:
    """Turns the refusals that a user of ours can mend into errors of ours; everything else passes."""
    try:
        yield
    except DBAPIError as error:
        if not isinstance(error.orig, (InsufficientPrivilege, ReadOnlySqlTransaction)):
            raise
        problem = f"{error.orig.diag.message_primary} (as {describe_target(dsn)})"
        if isinstance(error.orig, ReadOnlySqlTransaction):
            mend = "this is a replica, or read-only by a setting; give the primary's address"
        raise SchemaError(problem, hint=mend) from error


@contextlib.contextmanager
def _engine(dsn: str) -> Iterator[sa.Engine]:
    url = parse_dsn(dsn, "dsn").url

    def connect() -> psycopg.Connection[Any]:
        # libpq reads the address itself: SQLAlchemy's URLs know neither several hosts nor a service
        settings: dict[str, Any] = _CONNECTING | conninfo_to_dict(url)
        return psycopg.connect(**settings, prepare_threshold=None)

    engine = sa.create_engine("postgresql+psycopg://", creator=connect, poolclass=sa.NullPool)
    # In each transaction, not once: behind a transaction-mode pooler a session's settings would become somebody else's.
    sa.event.listen(engine, "begin", _set_up_transaction)
    try:
        yield engine
    finally:
        engine.dispose()


def _set_up_transaction(connection: sa.Connection) -> None:
    connection.exec_driver_sql(_TRANSACTION_SETTINGS)


def _present(definitions: Mapping[str, str | None]) -> dict[str, str]:
    return {name: text for name, text in definitions.items() if text is not None}
