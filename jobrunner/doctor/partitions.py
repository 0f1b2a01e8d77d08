"""Owns whether the days to come have partitions, whether rows fell into a default one, and who may make more. It must not make any.

Which tables and partitions there are is read from the catalogue.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner import schema
from jobrunner.doctor.findings import Finding, Look, name, role, several
from jobrunner.settings import SCHEMA

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MOST_ROWS = 10_000  # of a default partition that are looked at
DAYS_AHEAD = 7  # as workers make them
_YESTERDAY = timedelta(days=1)  # where ensure_partitions begins

_DAY = re.compile(r"_(\d{8})$")
_TABLES = sa.text("""
SELECT c.relname AS parent, d.relname AS rest, pg_get_partkeydef(c.oid) AS key, pg_get_userbyid(c.relowner) AS owner, current_user AS role,
       pg_has_role(c.relowner, 'USAGE') AS owns, has_schema_privilege(c.relnamespace, 'CREATE') AS creates,
       ARRAY(SELECT p.relname::text FROM pg_inherits i JOIN pg_class p ON p.oid = i.inhrelid WHERE i.inhparent = c.oid) AS parts
FROM pg_partitioned_table t JOIN pg_class c ON c.oid = t.partrelid LEFT JOIN pg_class d ON d.oid = t.partdefid
WHERE c.relnamespace = to_regnamespace(:schema) AND t.partstrat = 'r' AND t.partnatts = 1
ORDER BY c.relname
""")

# What ensure_partitions does, for days that it does not go back to.
_SORT = """DO $$ DECLARE day date; part text; BEGIN
  PERFORM set_config('lock_timeout', '2s', true), pg_advisory_xact_lock(hashtextextended('jobrunner.ensure_partitions', 0));
  LOCK TABLE {rest} IN ACCESS EXCLUSIVE MODE;
  FOR day IN SELECT DISTINCT ({key} AT TIME ZONE 'UTC')::date FROM {rest} LOOP
    part := '{parent}_' || to_char(day, 'YYYYMMDD');
    EXECUTE format('CREATE TABLE {schema}.%I (LIKE {schema}.{parent} INCLUDING ALL)', part);
    EXECUTE format('WITH moved AS (DELETE FROM {rest} WHERE ({key} AT TIME ZONE ''UTC'')::date = %L RETURNING *) '
                   'INSERT INTO {schema}.%I SELECT * FROM moved', day, part);
    EXECUTE format('ALTER TABLE {schema}.{parent} ATTACH PARTITION {schema}.%I FOR VALUES FROM (%L) TO (%L)',
                   part, day::timestamp AT TIME ZONE 'UTC', (day + 1)::timestamp AT TIME ZONE 'UTC');
  END LOOP;
END $$;"""
_ENSURE = f"SELECT {SCHEMA}.ensure_partitions({DAYS_AHEAD});"


def look(given: Look) -> Iterator[Finding]:
    """Each table that is partitioned by the day; one of another kind only for its default partition."""
    today = given.at.astimezone(UTC).date()
    rows = given.connection.execute(_TABLES, {"schema": SCHEMA}).all()
    found = [finding for row in rows for finding in (*_ahead(given, row, today), *_strays(given, row, today))]
    found += _rights(rows)
    text = f"partitions are there for {given.limits.days_note} days ahead and more, the default ones are empty"
    yield from found or [Finding("partitions", "ok", text, data={"tables": [row.parent for row in rows]})]


def _ahead(given: Look, row: Any, today: date) -> Iterator[Finding]:
    days = _days(row.parts)
    if not days and row.parent not in schema.PARTITIONED:
        return
    ahead = 0
    while today + timedelta(days=ahead) in days:
        ahead += 1
    ahead -= 1  # today is none of the days ahead
    if ahead >= given.limits.days_note:
        return
    first = today + timedelta(days=ahead + 1)
    text = (
        f"{row.parent} has no partition for {first} (UTC) and after; rows of those days go into its default partition, which retention "
        f"empties row by row. Workers make {DAYS_AHEAD} days ahead, if their role may"
    )
    data = {"table": row.parent, "days_ahead": ahead, "first_missing": first.isoformat()}
    yield Finding("partitions_missing", "bad" if ahead < given.limits.days_bad else "note", text, _ENSURE, data)


def _strays(given: Look, row: Any, today: date) -> Iterator[Finding]:
    if row.rest is None:  # drift says so
        return
    key = row.key.partition("(")[2].rstrip(")")
    rest = name(SCHEMA, row.rest)
    query = f"SELECT count(*), min(at), max(at) FROM (SELECT {key} AS at FROM {rest} LIMIT {MOST_ROWS}) AS s"  # noqa: S608  of the catalogue
    number, oldest, newest = given.connection.execute(sa.text(query)).one()
    if not number:
        return
    more = "at least " if number == MOST_ROWS else ""
    span = ""
    fix = _ENSURE
    if isinstance(oldest, datetime):
        span = f" of {oldest.astimezone(UTC).date()} to {newest.astimezone(UTC).date()}"
        near = today - _YESTERDAY <= oldest.astimezone(UTC).date() and newest.astimezone(UTC).date() <= today + timedelta(days=DAYS_AHEAD)
        fix = _ENSURE if near and number < MOST_ROWS else _SORT.format(rest=rest, key=key, parent=row.parent, schema=SCHEMA)
    text = f"the default partition {row.rest} holds {more}{several(number, 'row')}{span}, which retention empties row by row"
    yield Finding("default_partition", "note", text, fix, {"table": row.parent, "partition": row.rest, "rows": number, "exact": not more})


def _rights(rows: Sequence[Any]) -> Iterator[Finding]:
    without = [row for row in rows if not (row.owns and row.creates)]
    if not without:
        return
    row = without[0]
    text = f"role {row.role!r} may not make partitions, {row.owner!r} may: a worker that connects as {row.role!r} does not make any"
    lines = [] if row.owns else [f"GRANT {role(row.owner)} TO {role(row.role)};"]
    lines += [] if row.creates else [f"GRANT CREATE ON SCHEMA {SCHEMA} TO {role(row.role)};"]
    yield Finding("partition_rights", "note", text, "\n".join(lines), {"role": row.role, "owner": row.owner})


def _days(parts: Sequence[str]) -> set[date]:
    return {day for part in parts if (match := _DAY.search(part)) and (day := _date(match[1]))}


def _date(digits: str) -> date | None:
    try:
        return datetime.strptime(digits, "%Y%m%d").replace(tzinfo=UTC).date()
    except ValueError:
        return None
