"""Owns the size of our indexes against what they hold: an estimate from statistics, or pgstattuple's word where it is installed.

It must not rebuild any. An index whose rows came and went keeps its pages: they cost memory, and where they are half empty each
claim reads more of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.doctor.findings import MOST, Finding, Look, megabytes, name
from jobrunner.settings import SCHEMA

if TYPE_CHECKING:
    from collections.abc import Iterator

MOST_READ = 2_000_000_000  # bytes of an index that pgstattuple may read whole: some seconds, which the statement's time-out bounds

# What a B-tree of so many entries takes: 8 bytes of header and the values of each, aligned, 4 bytes of line pointer, pages 90 % full.
# Entries: as many as the table has rows. For a partial index, and for one that keeps equal keys once, that is too many, so
# the estimate errs to the good side. The table's own count is taken where the statistics' one was lost in a crash; a table that was
# never counted (-1) has no estimate.
_INDEXES = sa.text("""
SELECT i.relname, c.relname AS of, pg_relation_size(i.oid) AS bytes,
       CASE WHEN c.reltuples >= 0 THEN
           (greatest(s.n_live_tup, c.reltuples) * (12 + (coalesce(w.width, 32) + 7) / 8 * 8) / 0.9)::bigint + 3 * 8192
       END AS needed
FROM pg_index x
JOIN pg_class i ON i.oid = x.indexrelid
JOIN pg_am am ON am.oid = i.relam AND am.amname = 'btree'
JOIN pg_class c ON c.oid = x.indrelid
JOIN pg_stat_all_tables s ON s.relid = c.oid
CROSS JOIN LATERAL (
    SELECT sum(CASE WHEN a.attlen > 0 THEN a.attlen ELSE coalesce(p.avg_width, 32) END)::bigint AS width
    FROM unnest(x.indkey) AS k (number)
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.number
    LEFT JOIN pg_stats p ON p.schemaname = :schema AND p.tablename = c.relname AND p.attname = a.attname AND NOT p.inherited
) w
WHERE c.relnamespace = to_regnamespace(:schema) AND i.relkind = 'i' AND x.indisvalid
ORDER BY bytes DESC
""")
_EXTENSION = sa.text("""
SELECT n.nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace JOIN pg_proc p ON p.pronamespace = n.oid
WHERE e.extname = 'pgstattuple' AND p.proname = 'pgstatindex' AND p.proargtypes[0] = 'regclass'::regtype
  AND has_function_privilege(p.oid, 'EXECUTE') AND has_schema_privilege(n.oid, 'USAGE')
""")


def look(given: Look) -> Iterator[Finding]:
    """Indexes that are several times too large, the largest first."""
    limits = given.limits
    rows = given.connection.execute(_INDEXES, {"schema": SCHEMA}).all()
    where = given.connection.scalar(_EXTENSION)
    found = 0
    for row in rows:
        needed, how = row.needed, "estimated"
        if where is not None and limits.index_wasted <= row.bytes <= MOST_READ:
            needed, how = _measured(given.connection, where, row), "measured by pgstattuple"
        wasted = row.bytes - (row.bytes if needed is None else needed)
        if found < MOST and wasted >= limits.index_wasted and row.bytes >= limits.index_factor * needed:
            found += 1
            yield Finding(
                "index_bloat",
                "note",
                f"index {row.relname} of {row.of} takes {megabytes(row.bytes)} and needs about {megabytes(needed)} ({how})",
                f"REINDEX INDEX CONCURRENTLY {name(SCHEMA, row.relname)};",
                {"index": row.relname, "table": row.of, "bytes": row.bytes, "needed_bytes": needed, "how": how},
            )
    if not found:
        size = sum(row.bytes for row in rows)
        yield Finding("index_bloat", "ok", f"no index is too large for what it holds; all take {megabytes(size)}", data={"bytes": size})


def _measured(connection: sa.Connection, extension: str, row: Any) -> int | None:
    """The bytes that the index would need; the estimate when reading it takes too long."""
    query = sa.text(
        f"SELECT (leaf_pages * avg_leaf_density / 90 * 8192)::bigint + (internal_pages + 2) * 8192 "  # noqa: S608  a quoted name
        f"FROM {name(extension, 'pgstatindex')}(CAST(:index AS regclass))"
    )
    try:
        with connection.begin_nested():
            needed: float | None = connection.scalar(query, {"index": name(SCHEMA, row.relname)})
    except sa.exc.DBAPIError as error:
        if error.connection_invalidated:
            raise
        return row.needed  # type: ignore[no-any-return]
    empty = needed is None or needed != needed  # noqa: PLR0124  density is NaN where there is no leaf at all
    return row.needed if empty else int(needed or 0)
