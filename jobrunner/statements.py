r"""Owns reading the SQL files: `sql/<name>.sql`, one statement each, with psql variables turned into psycopg placeholders.

It must not build SQL: what is in the file is what runs. A parameter is written `:'name'::type`, so that a file pastes into psql
after `\set name value`.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

_PARAMETER = re.compile(r":'([a-z_]+)'")
_COMMENT = re.compile(r"--[^\n]*")


@cache
def names() -> frozenset[str]:
    """The names of all statements there are."""
    return frozenset(entry.name.removesuffix(".sql") for entry in files("jobrunner.sql").iterdir() if entry.name.endswith(".sql"))


@cache
def source(name: str) -> str:
    """The file of a statement as it is, header included. Raises FileNotFoundError for an unknown name."""
    return files("jobrunner.sql").joinpath(f"{name}.sql").read_text(encoding="utf-8")


@cache
def load(name: str) -> str:
    """A statement for psycopg: comments cut, `%` doubled, `:'name'` as `%(name)s`; begins with a comment that names it.

    The name shows in `pg_stat_activity` and in the server's log.
    """
    body = " ".join(_COMMENT.sub("", source(name)).split())
    return f"/* jobrunner:{name} */ " + _PARAMETER.sub(r"%(\1)s", body.replace("%", "%%"))


@cache
def parameters(name: str) -> frozenset[str]:
    """The names of a statement's parameters."""
    return frozenset(_PARAMETER.findall(_COMMENT.sub("", source(name))))
