"""Plans of the dashboard's lists at 100,000 finished and 20,000 live jobs: by index, few rows, few buffers, anywhere in the list."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from jobrunner.filters import parse
from jobrunner.inspection.cursors import Cursor, Key
from jobrunner.inspection.lists import COUNT_CAP, _capped_count, page_statements
from tests.support.explain import Plan

if TYPE_CHECKING:
    from collections.abc import Iterator

LIMIT = 51
MAX_BUFFERS = 4_000  # of 8 kB, hit or read: a fifth of a per cent of what OFFSET would touch in the middle
HISTORY = """
INSERT INTO jobrunner.job_history (id, task, args, queue, priority, tags, created_at, run_at, state, lease, attempt, max_attempts, backoff,
    backoff_base, backoff_cap, backoff_jitter, crash_count, max_crashes, started_at, finished_at, wait_ms, run_ms)
SELECT g, 'task.' || (g % 40), jsonb_build_object('n', g, 'pad', repeat('x', 100)), 'q' || (g % 5), 0, '{}', t, t,
    CASE WHEN g % 100 = 0 THEN 'failed' WHEN g % 1000 = 1 THEN 'quarantined' ELSE 'succeeded' END, 1, 1, 5, 'exponential',
    '5 s', '1 h', 1, 0, 3, t, t + interval '1 s', 5, 30
FROM (SELECT g, now() - interval '40 hours' + g * interval '1.4 s' AS t FROM generate_series(1, 100000) AS g) AS rows
"""
LIVE = """
INSERT INTO jobrunner.jobs (id, task, args, queue, run_at)
SELECT 200000 + g, 'task.' || (g % 40), '{}', 'q' || (g % 5), now() - g * interval '1 s' FROM generate_series(1, 20000) AS g
"""


@pytest.fixture(scope="module")
def large(server) -> Iterator[psycopg.Connection]:
    """A connection to a database with that many jobs, analysed."""
    with server.temporary() as dsn, psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(HISTORY)
        connection.execute(LIVE)
        connection.execute("VACUUM ANALYZE jobrunner.job_history")
        connection.execute("VACUUM ANALYZE jobrunner.jobs")
        yield connection


def explain(connection, statement) -> Plan:
    """The plan of a SQLAlchemy statement as psycopg would send it."""
    compiled = statement.compile(dialect=postgresql.psycopg.dialect(), compile_kwargs={"render_postcompile": True})
    with connection.transaction(force_rollback=True):
        row = connection.execute("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + str(compiled), compiled.params).fetchone()
    root = row[0][0]["Plan"]
    return Plan(root, root["Shared Hit Blocks"] + root["Shared Read Blocks"])


def read_row_by_row(plan, table) -> bool:
    """Whether a sequential scan found anything to read; over the empty partitions of the days to come it is the cheapest."""
    scans = [node for node in plan.scans(table) if node["Node Type"] == "Seq Scan"]
    return any(node["Actual Rows"] + node.get("Rows Removed by Filter", 0) for node in scans)


def middle(connection, *, newer=False) -> Cursor:
    """A cursor into the middle of history."""
    row = connection.execute("SELECT finished_at, id FROM jobrunner.job_history WHERE id = 50000").fetchone()
    return Cursor(Key(row[0], row[1]), newer=newer)


@pytest.mark.parametrize("where", ["newest", "older", "newer"])
@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("-state:queued,running,scheduled,retrying", "finished_at"),
        ("state:succeeded", "finished_at"),
        ("state:failed", "state"),
        ("state:failed,quarantined", "state"),
        ("state:failed task:task.20", "state|task"),
        ("task:task.7 -state:queued,running,scheduled,retrying", "task"),
        ("task:task.7,task.8 state:succeeded", "task"),
        ("queue:q3 state:succeeded", "finished_at"),
        ("id:17,40000,99999 -state:queued,running,scheduled,retrying", "id"),
    ],
)
def test_a_page_of_history_is_a_range_of_an_index(large, text, index, where) -> None:
    """However deep the page, history is read by the index of the filter and never row by row."""
    wanted = parse(text)
    cursor = None if where == "newest" else middle(large, newer=where == "newer")
    for statement in page_statements(wanted, wanted, cursor, LIMIT):
        if "job_history" not in str(statement):
            continue
        plan = explain(large, statement)
        assert not read_row_by_row(plan, "job_history_2"), plan.outline()
        assert plan.rows_read("job_history_2") <= 40 * LIMIT, plan.outline()
        assert plan.buffers <= MAX_BUFFERS
        used = " ".join(plan.indexes())
        assert any(f"_{part}_" in used or (part == "id" and "pkey" in used) for part in index.split("|")), used


@pytest.mark.parametrize("text", ["", "state:queued", "queue:q3 state:queued"])
def test_a_page_of_live_jobs_is_a_range_of_the_primary_key(large, text) -> None:
    """The newest live jobs are read from the end of an index; a backlog of any size is not sorted."""
    wanted = parse(text)
    plan = explain(large, next(page_statements(wanted, wanted, None, LIMIT)))
    assert not read_row_by_row(plan, "jobs"), plan.outline()
    assert plan.rows_read("jobs") <= 10 * LIMIT, plan.outline()


@pytest.mark.parametrize("text", ["", "state:failed", "state:succeeded", "task:task.7", "state:queued"])
def test_a_count_looks_at_no_more_rows_than_its_cap(large, text) -> None:
    """A capped count stops: it reads some tens of thousands of rows at most, not all there are."""
    wanted = parse(text)
    plan = explain(large, sa.select(_capped_count(wanted, wanted)))
    assert plan.rows_read("job") <= 3 * COUNT_CAP, plan.outline()
