"""Owns whether autovacuum does its work: switched off, late, or behind with freezing. It must not vacuum."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from jobrunner.doctor.findings import MOST, Finding, Look, name, several
from jobrunner.inspection import ago
from jobrunner.settings import SCHEMA

if TYPE_CHECKING:
    from collections.abc import Iterator

# A table's own settings go before the server's. What was never vacuumed is as old as the statistics, or as the server.
_TABLES = sa.text("""
SELECT c.relname, coalesce(o.enabled, true) AS enabled, s.n_dead_tup,
       coalesce(o.threshold, current_setting('autovacuum_vacuum_threshold')::float8)
           + coalesce(o.scale, current_setting('autovacuum_vacuum_scale_factor')::float8) * greatest(c.reltuples, 0) AS comes_at,
       clock_timestamp() - coalesce(greatest(s.last_vacuum, s.last_autovacuum), greatest(d.stats_reset, pg_postmaster_start_time())) AS away
FROM pg_class c
JOIN pg_stat_all_tables s ON s.relid = c.oid
JOIN pg_stat_database d ON d.datname = current_database()
CROSS JOIN LATERAL (
    SELECT bool_and(option_value::boolean) FILTER (WHERE option_name = 'autovacuum_enabled') AS enabled,
           max(option_value::float8) FILTER (WHERE option_name = 'autovacuum_vacuum_threshold') AS threshold,
           max(option_value::float8) FILTER (WHERE option_name = 'autovacuum_vacuum_scale_factor') AS scale
    FROM pg_options_to_table(c.reloptions)
    WHERE option_name IN ('autovacuum_enabled', 'autovacuum_vacuum_threshold', 'autovacuum_vacuum_scale_factor')
) o
WHERE c.relnamespace = to_regnamespace(:schema) AND c.relkind = 'r'
ORDER BY s.n_dead_tup DESC
""")
_SETTINGS = sa.text("SELECT current_setting('autovacuum')::boolean AS runs, current_setting('track_counts')::boolean AS counts")
# Databases that nobody may connect to are the server's own.
_AGES = sa.text("""
SELECT datname, age(datfrozenxid) AS xids, mxid_age(datminmxid) AS multixacts,
       current_setting('autovacuum_freeze_max_age')::bigint AS begins_at
FROM pg_database WHERE datallowconn ORDER BY greatest(age(datfrozenxid), mxid_age(datminmxid)) DESC LIMIT 1
""")


def look(given: Look) -> Iterator[Finding]:
    """Whether autovacuum runs at all, for every table of ours, and comes in time."""
    runs, counts = given.connection.execute(_SETTINGS).one()
    rows = given.connection.execute(_TABLES, {"schema": SCHEMA}).all()
    found = []
    for setting, on in (("autovacuum", runs), ("track_counts", counts)):
        if not on:
            text = f"{setting} is off on this server: nothing removes dead rows, and claims get slower with every job"
            fix = f"ALTER SYSTEM SET {setting} = on;\nSELECT pg_reload_conf();"
            found.append(Finding("autovacuum_off", "bad", text, fix, {"setting": setting, "table": None}))
    for row in [row for row in rows if not row.enabled][:MOST]:
        text = f"autovacuum is switched off for table {row.relname}: its dead rows ({row.n_dead_tup:,}) stay"
        fix = f"ALTER TABLE {name(SCHEMA, row.relname)} RESET (autovacuum_enabled);"
        found.append(Finding("autovacuum_off", "bad", text, fix, {"setting": "autovacuum_enabled", "table": row.relname}))
    late = [row for row in rows if row.n_dead_tup >= given.limits.vacuum_factor * row.comes_at and row.away >= given.limits.vacuum_lag]
    for row in late[:MOST]:
        text = (
            f"autovacuum is late: {row.relname} has {several(row.n_dead_tup, 'dead row')}, it should come at {row.comes_at:,.0f}, and "
            f"has not been there for {ago(row.away)}"
        )
        facts = {
            "table": row.relname,
            "dead_rows": row.n_dead_tup,
            "comes_at": round(row.comes_at),
            "away_seconds": round(row.away.total_seconds()),
        }
        found.append(Finding("autovacuum_late", "bad", text, f"VACUUM (ANALYZE) {name(SCHEMA, row.relname)};", facts))
    yield from found or [
        Finding("autovacuum", "ok", f"autovacuum is on for all {len(rows)} tables, and not late", data={"tables": len(rows)})
    ]


def freezing(given: Look) -> Iterator[Finding]:
    """How far the oldest unfrozen row of any database is from where the server stops taking writes."""
    row = given.connection.execute(_AGES).one()
    age = max(row.xids, row.multixacts)
    data = {"database": row.datname, "xids": row.xids, "multixacts": row.multixacts, "begins_at": row.begins_at}
    if age < given.limits.freeze_note:
        yield Finding("freezing", "ok", f"the oldest unfrozen row is {age:,} transactions old", data=data)
        return
    text = (
        f"database {row.datname!r} has unfrozen rows {age:,} transactions old; autovacuum begins at {row.begins_at:,}, and at 2.1 billion "
        f"the server stops taking writes. Run as a superuser in {row.datname!r}"
    )
    yield Finding("freezing", "bad" if age >= given.limits.freeze_bad else "note", text, "VACUUM (FREEZE);", data)
