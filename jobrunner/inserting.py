"""Owns the statements that write jobs: texts that are made once per set of columns, for psycopg and for SQLAlchemy.

It must not choose the transaction (`enqueue` does) nor look at arguments (`payload` did). Column names come from the table's own
definition, never from a caller.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, LiteralString, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from jobrunner import schema
from jobrunner.settings import SCHEMA

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_TYPES = {name: str(schema.jobs.c[name].type.compile(postgresql.dialect())) for name in schema.INSERTABLE}  # type: ignore[no-untyped-call]
_TABLE = f"{SCHEMA}.jobs"
_CONFLICT = " ON CONFLICT (task, unique_key) WHERE unique_key IS NOT NULL DO NOTHING"
_FENCE = f"SELECT 1 FROM {_TABLE} WHERE id = CAST(:fence_id AS bigint) AND lease = CAST(:fence_lease AS bigint) AND state = 'running'"  # noqa: S608
_AFTER_DELAY, _AFTER_TTL = "now() + CAST(:delay AS interval)", "now() + CAST(:ttl AS interval)"
# A sub-select, so that the name is looked up once and not for every id: 100,000 ids took 0.65 s otherwise.
_SEQUENCE = f"(SELECT CAST(pg_get_serial_sequence('{_TABLE}', 'id') AS regclass))"


class Statement(NamedTuple):
    """One statement in two dialects with the same parameters.

    Attributes:
        raw: for psycopg, with `%(name)s`.
        core: for a SQLAlchemy connection of any driver, with `:name`.
    """

    raw: LiteralString
    core: sa.TextClause

    @staticmethod
    def of(text: str) -> Statement:
        """From text with `:name` parameters and no other colon: types are written CAST(…), because `::` is not for `sa.text`."""
        return Statement(re.sub(r":(\w+)", r"%(\1)s", text), sa.text(text))


@functools.lru_cache(maxsize=512)
def insert_one(
    columns: tuple[str, ...], *, delayed: bool, unique: bool, fenced: bool = False, expiring: bool = False, referenced: bool = False
) -> Statement:
    """INSERT of one job, giving its id; with `unique`, no row when a live job has the key.

    Args:
        columns: sent by the caller; the table's defaults fill the rest.
        delayed: `run_at` is the parameter `delay` after the database's clock.
        unique: a conflict on the unique key is no error.
        fenced: no row either when the attempt (`fence_id`, `fence_lease`) does not run any more.
        expiring: `expires_at` is the parameter `ttl` after the database's clock.
        referenced: no row either when the reference (`reference_space`, `reference_key`) is taken; else it is the job's. Not with `unique`.
    """
    names, values = _columns(columns, delayed=delayed, expiring=expiring)
    if referenced:
        # The reference comes first, with the id that the job will have: a conflict must not be an error, which would end the caller's
        # transaction, nor leave a job behind.
        return Statement.of(
            f"WITH reference AS (INSERT INTO {SCHEMA}.job_references (space, key, job_id) "  # noqa: S608  constants
            f"SELECT CAST(:reference_space AS text), CAST(:reference_key AS text), nextval({_SEQUENCE})"
            f"{f' WHERE EXISTS ({_FENCE})' if fenced else ''} ON CONFLICT (space, key) DO NOTHING RETURNING job_id) "
            f"INSERT INTO {_TABLE} (id, {', '.join(names)}) SELECT job_id, {', '.join(values)} FROM reference RETURNING id"
        )
    source = f"SELECT {', '.join(values)} WHERE EXISTS ({_FENCE})" if fenced else f"VALUES ({', '.join(values)})"
    return Statement.of(f"INSERT INTO {_TABLE} ({', '.join(names)}) {source}{_CONFLICT if unique else ''} RETURNING id")


@functools.cache
def fence() -> Statement:
    """One row while the attempt (`fence_id`, `fence_lease`) runs.

    Takes no lock: one would make the worker's own writes about the job wait for the task's transaction.
    """
    return Statement.of(_FENCE)


@functools.lru_cache(maxsize=512)
def insert_many(columns: tuple[str, ...], *, delayed: bool, unique: bool, expiring: bool = False) -> Statement:
    """INSERT of several jobs that differ in their arguments only, from the array literal `args_list`; gives their ids.

    Args:
        columns: sent by the caller and the same for each row.
        delayed, expiring: as for `insert_one`.
        unique: there are also the arrays `unique_keys` and `ids`; rows whose key is taken are left out.
    """
    names, values = _columns(columns, delayed=delayed, expiring=expiring)
    sources, given, returned = "CAST(:args_list AS text[])", "args", "id"
    if unique:
        sources += ", CAST(:unique_keys AS text[]), CAST(:ids AS bigint[])"
        given, returned = "args, unique_key, id", "id, unique_key"
        values += ["given.unique_key", "given.id"]
        names += ["unique_key", "id"]
    return Statement.of(
        f"INSERT INTO {_TABLE} ({', '.join(names)}, args) SELECT {', '.join(values)}, CAST(given.args AS jsonb) "  # noqa: S608
        f"FROM unnest({sources}) WITH ORDINALITY AS given({given}, place) "
        f"ORDER BY given.place{_CONFLICT if unique else ''} RETURNING {returned}"
    )


@functools.cache
def find_unique() -> Statement:
    """The live jobs of one task that hold some of the given unique keys."""
    return Statement.of(
        f"SELECT id, unique_key FROM {_TABLE} WHERE task = :task AND unique_key = ANY (CAST(:unique_keys AS text[]))"  # noqa: S608
    )


@functools.lru_cache(maxsize=4)
def allocate_ids(*, delayed: bool, expiring: bool = False) -> Statement:
    """The next `count` ids: the first and last when nobody else took one in between, else all of them; `run_at` and `expires_at`."""
    return Statement.of(
        f"WITH taken AS MATERIALIZED (SELECT nextval({_SEQUENCE}) AS id FROM generate_series(1, CAST(:count AS integer))) "  # noqa: S608
        "SELECT min(id), max(id), CASE WHEN max(id) - min(id) + 1 <> count(*) THEN array_agg(id ORDER BY id) END, "
        f"{_AFTER_DELAY if delayed else 'NULL'}, {_AFTER_TTL if expiring else 'NULL'} FROM taken"
    )


def copy_text(columns: Sequence[str]) -> LiteralString:
    """COPY of id, args and the given columns, in that order, in text format."""
    _check(columns)
    return f"COPY {_TABLE} ({', '.join(['id', 'args', *columns])}) FROM STDIN"


def copy_field(text: str) -> str:
    """Text as one field of a COPY."""
    return text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")


def array_literal(texts: Iterable[str]) -> str:
    """Texts as PostgreSQL writes an array: every driver sends it as plain text, and it is cheaper than adapting a list."""
    return "{" + ",".join(['"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"' for text in texts]) + "}"


def _columns(columns: Sequence[str], *, delayed: bool, expiring: bool) -> tuple[list[str], list[str]]:
    """Names and expressions; `delayed` adds run_at and `expiring` expires_at, both counted from the database's clock."""
    _check(columns)
    later = {**({"run_at": _AFTER_DELAY} if delayed else {}), **({"expires_at": _AFTER_TTL} if expiring else {})}
    return [*columns, *later], [*(f"CAST(:{column} AS {_TYPES[column]})" for column in columns), *later.values()]


def _check(columns: Sequence[str]) -> None:
    if unknown := set(columns) - set(schema.INSERTABLE):
        raise ValueError(f"not columns that an application may set: {sorted(unknown)}")
