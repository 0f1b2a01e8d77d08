"""Owns old days of history for tests of retention: partitions so many days ago, with as many rows of each task and state as wanted.

It must not use what is under test to make or read them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.support.rows import Scene

if TYPE_CHECKING:
    from datetime import date, timedelta

ROWS = """
INSERT INTO jobrunner.{table} (id, task, args, queue, priority, tags, created_at, run_at, state, lease, attempt, max_attempts,
    backoff, backoff_base, backoff_cap, backoff_jitter, crash_count, max_crashes, finished_at, result)
SELECT nextval('jobrunner.jobs_id_seq'), %(task)s, jsonb_build_object('n', g, 'word', 'grün "\\ 1e400'), 'default', 0, '{{a,b}}', %(at)s, %(at)s,
    %(state)s, 1, 1, 5, 'exponential', '5 s', '1 h', 1, 0, 3, %(at)s, to_jsonb(g)
FROM generate_series(1, %(count)s) AS g
RETURNING id
"""
ATTEMPTS = """
INSERT INTO jobrunner.{table} (job_id, attempt, lease, task, queue, outcome, finished_at)
SELECT nextval('jobrunner.jobs_id_seq'), 1, 1, %(task)s, 'default', %(state)s, %(at)s FROM generate_series(1, %(count)s) AS g
RETURNING job_id
"""
WITHOUT_AUTOVACUUM = """
DO $$ DECLARE part regclass; BEGIN
    FOR part IN SELECT oid FROM pg_class WHERE relnamespace = 'jobrunner'::regnamespace AND relkind = 'r' LOOP
        EXECUTE format('ALTER TABLE %s SET (autovacuum_enabled = false)', part);
    END LOOP;
END $$
"""


class Past(Scene):
    """A database of one's own with days long ago."""

    def today(self) -> date:
        """By the database's clock, in UTC."""
        found: date = self.one("SELECT (now() AT TIME ZONE 'UTC')::date")
        return found

    def day(self, ago: int, *groups: tuple[str, str, int], parent: str = "job_history", at: str = "12:00") -> str:
        """Make the partition of the day so many days ago when it is not there, and put (task, state, rows) into it; its name."""
        day = f"((now() AT TIME ZONE 'UTC')::date - {ago})"
        part, low, high = self.execute(f"SELECT '{parent}_' || to_char({day}, 'YYYYMMDD'), {day}::text, ({day} + 1)::text").fetchone() or ("", "", "")
        self.execute(
            f"CREATE TABLE IF NOT EXISTS jobrunner.{part} PARTITION OF jobrunner.{parent} FOR VALUES FROM ('{low} 00:00+00') TO ('{high} 00:00+00')"
        )
        for task, state, count in groups:
            self.put(part, task, state, count, f"{low} {at}+00")
        return str(part)

    def put(self, table: str, task: str, state: str, count: int, at: str) -> list[int]:
        """Rows that finished then; their ids."""
        query = ROWS if table.startswith("job_history") else ATTEMPTS
        values = {"task": task, "state": state, "count": count, "at": at}
        return [row[0] for row in self.execute(query.format(table=table), values).fetchall()]

    def without_autovacuum(self) -> None:
        """Leave all tables that are there to the test, which says by itself what statistics there are.

        What autovacuum learns from a partition whose rows were all rolled back (none in so many pages) is believed of the rows that follow.
        """
        self.execute(WITHOUT_AUTOVACUUM)

    def held(self, table: str = "job_history") -> dict[tuple[str, str], int]:
        """How many rows there are of each (task, state)."""
        kind = "state" if table.startswith("job_history") else "outcome"
        query = f"SELECT task, {kind}, count(*) FROM jobrunner.{table} GROUP BY 1, 2"
        return {(row[0], row[1]): row[2] for row in self.execute(query).fetchall()}

    def parts(self, parent: str = "job_history", *, older_than: int = 2) -> list[str]:
        """The partitions of days longer ago than that, oldest first."""
        query = (
            "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = %s::regclass"
            " AND c.relname < %s || '_' || to_char((now() AT TIME ZONE 'UTC') - %s * interval '1 day', 'YYYYMMDD') ORDER BY 1"
        )
        return [row[0] for row in self.execute(query, (f"jobrunner.{parent}", parent, older_than)).fetchall()]

    def keep(self, keep: timedelta | str | None, task: str = "*", state: str = "*", origin: str = "operator", app: str = "") -> None:
        """Write a rule as it is; None is forever."""
        self.execute(
            "INSERT INTO jobrunner.retention (task, state, keep, origin, app) VALUES (%s, %s, %s, %s, %s)"
            " ON CONFLICT (task, state, origin, app) DO UPDATE SET keep = excluded.keep",
            (task, state, keep, origin, app),
        )

    def leftovers(self) -> list[str]:
        """What a step that was broken off, or one that was not, left behind: copies, triggers, notes."""
        copies = "SELECT relname FROM pg_class WHERE relnamespace = 'jobrunner'::regnamespace AND relkind = 'r' AND relname ~ '_kept$'"
        triggers = "SELECT tgrelid::regclass || ' trigger' FROM pg_trigger WHERE tgname = 'retention'"
        notes = "SELECT DISTINCT part || ' changes' FROM jobrunner.retention_changes"
        return [row[0] for row in self.execute(f"{copies} UNION ALL {triggers} UNION ALL {notes}").fetchall()]

    def whole(self, table: str = "job_history") -> list[Any]:
        """Every row of a table, whole, ordered."""
        return [
            row[0] for row in self.execute(f"SELECT to_jsonb(t) FROM jobrunner.{table} AS t ORDER BY t.finished_at, 1::text").fetchall()
        ]
