"""Owns the comparison of a database with what this program expects: tables and their parts, views, functions.

It must leave nothing behind: the expected objects are made in the session's temporary schema, described by the server's own
catalog functions like the real ones, and rolled back. So both sides are spelled alike on every version of PostgreSQL.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from psycopg.errors import UndefinedColumn, UndefinedFunction, UndefinedTable
from sqlalchemy.exc import DBAPIError

from jobrunner import schema
from jobrunner.settings import SCHEMA

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from collections.abc import Set as AbstractSet

_LOCK_TIMEOUT = "5s"  # a DDL statement of somebody else that holds a table longer makes the comparison fail, not hang

# Of each namespace. Partitions are left out: ensure_partitions makes them like their parent. So is what retention copies of a day
# into a table that is about to take its place.
_RELATIONS = """
SELECT c.relname, CASE WHEN c.relkind IN ('r', 'p') THEN 'table' ELSE 'view' END
FROM pg_class c
WHERE c.relnamespace = :namespace AND c.relkind IN ('r', 'p', 'v', 'm', 'f') AND NOT c.relispartition
  AND c.relname !~ '^job_(history|attempts)_[0-9]{8}_kept$'
"""
# These four give (table, name, facts…).
_COLUMNS = """
SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod),
       CASE WHEN a.attnotnull THEN 'not null' ELSE 'nullable' END,
       'default ' || CASE WHEN a.attidentity <> '' THEN 'identity' ELSE coalesce(pg_get_expr(d.adbin, d.adrelid), 'none') END
FROM pg_class c
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
WHERE c.relnamespace = :namespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
"""
_CONSTRAINTS = """
SELECT c.relname, k.conname, pg_get_constraintdef(k.oid)
FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid
WHERE c.relnamespace = :namespace AND NOT c.relispartition AND k.contype IN ('c', 'f', 'p', 'u', 'x')
"""
_INDEXES = """
SELECT c.relname, i.relname, CASE WHEN x.indisunique THEN 'unique ' ELSE '' END || split_part(pg_get_indexdef(i.oid), ' USING ', 2)
FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_class c ON c.oid = x.indrelid
WHERE c.relnamespace = :namespace AND NOT c.relispartition AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = i.oid)
"""
# Without the names of the two schemas, which are where the table and the function are.
_TRIGGERS = """
SELECT c.relname, t.tgname, replace(replace(pg_get_triggerdef(t.oid), 'pg_temp.', ''), 'jobrunner.', ''),
       CASE t.tgenabled WHEN 'O' THEN 'enabled' WHEN 'D' THEN 'disabled' WHEN 'R' THEN 'enabled on replicas only' ELSE 'enabled always' END
FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
WHERE c.relnamespace = :namespace AND NOT c.relispartition AND NOT t.tgisinternal
"""
_PARTS_OF_TABLES = (("column", _COLUMNS), ("constraint", _CONSTRAINTS), ("index", _INDEXES), ("trigger", _TRIGGERS))
# These two give (name, definition).
_VIEWS = "SELECT c.relname, pg_get_viewdef(c.oid) FROM pg_class c WHERE c.relnamespace = :namespace AND c.relkind = 'v'"
_FUNCTIONS = """
SELECT p.proname || '(' || oidvectortypes(p.proargtypes) || ')',
       ARRAY[pg_get_function_arguments(p.oid), pg_get_function_result(p.oid), l.lanname, p.prosrc, p.provolatile::text, p.proparallel::text,
             p.prosecdef::text, p.proisstrict::text, array_to_string(p.proconfig, ',')]
FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang
WHERE p.pronamespace = :namespace
"""
# Of partitions as well: one of them is enough to make a read slow.
_INVALID_INDEXES = """
SELECT i.relname FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid
WHERE i.relnamespace = :namespace AND NOT (x.indisvalid AND x.indisready)
ORDER BY 1
"""
_WITHOUT_DEFAULT = """
SELECT c.relname FROM pg_partitioned_table t JOIN pg_class c ON c.oid = t.partrelid
WHERE c.relnamespace = :namespace AND t.partdefid = 0
ORDER BY 1
"""

_SETTINGS = (
    # Unqualified names are found in pg_temp, nothing of the user's in between; a role may set timeouts that are too short.
    "SET LOCAL search_path TO pg_catalog",
    "SET LOCAL statement_timeout = 0",
    f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'",
    # A function that mentions a missing table is compared by its text; the table is reported by itself.
    "SET LOCAL check_function_bodies = off",
)


@dataclass(frozen=True, slots=True)
class Expected:
    """What a schema should hold besides the tables of `jobrunner.schema`.

    Attributes:
        views: name → query.
        functions: name → what follows the name in CREATE FUNCTION.
        triggers: name → what follows the name in CREATE TRIGGER.
        foreign: names of tables in the schema that are not compared: the version table.
    """

    views: Mapping[str, str]
    functions: Mapping[str, str]
    triggers: Mapping[str, str]
    foreign: frozenset[str]


def differences(connection: sa.Connection, expected: Expected) -> list[str]:
    """One sentence for each difference, tables first; empty when there is none. Rolls the connection's transaction back.

    Raises:
        sqlalchemy.exc.DBAPIError: the user may not make temporary tables in this database, or the server is read-only.
    """
    try:
        for setting in _SETTINGS:
            connection.exec_driver_sql(setting)
        _make(connection, expected)
        real = connection.scalar(sa.text("SELECT to_regnamespace(:name)::oid"), {"name": SCHEMA})
        if real is None:
            return [f"schema {SCHEMA} is missing"]
        wanted = connection.scalar(sa.text("SELECT pg_my_temp_schema()::oid"))
        return list(_compare(_Sides(connection, wanted, real), expected))
    finally:
        connection.rollback()


def _make(connection: sa.Connection, expected: Expected) -> None:
    """Make the expected objects as temporary ones."""
    temporary = connection.execution_options(schema_translate_map={SCHEMA: "pg_temp"})
    schema.metadata.create_all(temporary, checkfirst=False)
    for name, definition in expected.functions.items():
        connection.exec_driver_sql(f"CREATE FUNCTION pg_temp.{name}{_literally(definition)}")
    for name, definition in expected.triggers.items():
        connection.exec_driver_sql(f"CREATE TRIGGER {name}{_literally(definition.replace(f'{SCHEMA}.', 'pg_temp.'))}")
    for name, query in expected.views.items():
        # A view that reads a missing column cannot be made: the column is reported, and the view as changed.
        try:
            with connection.begin_nested():
                connection.exec_driver_sql(f"CREATE TEMPORARY VIEW {name} AS {_literally(query)}")
        except DBAPIError as error:
            if not isinstance(error.orig, (UndefinedColumn, UndefinedFunction, UndefinedTable)):
                raise


def _literally(text: str) -> str:
    return text.replace("%", "%%")  # psycopg's placeholders


class _Sides:
    """Reads the same facts of the expected and of the real namespace."""

    def __init__(self, connection: sa.Connection, expected: int, real: int) -> None:
        self._connection = connection
        self._namespaces = (expected, real)

    def read(self, query: str) -> list[list[tuple[Any, ...]]]:
        """The rows of the expected namespace, and those of the real one."""
        return [[tuple(row) for row in self._connection.execute(sa.text(query), {"namespace": each})] for each in self._namespaces]

    def names(self, query: str) -> list[str]:
        """Names in the real namespace."""
        return list(self._connection.scalars(sa.text(query), {"namespace": self._namespaces[1]}))


def _compare(sides: _Sides, expected: Expected) -> Iterator[str]:
    wanted, found = ([(name, kind) for name, kind in side if name not in expected.foreign] for side in sides.read(_RELATIONS))
    yield from _presence("table", *({name for name, kind in side if kind == "table"} for side in (wanted, found)))
    yield from _parts(sides, {name for name, kind in wanted if kind == "table"} & {name for name, _ in found})
    for name in sides.names(_INVALID_INDEXES):
        yield f"index {name} is invalid, its build was broken off; to mend it: REINDEX INDEX CONCURRENTLY {SCHEMA}.{name}"
    for name in sides.names(_WITHOUT_DEFAULT):
        yield f"table {name} has no default partition, so an insert for a day without a partition fails"
    yield from _presence("view", expected.views.keys(), {name for name, kind in found if kind == "view"})
    made, real = (dict(side) for side in sides.read(_VIEWS))
    yield from _redefined("view", dict.fromkeys(expected.views, "") | made, real)
    made, real = (dict(side) for side in sides.read(_FUNCTIONS))
    yield from _presence("function", made.keys(), real.keys())
    yield from _redefined("function", made, real)


def _parts(sides: _Sides, tables: set[str]) -> Iterator[str]:
    """Columns, constraints, indexes and triggers of the tables that are there."""
    for kind, query in _PARTS_OF_TABLES:
        made, real = ({f"{name} of {table}": facts for table, name, *facts in side if table in tables} for side in sides.read(query))
        yield from _presence(kind, made.keys(), real.keys())
        for name in sorted(made.keys() & real.keys()):
            for is_, should in zip(real[name], made[name], strict=True):
                if is_ != should:
                    yield f"{kind} {name} was changed: it is {is_}, expected {should}"


def _redefined(kind: str, made: Mapping[str, Any], real: Mapping[str, Any]) -> Iterator[str]:
    for name in sorted(made.keys() & real.keys()):
        if made[name] != real[name]:
            yield f"{kind} {name} was changed: its definition is not the expected one"


def _presence(kind: str, expected: AbstractSet[str], real: AbstractSet[str]) -> Iterator[str]:
    yield from (f"{kind} {name} is missing" for name in sorted(expected - real))
    yield from (f"{kind} {name} is not one of ours" for name in sorted(real - expected))
