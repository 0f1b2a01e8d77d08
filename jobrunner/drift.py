"""Owns the comparison of a database with what this program expects: tables and their parts, views, functions.

It must leave nothing behind: the expected objects are made in the session's temporary schema, described by the server's own
catalog functions like the real ones, and rolled back. So both sides are spelled alike on every version of PostgreSQL.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import sqlalchemy as sa
from psycopg.errors import UndefinedColumn, UndefinedFunction, UndefinedTable
from sqlalchemy.exc import DBAPIError

from jobrunner import mending, schema
from jobrunner.settings import SCHEMA

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_LOCK_TIMEOUT = "5s"  # a DDL statement of somebody else that holds a table longer makes the comparison fail, not hang

What = Literal["missing", "foreign", "changed", "invalid", "no_default"]

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


class Difference(NamedTuple):
    """One thing that is not as it should be.

    Attributes:
        kind: `table`, `column`, `constraint`, `index`, `view`, `function` or `schema`.
        name: of it.
        table: whose part it is; empty for what is none.
        what: `foreign` is there and is not ours.
        text: a sentence.
        fix: the SQL that puts it right, a statement or more; or, without a semicolon at its end, what to do.
    """

    kind: str
    name: str
    table: str
    what: What
    text: str
    fix: str


def differences(connection: sa.Connection, expected: Expected, timeout_ms: int = 0) -> list[Difference]:
    """The differences, tables first; empty when there is none. Rolls the connection's transaction back.

    Args:
        timeout_ms: milliseconds after which the server breaks a statement off; 0: never.

    Raises:
        sqlalchemy.exc.DBAPIError: the user may not make temporary tables in this database, the server is read-only, or took too long.
    """
    try:
        for setting in (*_SETTINGS, f"SET LOCAL statement_timeout = {timeout_ms:d}"):
            connection.exec_driver_sql(setting)
        _make(connection, expected)
        real = connection.scalar(sa.text("SELECT to_regnamespace(:name)::oid"), {"name": SCHEMA})
        if real is None:
            return [Difference("schema", SCHEMA, "", "missing", f"schema {SCHEMA} is missing", "jobrunner db upgrade")]
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


def _compare(sides: _Sides, expected: Expected) -> Iterator[Difference]:
    wanted, found = ([(name, kind) for name, kind in side if name not in expected.foreign] for side in sides.read(_RELATIONS))
    ours, theirs = ({name: "" for name, kind in side if kind == "table"} for side in (wanted, found))
    yield from _presence("table", ours, theirs, mending.table)
    parts = list(_parts(sides, ours.keys() & {name for name, _ in found}))
    yield from parts
    strange = {each.name: each for each in parts if (each.kind, each.what) == ("index", "foreign")}
    for name in sides.names(_INVALID_INDEXES):
        text = f"index {name} is invalid, its build was broken off"
        if name in strange:
            yield Difference("index", name, strange[name].table, "invalid", text, strange[name].fix)
        else:
            text = f"{text}; to mend it: REINDEX INDEX CONCURRENTLY {SCHEMA}.{name}"
            yield Difference("index", name, "", "invalid", text, mending.invalid(name))
    for name in sides.names(_WITHOUT_DEFAULT):
        text = f"table {name} has no default partition, so an insert for a day without a partition fails"
        yield Difference("table", name, "", "no_default", text, mending.default_partition(name))

    def view(name: str) -> str:
        return mending.view(name, expected.views)

    def function(name: str) -> str:
        return mending.function(name, expected.functions)

    yield from _presence("view", expected.views, {name: "" for name, kind in found if kind == "view"}, view)
    made, real = (dict(side) for side in sides.read(_VIEWS))
    yield from _redefined("view", dict.fromkeys(expected.views, "") | made, real, view)
    made, real = (dict(side) for side in sides.read(_FUNCTIONS))
    yield from _presence("function", made, real, function)
    yield from _redefined("function", made, real, function)


def _parts(sides: _Sides, tables: set[str]) -> Iterator[Difference]:
    """Columns, constraints, indexes and triggers of the tables that are there."""
    for kind, query in _PARTS_OF_TABLES:
        made, real = ({f"{name} of {table}": facts for table, name, *facts in side if table in tables} for side in sides.read(query))

        def fix(label: str, kind: str = kind, made: Mapping[str, Any] = made, real: Mapping[str, Any] = real) -> str:
            return mending.part(kind, *_named(label), made[label], real.get(label))

        yield from _presence(kind, made, real, fix)
        for name in sorted(made.keys() & real.keys()):
            for is_, should in zip(real[name], made[name], strict=True):
                if is_ != should:
                    text = f"{kind} {name} was changed: it is {is_}, expected {should}"
                    yield Difference(kind, *_named(name), "changed", text, fix(name))


def _redefined(kind: str, made: Mapping[str, Any], real: Mapping[str, Any], fix: Callable[[str], str]) -> Iterator[Difference]:
    for name in sorted(made.keys() & real.keys()):
        if made[name] != real[name]:
            text = f"{kind} {name} was changed: its definition is not the expected one"
            yield Difference(kind, name, "", "changed", text, fix(name))


def _presence(kind: str, expected: Mapping[str, Any], real: Mapping[str, Any], fix: Callable[[str], str]) -> Iterator[Difference]:
    for label in sorted(expected.keys() - real.keys()):
        yield Difference(kind, *_named(label), "missing", f"{kind} {label} is missing", fix(label))
    for label in sorted(real.keys() - expected.keys()):
        yield Difference(kind, *_named(label), "foreign", f"{kind} {label} is not one of ours", mending.foreign(kind, *_named(label)))


def _named(label: str) -> tuple[str, str]:
    """The name, and the table whose part it is."""
    name, _, table = label.partition(" of ")
    return name, table
