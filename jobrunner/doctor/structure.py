"""Owns differences of the schema from what this program expects, as findings. It must not compare: `jobrunner.drift` does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from jobrunner import migrate
from jobrunner.doctor.findings import Finding, Look, role
from jobrunner.errors import SchemaError

if TYPE_CHECKING:
    from collections.abc import Iterator

_WHO = sa.text("SELECT current_user, current_database()")


def look(given: Look) -> Iterator[Finding]:
    """One finding for each difference. What is not ours is a note: somebody put it there for a reason."""
    user, database = given.connection.execute(_WHO).one()
    try:
        found = migrate.differences(given.database.dsn.url, timeout_ms=_milliseconds(given))
    except SchemaError as error:
        fix = (
            error.hint.replace("that_user", role(user))
            .replace("this_database", role(database))
            .replace("; and let it read the schema", ";")
        )
        text = f"could not compare the schema with what is expected: {error}"
        yield Finding("structure", "note", text, fix, {"unseen": str(error)})
        return
    for each in found:
        code = f"{each.what}_index" if each.kind == "index" and each.what in {"missing", "invalid"} else "drift"
        data = {"kind": each.kind, "name": each.name, "table": each.table, "what": each.what}
        yield Finding(code, "note" if each.what == "foreign" else "bad", each.text, each.fix, data)
    if not found:
        yield Finding("structure", "ok", "tables, columns, constraints, indexes, views and functions are as expected")


def _milliseconds(given: Look) -> int:
    return int(given.connection.scalar(sa.text("SELECT setting FROM pg_settings WHERE name = 'statement_timeout'")) or 0)
