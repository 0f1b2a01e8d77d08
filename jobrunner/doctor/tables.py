"""Owns dead rows: which tables of ours hold so many that statements pass over them. It must not vacuum."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from jobrunner.doctor.findings import MOST, Finding, Look, megabytes, name, several
from jobrunner.inspection import ago
from jobrunner.settings import SCHEMA

if TYPE_CHECKING:
    from collections.abc import Iterator

# pg_table_size waits for a table that is locked exclusively, so long as lock_timeout lets it: then the note says so.
_TABLES = sa.text("""
SELECT c.relname, s.n_live_tup, s.n_dead_tup, pg_table_size(c.oid) AS bytes, greatest(s.last_vacuum, s.last_autovacuum) AS vacuumed_at
FROM pg_class c JOIN pg_stat_all_tables s ON s.relid = c.oid
WHERE c.relnamespace = to_regnamespace(:schema) AND c.relkind = 'r'
ORDER BY s.n_dead_tup DESC
""")


def look(given: Look) -> Iterator[Finding]:
    """Tables with many dead rows, the worst first."""
    limits = given.limits
    rows = given.connection.execute(_TABLES, {"schema": SCHEMA}).all()
    many = [
        row
        for row in rows
        if row.n_dead_tup >= limits.dead_note and row.n_dead_tup >= limits.dead_share * (row.n_dead_tup + row.n_live_tup)
    ]
    for row in many[:MOST]:
        share = row.n_dead_tup / (row.n_dead_tup + row.n_live_tup)
        vacuumed = f"{ago(given.at - row.vacuumed_at)} ago" if row.vacuumed_at else "never, as far as is known"
        yield Finding(
            "dead_rows",
            "bad" if row.n_dead_tup >= limits.dead_bad else "note",
            f"{row.relname} has {several(row.n_dead_tup, 'dead row')} beside {row.n_live_tup:,} live ones ({share:.0%}) in "
            f"{megabytes(row.bytes)}; it was vacuumed {vacuumed}. Rows that a snapshot still sees go only after it has ended",
            f"VACUUM (ANALYZE) {name(SCHEMA, row.relname)};",
            {"table": row.relname, "dead_rows": row.n_dead_tup, "live_rows": row.n_live_tup, "share": round(share, 3), "bytes": row.bytes},
        )
    if not many:
        total, size = sum(row.n_dead_tup for row in rows), sum(row.bytes for row in rows)
        yield Finding("dead_rows", "ok", f"{several(total, 'dead row')} in all tables of ours", data={"dead_rows": total, "bytes": size})
