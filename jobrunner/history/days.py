"""Owns what is known of each day of history: which rules have run out for it, how far it was gone through, what it weighs.

It must not change anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from psycopg import sql
from psycopg.rows import class_row

from jobrunner.history.rules import OVERRIDDEN

if TYPE_CHECKING:
    from datetime import date, datetime, timedelta

    from psycopg import Connection

KEY = {"job_history": "id", "job_attempts": "job_id"}  # the tables, and which column is the job's id


class Day(NamedTuple):
    """One partition for which some rule has run out.

    Attributes:
        parent, part, day: the table, the partition, the day (UTC).
        through: whether every rule has run out, so that nothing in it is to be kept.
        rules: which rules there are and which of them have run out; while this stays the same there is nothing new to do.
        phase: how far it is, by its row of `retention_days`; None when nobody has looked into it under these rules.
        next_block: where the next step goes on.
        due_count, kept_count: rows found so far that go and that stay.
        file: the file it was in when it was looked into.
        problem, problem_at: what kept it from being archived.
    """

    parent: str
    part: str
    day: date
    through: bool
    rules: str
    phase: str | None
    next_block: int
    due_count: int
    kept_count: int
    file: int | None
    problem: str | None
    problem_at: datetime | None

    @property
    def is_done(self) -> bool:
        """Whether all that these rules say has been done."""
        return self.phase == "settled"


class Weight(NamedTuple):
    """What there is of one table: days, rows as the planner guesses, bytes with indexes."""

    parent: str
    day_count: int
    oldest: date | None
    row_estimate: int
    size: int


class Groups(NamedTuple):
    """What one day holds, counted."""

    due_count: int
    kept_count: int


# CASE, because the planner may else ask for the date of a name that is none. `older`: takes the place of every rule but "forever".
_PARTS = """
parts AS MATERIALIZED (
    SELECT p.relname AS parent, c.relname AS part, c.oid AS part_oid,
           CASE WHEN c.relname ~ ('^' || p.relname || '_[0-9]{8}$') THEN to_date(right(c.relname, 8), 'YYYYMMDD') END AS day
    FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_class p ON p.oid = i.inhparent
    WHERE p.relnamespace = 'jobrunner'::regnamespace AND p.relname IN ('job_history', 'job_attempts')
      AND c.relname ~ ('^' || p.relname || '_[0-9]{8}$')
)"""

_DUE_DAYS = f"""
WITH rules AS MATERIALIZED (
    SELECT r.task, r.state, r.origin, r.app,
           CASE WHEN r.keep IS NOT NULL THEN coalesce(%(older)s::interval, r.keep) END AS keep,
           {OVERRIDDEN} AS overridden
    FROM jobrunner.v_retention r
), {_PARTS}
SELECT p.parent, p.part, p.day, s.through, s.rules,
       CASE WHEN d.rules = s.rules THEN d.phase END AS phase, coalesce(d.next_block, 0) AS next_block,
       coalesce(d.due_count, 0) AS due_count, coalesce(d.kept_count, 0) AS kept_count, d.file::bigint AS file, d.problem, d.problem_at
FROM parts p
CROSS JOIN LATERAL (
    SELECT bool_or(x.due) AS due, bool_and(x.due OR x.overridden) AS through,
           md5(coalesce(%(older)s::interval::text, '') || string_agg(concat_ws('/', x.task, x.state, x.origin, x.app, x.due), ','
                   ORDER BY x.task COLLATE "C", x.state, x.origin, x.app COLLATE "C")) AS rules
    FROM (SELECT r.*, coalesce((p.day + 1)::timestamp + r.keep <= now() AT TIME ZONE 'UTC', false) AS due FROM rules r) AS x
) AS s
LEFT JOIN jobrunner.retention_days d ON d.part = p.part
WHERE s.due
ORDER BY p.day, p.parent DESC
"""  # noqa: S608  constants of this package

_WEIGHTS = f"""
WITH {_PARTS}
SELECT t.parent, count(p.part) AS day_count, min(p.day) FILTER (WHERE pg_relation_size(p.part_oid) > 0) AS oldest,
       coalesce(sum(greatest(c.reltuples, 0)), 0)::bigint AS row_estimate,
       coalesce(sum(pg_total_relation_size(p.part_oid)), 0)::bigint AS size
FROM (VALUES ('job_history'), ('job_attempts')) AS t (parent)
LEFT JOIN parts p ON p.parent = t.parent LEFT JOIN pg_class c ON c.oid = p.part_oid
GROUP BY t.parent ORDER BY t.parent DESC
"""  # noqa: S608  constants of this module

PROBLEMS = "SELECT part, problem, problem_at FROM jobrunner.retention_days WHERE problem IS NOT NULL ORDER BY part"

# Which groups of rows of a day go: few groups, so that the rule is looked for once for each and not once for each row.
_DUE = {
    "job_history": sql.SQL("jobrunner.keep_of(g.task, g.kind)"),
    "job_attempts": sql.SQL("jobrunner.keep_attempts_of(g.task)"),
}
_KIND = {"job_history": sql.SQL("state"), "job_attempts": sql.SQL("outcome")}


def due_days(connection: Connection[Any], older: timedelta | None = None) -> list[Day]:
    """The days for which some rule has run out, the oldest first; those that are done as well.

    Args:
        connection: in any transaction state.
        older: takes the place of every duration of the rules; "forever" stays.
    """
    with connection.cursor(row_factory=class_row(Day)) as cursor:
        return cursor.execute(_DUE_DAYS, {"older": older}).fetchall()


def weights(connection: Connection[Any]) -> list[Weight]:
    """What there is of finished jobs and of attempts, without counting rows."""
    with connection.cursor(row_factory=class_row(Weight)) as cursor:
        return cursor.execute(_WEIGHTS).fetchall()


def problems(connection: Connection[Any]) -> list[tuple[str, str, datetime]]:
    """What kept rows from being removed: partition, in words, since when it was last seen."""
    return connection.execute(PROBLEMS).fetchall()


def kind_of(parent: str) -> sql.SQL:
    """The column that groups rows beside `task`."""
    return _KIND[parent]


def groups_of(parent: str, rows: sql.Composable) -> sql.Composed:
    """A query of (task, kind, row_count, due) over some rows of one day; takes `day` and `older`."""
    return sql.SQL(
        "SELECT g.task, g.kind, g.row_count,"
        " coalesce((%(day)s::date + 1)::timestamp + CASE WHEN k.keep IS NOT NULL THEN coalesce(%(older)s::interval, k.keep) END"
        " <= now() AT TIME ZONE 'UTC', false) AS due"
        " FROM (SELECT task, {kind} AS kind, count(*) AS row_count FROM {rows} GROUP BY 1, 2) AS g"
        " CROSS JOIN LATERAL (SELECT {keep} AS keep) AS k"
    ).format(kind=_KIND[parent], rows=rows, keep=_DUE[parent])


def strays_of(parent: str) -> sql.Composed:
    """What selects the rows `d` of a default partition that are too old, to stand behind FROM; takes `older`."""
    part = sql.Identifier("jobrunner", f"{parent}_default")
    return sql.SQL(
        "(SELECT g.task, g.kind, coalesce(%(older)s::interval, k.keep) AS keep"
        " FROM (SELECT DISTINCT task, {kind} AS kind FROM {part} WHERE finished_at < now() - interval '1 day') AS g"
        " CROSS JOIN LATERAL (SELECT {keep} AS keep) AS k WHERE k.keep IS NOT NULL) AS kept"
        " JOIN {part} AS d ON d.task = kept.task AND d.{kind} = kept.kind"
        " WHERE date_trunc('day', d.finished_at AT TIME ZONE 'UTC') + interval '1 day' + kept.keep <= now() AT TIME ZONE 'UTC'"
    ).format(kind=_KIND[parent], part=part, keep=_DUE[parent])


def count_strays(connection: Connection[Any], parent: str, older: timedelta | None = None) -> int:
    """How many rows without a day of their own go."""
    query = sql.SQL("SELECT count(*) FROM {}").format(strays_of(parent))
    row = connection.execute(query, {"older": older}).fetchone()
    return 0 if row is None else int(row[0])


def count(connection: Connection[Any], day: Day, older: timedelta | None = None) -> Groups:
    """How many rows of a day go and how many stay, by reading all of it."""
    query = groups_of(day.parent, sql.Identifier("jobrunner", day.part))
    rows = connection.execute(query, {"day": day.day, "older": older}).fetchall()
    return Groups(sum(row[2] for row in rows if row[3]), sum(row[2] for row in rows if not row[3]))
