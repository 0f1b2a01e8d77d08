"""Owns the schema's version: upgrade, check, print as SQL, and the refusals when it does not fit this program.

It must not run by itself: workers and web processes only check. The only other module that talks to the database is `store`.
"""

from __future__ import annotations

import contextlib
import functools
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from jobrunner import schema
from jobrunner.errors import ConfigurationError, SchemaMissing, SchemaOutdated, SchemaTooNew
from jobrunner.settings import SCHEMA, describe_target, parse_dsn

if TYPE_CHECKING:
    from collections.abc import Mapping

_VERSION_TABLE = "alembic_version"
# Any number that no other program is likely to use; xact-level, so that it works through a transaction-mode pooler.
_UPGRADE_LOCK = 7_077_260_914_201_931_001


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
    """Read the schema's version; writes nothing. Raises sqlalchemy.exc.OperationalError when the database does not answer."""
    with _engine(dsn) as engine, engine.connect() as connection:
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

    A second connection holds a transaction with an advisory lock while the first migrates, so late comers wait and then find
    nothing to do. Each revision is its own transaction: a kill in the middle leaves the schema at a whole revision.

    Returns:
        The revisions that were run, oldest first; empty when there was nothing to do.

    Raises:
        SchemaTooNew: the schema is newer than this program; it is left alone.
    """
    with _engine(dsn) as engine, engine.connect() as guard, guard.begin():
        guard.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _UPGRADE_LOCK})
        with engine.connect() as connection:
            before = _version(connection)
            connection.rollback()
            if before.current is not None and not before.known:
                raise SchemaTooNew(before.current, before.head)
            if before.up_to_date:
                return ()
            command.upgrade(_config(connection=connection), revision)
            after = _version(connection)
            return tuple(step for step in before.pending if step not in after.pending)


def downgrade(dsn: str, revision: str) -> None:
    """Take the schema back to `revision` (`base` removes the tables and everything in them). For development and tests."""
    with _engine(dsn) as engine, engine.connect() as connection:
        command.downgrade(_config(connection=connection), revision)


def as_sql(start: str = "base", end: str = "head") -> str:
    """The SQL of the revisions after `start` up to `end`, for teams that migrate with another tool. Needs no connection."""
    out = io.StringIO()
    command.upgrade(_config(out=out), f"{start}:{end}" if start != "base" else end, sql=True)
    return out.getvalue()


def drift(dsn: str) -> list[str]:
    """Differences between the database and the tables this program expects, one sentence each; empty when there are none."""
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    def ours(name: str | None, kind: str, _parents: Mapping[str, object]) -> bool:
        if kind == "schema":
            return name == SCHEMA
        return not (kind == "table" and (name == _VERSION_TABLE or _is_partition(name or "")))

    with _engine(dsn) as engine, engine.connect() as connection:
        # A role named like our schema has it as its default one, which Alembic then calls None: every table would be "missing".
        connection.execute(sa.text("SET LOCAL search_path TO pg_catalog"))
        connection.dialect.default_schema_name = "pg_catalog"
        context = MigrationContext.configure(
            connection, opts={"include_schemas": True, "include_name": ours, "compare_server_default": False, "version_table_schema": SCHEMA}
        )
        found = compare_metadata(context, schema.metadata)
    # Changes of one column come as a list of tuples, everything else as one tuple.
    return [_sentence(step) for difference in found for step in (difference if isinstance(difference, list) else [difference])]


def _sentence(step: Any) -> str:
    """One difference that Alembic found, from the view of the database: what it would add is missing there."""
    verb, *details = step
    change, _, kind = verb.partition("_")
    if kind == "column" and change in ("add", "remove"):
        name = f"column {details[1]}.{details[2].name}"
    elif change == "modify":
        return f"column {details[1]}.{details[2]}: {kind} is {details[4]!r}, expected {details[5]!r}"
    else:
        table = getattr(details[0], "table", None)
        name = f"{kind} {details[0].name or details[0]}{f' of {table.name}' if table is not None else ''}"
    return f"{name} is missing" if change == "add" else f"{name} is not one of ours"


def include_name(name: str | None, type_: str, parent_names: Mapping[str, str | None]) -> bool:
    """For the `include_name` of a user's own Alembic `env.py`: keeps their `--autogenerate` away from our schema.

    Use it as `context.configure(..., include_name=jobrunner.migrate.include_name)`, or call it from your own hook and go on
    when it returns True.
    """
    if type_ == "schema":
        return name != SCHEMA
    return parent_names.get("schema_name") != SCHEMA


def _is_partition(name: str) -> bool:
    return any(name.startswith(f"{parent}_") for parent in schema.PARTITIONED)


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
    """The revisions this program knows, oldest first. Read once: a dashboard asks on every page."""
    script = ScriptDirectory.from_config(_config())
    return [step.revision for step in reversed(list(script.walk_revisions()))]


def _config(connection: sa.Connection | None = None, out: io.StringIO | None = None) -> Config:
    config = Config(output_buffer=out) if out is not None else Config()
    config.set_main_option("script_location", str(migrations_dir()).replace("%", "%%"))
    config.attributes["connection"] = connection
    config.attributes["target_metadata"] = schema.metadata
    return config


@contextlib.contextmanager
def _engine(dsn: str):  # type: ignore[no-untyped-def]  # Iterator[sa.Engine]
    engine = sa.create_engine(parse_dsn(dsn, "dsn").sqlalchemy_url, poolclass=sa.NullPool, connect_args={"prepare_threshold": None})
    try:
        yield engine
    finally:
        engine.dispose()
