"""Plans of the dashboard's lists at 100,000 finished and 20,000 live jobs: by index, few rows, few buffers, anywhere in the list."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import sqlalchemy as sa
from psycopg.rows import namedtuple_row
from sqlalchemy.dialects import postgresql

from jobrunner.database import Database
from jobrunner.filters import LIVE_WORDS, parse
from jobrunner.inspection.cursors import Cursor, Key
from jobrunner.inspection.detail import _ATTEMPTS as ATTEMPTS
from jobrunner.inspection.detail import get_job
from jobrunner.inspection.glances import list_statements
from jobrunner.inspection.lists import _SPAN as SPAN
from jobrunner.inspection.lists import COUNT_CAP, count_statements, list_jobs, page_statements
from jobrunner.inspection.overview import _FAILED as FAILED
from jobrunner.inspection.overview import RECENT
from jobrunner.inspection.ranges import PastFilter
from jobrunner.inspection.reading import _BEGIN as BEGIN
from jobrunner.inspection.recent import ERROR_SAMPLE, FINISHED_SAMPLE, LATELY, error_groups_statement
from jobrunner.settings import parse_dsn
from tests.support.explain import Plan
from tests.support.history import Past

if TYPE_CHECKING:
    from collections.abc import Iterator

LIMIT = 51
PLANS_TRIED = 5  # by PostgreSQL, each for its own parameters, before it looks whether one for all would do
SMALL = 1_000  # rows of a table that may be read as a whole
RARE = 100  # jobs in the queue of that name
MAX_BUFFERS = 4_000  # of 8 kB, hit or read: a fifth of a per cent of what OFFSET would touch in the middle
HISTORY = """
INSERT INTO jobrunner.job_history (id, task, args, queue, priority, tags, created_at, run_at, state, lease, attempt, max_attempts, backoff,
    backoff_base, backoff_cap, backoff_jitter, crash_count, max_crashes, started_at, finished_at, wait_ms, run_ms)
SELECT g, 'task.' || (g % 40), jsonb_build_object('n', g, 'pad', repeat('x', 100)), CASE WHEN g % 1000 = 41 THEN 'rare' ELSE 'q' || (g % 5) END, 0,
    ARRAY[]::text[], t, t, CASE WHEN g % 100 = 0 THEN 'failed' WHEN g % 1000 = 1 THEN 'quarantined' ELSE 'succeeded' END, 1, 1, 5, 'exponential',
    '5 s', '1 h', 1, 0, 3, t, t + interval '1 s', 5, 30
FROM (SELECT g, '{newest}'::timestamptz - interval '{span}' + g * interval '{step}' AS t FROM generate_series(1, {rows}) AS g) AS rows
"""
# The end of a day, so that the hour at which this runs decides nothing: of a day of which a page leaves little, another index is cheaper.
NEWEST = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
LIVE = """
INSERT INTO jobrunner.jobs (id, task, args, queue, run_at)
SELECT 200000 + g, 'task.' || (g % 40), '{}', 'q' || (g % 5), now() - g * interval '1 s' FROM generate_series(1, 20000) AS g
"""


def fill(connection, *, rows=100_000, span="40 hours", step="1.4 s") -> None:
    """Put finished jobs into history, each day into its partition."""
    past = Past(connection)
    for ago in range(9):
        past.day(ago)
    past.without_autovacuum()
    connection.execute(HISTORY.format(newest=NEWEST, rows=rows, span=span, step=step))


@pytest.fixture(scope="module")
def large_dsn(server) -> Iterator[str]:
    """A database for that many jobs."""
    with server.temporary() as dsn:
        yield dsn


@pytest.fixture(scope="module")
def large(large_dsn) -> Iterator[psycopg.Connection]:
    """A connection to a database with that many jobs, analysed."""
    with psycopg.connect(large_dsn, autocommit=True) as connection:
        fill(connection)
        connection.execute(LIVE)
        connection.execute("VACUUM ANALYZE jobrunner.job_history")
        connection.execute("VACUUM ANALYZE jobrunner.jobs")
        yield connection


def explain(connection, statement) -> Plan:
    """The plan of a SQLAlchemy statement as psycopg would send it, in a transaction as every read has it."""
    compiled = statement.compile(dialect=postgresql.psycopg.dialect(), compile_kwargs={"render_postcompile": True})
    settings = BEGIN.bindparams(statement_ms="0", lock_ms="0").compile(dialect=postgresql.psycopg.dialect())
    with connection.transaction(force_rollback=True):
        connection.execute(str(settings), settings.params)
        row = connection.execute("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + str(compiled), compiled.params).fetchone()
    root = row[0][0]["Plan"]
    return Plan(root, root["Shared Hit Blocks"] + root["Shared Read Blocks"])


def run(connection, statement) -> list[Any]:
    """The rows of a SQLAlchemy statement."""
    compiled = statement.compile(dialect=postgresql.psycopg.dialect(), compile_kwargs={"render_postcompile": True})
    rows: list[Any] = connection.cursor(row_factory=namedtuple_row).execute(str(compiled), compiled.params).fetchall()
    return rows


def read_row_by_row(plan, table) -> bool:
    """Whether a sequential scan found anything to read; over the empty partitions of the days to come it is the cheapest."""
    scans = [node for node in plan.scans(table) if node["Node Type"] == "Seq Scan"]
    return any(node["Actual Rows"] + node.get("Rows Removed by Filter", 0) for node in scans)


def middle(connection, job_id=50_000, *, newer=False) -> Cursor:
    """A cursor into the middle of history."""
    row = connection.execute("SELECT finished_at, id FROM jobrunner.job_history WHERE id = %s", (job_id,)).fetchone()
    return Cursor(Key(row[0], row[1]), newer=newer)


@pytest.mark.parametrize("where", ["newest", "older", "newer"])
@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("-state:queued,running,scheduled,retrying", "finished_at"),
        ("state:succeeded", "finished_at"),
        ("state:failed", "state"),
        ("state:failed,quarantined", "state"),
        ("state:failed task:task.20", "task"),
        ("task:task.7 -state:queued,running,scheduled,retrying", "task"),
        ("task:task.7,task.8 state:succeeded", "task"),
        ("queue:q3 state:succeeded", "queue"),
        ("id:17,40000,99999 -state:queued,running,scheduled,retrying", "pkey"),
    ],
)
def test_a_page_of_history_is_a_range_of_an_index(large, text, index, where) -> None:
    """However deep the page, history is read by the index of the filter and never row by row."""
    wanted = parse(text)
    cursor = None if where == "newest" else middle(large, newer=where == "newer")
    used: set[str] = set()
    for statement in page_statements(wanted, PastFilter(wanted, NEWEST), cursor, LIMIT):
        if "job_history" not in str(statement):
            continue
        plan = explain(large, statement)
        assert not read_row_by_row(plan, "job_history_2"), plan.outline()
        assert plan.rows_read("job_history_2") <= 40 * LIMIT, plan.outline()
        assert plan.buffers <= MAX_BUFFERS, plan.outline()
        used |= {scan["Index Name"] for scan in plan.scans("job_history_2") if "Index Name" in scan and scan["Actual Rows"]}
    assert used, "read nothing"
    assert all(re.search(rf"\d_{index}", name) for name in used), used


NONE = ["queue:nobody", "queue:nobody task:task.3", "queue:nobody state:failed", "task:task.7 state:failed", "task:nothing state:failed,cancelled"]


@pytest.mark.parametrize("text", NONE)
def test_that_there_is_none_is_told_by_an_index(large, text) -> None:
    """A queue without jobs and a task that never failed cost a descent for each day, not a walk over all that others did."""
    wanted = replace(parse(text), not_states=frozenset(LIVE_WORDS))
    statements = [*page_statements(wanted, PastFilter(wanted, NEWEST), None, LIMIT), *page_statements(wanted, PastFilter(wanted, NEWEST), middle(large), LIMIT)]
    for statement in (*statements, *count_statements(wanted, PastFilter(wanted, NEWEST))):
        plan = explain(large, statement)
        assert plan.rows_read("job_history_2") == 0, plan.outline()
        assert plan.buffers <= LIMIT, plan.outline()


@pytest.mark.parametrize("text", ["queue:rare", "queue:rare,nobody", "queue:rare task:task.1", "queue:rare state:succeeded"])
def test_a_rare_queue_is_read_by_its_index(large, text) -> None:
    """Of a queue with one job in a thousand, its jobs are read and not those between them."""
    wanted = replace(parse(text), not_states=frozenset(LIVE_WORDS))
    plans = [explain(large, statement) for statement in page_statements(wanted, PastFilter(wanted, NEWEST), None, LIMIT)]
    assert 0 < sum(plan.rows_read("job_history_2") for plan in plans) <= RARE, [plan.outline() for plan in plans]


@pytest.mark.parametrize("statistics", ["analysed", "never"])
@pytest.mark.parametrize("size", [0, SMALL, 100_000])
@pytest.mark.parametrize("text", ["state:failed task:task.20", "queue:rare", "queue:nobody", "state:failed queue:nobody"])
def test_the_indexes_hold_whatever_the_size_and_the_statistics(fresh_dsn, text, size, statistics) -> None:
    """Also in an empty table, in a small one, and in one that nobody has analysed, few rows are read for a page.

    Never more than match by task and state, or a small table has: of a few hundred it may be cheaper to sort them.
    """
    wanted = replace(parse(text), not_states=frozenset(LIVE_WORDS))
    with psycopg.connect(fresh_dsn, autocommit=True) as connection:
        fill(connection, rows=size)
        if statistics == "analysed":
            connection.execute("VACUUM ANALYZE jobrunner.job_history")
        plans = [explain(connection, statement) for statement in page_statements(wanted, PastFilter(wanted, NEWEST), None, LIMIT)]
    assert sum(plan.rows_read("job_history") for plan in plans) <= SMALL, [plan.outline() for plan in plans]


@pytest.mark.parametrize("where", ["newest", "older", "newer"])
@pytest.mark.parametrize(
    "text",
    [
        "",
        "state:failed,quarantined",
        ",".join(["task:task.1", *(f"task.{number}" for number in range(2, 20))]),
        ",".join(["task:task.0", *(f"task.{number}" for number in range(20, 40))]) + " state:failed,quarantined",
        "queue:rare,default,q1,q2,q3 state:succeeded",
        "id:17,4000,5001,9999",
    ],
)
def test_a_page_is_planned_for_the_next_days_first(fresh_dsn, text, where) -> None:
    """The days next to the cursor by themselves, then all others; together they are the rows that are wanted, in their order."""
    wanted = replace(parse(text), not_states=frozenset(LIVE_WORDS))
    with psycopg.connect(fresh_dsn, autocommit=True) as connection:
        fill(connection, rows=10_000, span="160 hours", step="60 s")
        cursor = None if where == "newest" else middle(connection, 5_000, newer=where == "newer")
        near, far = page_statements(wanted, PastFilter(wanted, NEWEST), cursor, LIMIT)
        days = {scan["Relation Name"] for scan in explain(connection, near).scans("job_history_2")}
        others = {scan["Relation Name"] for scan in explain(connection, far).scans("job_history_2")}
        rows = [(row.finished_at, row.id) for statement in (near, far) for row in run(connection, statement)]
        column, names = text.split(" ")[0].split(":") if text else ("", "")
        conditions = [f"{column} = ANY (string_to_array('{names}', ','))"] if column in ("task", "queue") else []
        conditions += [f"id IN ({names})"] if column == "id" else []
        conditions += ["state IN ('failed', 'quarantined')"] if "state:failed" in text else []
        conditions += ["state = 'succeeded'"] if "state:succeeded" in text else []
        conditions += [f"(finished_at, id) {'>' if cursor.newer else '<'} ('{cursor.key.finished_at}', {cursor.key.id})"] if cursor else []
        order = "finished_at, id" if where == "newer" else "finished_at DESC, id DESC"
        query = f"SELECT finished_at, id FROM jobrunner.job_history WHERE {' AND '.join(conditions) or 'true'} ORDER BY {order}"
        whole = connection.execute(query).fetchall()
    assert rows[:LIMIT] == whole[:LIMIT]
    assert whole
    assert len(rows) == len({*rows})
    assert not days & others, "a day is looked at once"


def test_jobs_by_their_ids_are_read_in_the_days_that_they_finished_on(large, large_dsn) -> None:
    """A page of ids looks for their days first, by a plan that is kept, and plans no others."""
    wanted = replace(parse("id:50000,50001"), not_states=frozenset(LIVE_WORDS))
    span = large.execute("SELECT min(finished_at), max(finished_at) FROM jobrunner.job_history WHERE id IN (50000, 50001)").fetchone()
    (statement,) = page_statements(wanted, PastFilter(wanted, NEWEST, span), None, LIMIT)
    assert len({scan["Relation Name"] for scan in explain(large, statement).scans("job_history_2")}) <= 2
    plan = explain(large, SPAN.bindparams(ids=[50_000, 50_001]))
    assert not read_row_by_row(plan, "job_history_2"), plan.outline()
    database = Database(parse_dsn(large_dsn, "a test"))
    for first in range(1, 11):
        assert [job.id for job in list_jobs(database, filter=parse(f"id:{first},{first + 50_000}")).items] == [first + 50_000, first]
        assert list_jobs(database, filter=parse("id:900000")).items == ()
    with database.engine.connect() as kept:
        found = kept.execute(sa.text("SELECT generic_plans FROM pg_prepared_statements WHERE statement LIKE '%min(finished_at)%'"))
        assert found.scalars().all() == [20 - PLANS_TRIED]
    database.close()


def test_attempts_are_looked_for_in_the_days_of_their_job(large) -> None:
    """The page of a job plans and reads the days from its making to its end, whatever is kept of attempts besides."""
    today = large.execute("SELECT now(), to_char(now() AT TIME ZONE 'UTC' - interval '1 day', 'YYYYMMDD')").fetchone()
    plan = explain(large, ATTEMPTS.bindparams(id=1, most=200, since=today[0], until=today[0]))
    assert not [scan for scan in plan.scans("job_attempts_2") if scan["Relation Name"].endswith(today[1])], plan.outline()
    assert len(plan.scans("job_")) <= 4, plan.outline()  # a day and the rows without a day, of attempts and of history


def test_a_job_is_looked_for_by_a_plan_that_is_kept(large, large_dsn) -> None:
    """History is looked into day by day, which takes longer to plan than to do: a process plans it for a few jobs, not for each."""
    database = Database(parse_dsn(large_dsn, "a test"))
    for job_id in range(1, 11):
        assert get_job(database, job_id).job.id == job_id
    with database.engine.connect() as kept:
        found = kept.execute(sa.text("SELECT generic_plans FROM pg_prepared_statements WHERE statement LIKE '%FROM jobrunner.job_history%'"))
        assert found.scalars().all() == [10 - PLANS_TRIED]
    database.close()


@pytest.mark.parametrize("text", ["", "state:queued", "queue:q3 state:queued"])
def test_a_page_of_live_jobs_is_a_range_of_the_primary_key(large, text) -> None:
    """The newest live jobs are read from the end of an index; a backlog of any size is not sorted."""
    wanted = parse(text)
    plan = explain(large, next(page_statements(wanted, PastFilter(wanted, NEWEST), None, LIMIT)))
    assert not read_row_by_row(plan, "jobs"), plan.outline()
    assert plan.rows_read("jobs") <= 10 * LIMIT, plan.outline()


@pytest.mark.parametrize("hour", [0, 4, 25, 28, 31, 34, 40, 46])
@pytest.mark.parametrize("text", ["", "state:failed", "state:succeeded", "task:task.7", "state:queued", "-queue:q1", "-task:task.7"])
def test_a_count_looks_at_no_more_rows_than_its_cap(large, text, hour) -> None:
    """A capped count stops: it reads some tens of thousands of rows at most, not all there are, at whatever hour of a day."""
    wanted = parse(text)
    for statement in count_statements(wanted, PastFilter(wanted, NEWEST + timedelta(hours=hour))):
        plan = explain(large, statement)
        assert plan.rows_read("job") <= 2 * COUNT_CAP, plan.outline()


LATELY_PARAMETERS = {"minutes": 10, "sample": FINISHED_SAMPLE, "rate_over": 60.0}
BUSY = """
INSERT INTO jobrunner.job_history (id, task, args, queue, priority, tags, created_at, run_at, state, lease, attempt, max_attempts, backoff,
    backoff_base, backoff_cap, backoff_jitter, crash_count, max_crashes, started_at, finished_at, wait_ms, run_ms)
SELECT 300000 + g, 'task.' || (g % 40), '{}', 'q' || (g % 5), 0, '{}', t, t, CASE WHEN g % 50 = 0 THEN 'failed' ELSE 'succeeded' END,
    1, 1, 5, 'exponential', '5 s', '1 h', 1, 0, 3, t, t, 5, 30
FROM (SELECT g, now() - g * interval '10 ms' AS t FROM generate_series(1, 60000) AS g) AS rows
"""
WRONG = """
INSERT INTO jobrunner.job_attempts (job_id, attempt, lease, task, queue, finished_at, outcome, error_type, message, traceback, fingerprint)
SELECT g, 1, 1, 'task.' || (g % 40), 'q' || (g % 5), now() - g * interval '100 ms', 'retried', 'ValueError', 'bad ' || g,
    repeat('File "shop.py", line ' || g || E'\n', 40), 'f' || (g % 30)
FROM generate_series(1, 30000) AS g
"""
RUNNING = """
UPDATE jobrunner.jobs SET state = 'running', worker_id = 1, claimed_at = now(), lease = 1, attempt = 1 WHERE id % 500 = 0
"""


@pytest.mark.parametrize("analysed", [True, False])
def test_throughput_reads_its_sample_and_no_more(large, analysed) -> None:
    """With 60,000 jobs in the last ten minutes, the newest 2,000 are read, by the index on time, and nothing behind them.

    A merge looks at the newest row of each day that it may have to read: one more in the first ten minutes of a day.
    """
    with large.transaction(force_rollback=True):
        large.execute(BUSY)
        if analysed:
            large.execute("ANALYZE jobrunner.job_history")
        plan = explain(large, LATELY.bindparams(**LATELY_PARAMETERS))
    large.execute("VACUUM jobrunner.job_history")  # else the next test is the one that walks over what was rolled back
    assert FINISHED_SAMPLE <= plan.rows_read("job_history_2") <= FINISHED_SAMPLE + 1, plan.outline()
    assert not read_row_by_row(plan, "job_history_2"), plan.outline()
    assert not read_row_by_row(plan, "jobs"), plan.outline()


COUNTED = """
INSERT INTO jobrunner.{table} SELECT g, {backend} q, t, o, {numbers}
FROM generate_series(date_bin('{width}', now(), 'epoch') - interval '{since}', now(), interval '{width}') AS g, {backends}
     (VALUES ('default'), ('mail')) AS a (q), (SELECT 'task.' || n AS t FROM generate_series(1, 20) AS n) AS b, (VALUES ('succeeded'), ('failed')) AS c (o)
"""
NUMBERS = ", ".join(["5"] * 44)


@pytest.mark.parametrize("analysed", [True, False])
@pytest.mark.parametrize("statement", [LATELY.bindparams(**LATELY_PARAMETERS), FAILED.bindparams(recent=RECENT)], ids=["lately", "failed"])
def test_counts_read_the_minutes_they_are_of(large, statement, analysed) -> None:
    """Beside a day of minutes of 20 tasks in two queues, those that are asked for are read, and the slices that wait, and once.

    Without sequential scans: of a day that has just begun, most minutes are asked for.
    """
    with large.transaction(force_rollback=True):
        large.execute("SET LOCAL enable_seqscan = off")
        large.execute("DELETE FROM jobrunner.rollup_pending")
        large.execute(COUNTED.format(table="rollup_minute", backend="", backends="", width="1 minute", since="20 hours", numbers=NUMBERS))
        backends = "generate_series(1, 4) AS backend,"
        large.execute(
            COUNTED.format(
                table="rollup_pending", backend="backend,", backends=backends, width="10 seconds", since="2 minutes", numbers=NUMBERS
            )
        )
        if analysed:
            large.execute("ANALYZE jobrunner.rollup_minute")
            large.execute("ANALYZE jobrunner.rollup_pending")
        plan = explain(large, statement)
    of_a_minute, minutes = 2 * 20 * 2, 10 if "newest" in str(statement) else 61
    assert plan.rows_read("rollup_minute_2") <= minutes * of_a_minute, plan.outline()
    assert plan.rows_read("rollup_pending") <= 2 * 13 * 4 * of_a_minute, plan.outline()


def test_a_quiet_ten_minutes_cost_nothing(large) -> None:
    """When nothing finished lately, history is not read at all, however much of it there is."""
    plan = explain(large, LATELY.bindparams(**LATELY_PARAMETERS))
    assert plan.rows_read("job_history_2") == 0, plan.outline()


@pytest.mark.parametrize("analysed", [True, False])
@pytest.mark.parametrize("text", ["", "task:task.7", "queue:q1"])
def test_error_groups_read_their_sample_and_no_more(large, text, analysed) -> None:
    """With 30,000 attempts that went wrong within the hour, the newest 5,000 are read, whatever the filter.

    One more in the first minutes of a day, as above.
    """
    with large.transaction(force_rollback=True):
        large.execute(WRONG)
        if analysed:
            large.execute("ANALYZE jobrunner.job_attempts")
        plan = explain(large, error_groups_statement(parse(text), LIMIT))
    assert ERROR_SAMPLE <= plan.rows_read("job_attempts_2") <= ERROR_SAMPLE + 1, plan.outline()
    assert not read_row_by_row(plan, "job_attempts_2"), plan.outline()


@pytest.mark.parametrize("analysed", [True, False])
@pytest.mark.parametrize("text", ["", "queue:q1", "task:task.0"])
def test_running_jobs_are_found_without_the_waiting_ones(large, text, analysed) -> None:
    """The list of running jobs reads those that run, not the backlog beside them."""
    with large.transaction(force_rollback=True):
        large.execute(RUNNING)
        if analysed:
            large.execute("ANALYZE jobrunner.jobs")
        plan = explain(large, next(list_statements("running", parse(text), LIMIT, NEWEST)))
    assert plan.rows_read("jobs") == 40, plan.outline()


@pytest.mark.parametrize(("text", "most"), [("", 5 * LIMIT + LIMIT), ("queue:q3 task:task.3", 10_000 + LIMIT), ("task:nothing", 50_000)])
def test_ready_jobs_are_read_by_the_claim_index(large, text, most) -> None:
    """The next jobs of each queue and priority are read from the claim index, not the backlog; with a filter, a sample of it."""
    plan = explain(large, next(list_statements("ready", parse(text), LIMIT, NEWEST)))
    assert not read_row_by_row(plan, "jobs"), plan.outline()
    assert plan.rows_read("jobs") <= most + 20, plan.outline()


def test_failed_jobs_are_a_range_of_an_index(large) -> None:
    """The newest failed and quarantined jobs are read by the index of those that did not succeed."""
    plan = explain(large, next(list_statements("failed", parse(""), LIMIT, NEWEST)))
    assert not read_row_by_row(plan, "job_history_2"), plan.outline()
    assert plan.rows_read("job_history_2") <= 40 * LIMIT, plan.outline()
