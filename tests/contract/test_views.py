"""The public views are a promise: their columns and types, what each state shows, and a page that documents exactly them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from psycopg.rows import dict_row

from tests.support.viewrows import Rows

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "views.md"
SECTION = re.compile(r"^## `(v_\w+)`\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
ROW = re.compile(r"^\| `(\w+)` \| `([\w\[\] ]+)` \| (.+) \|$", re.MULTILINE)

# A column may be added at the end. Taking one away, or changing its type or place, breaks somebody's query.
COLUMNS = {
    "v_jobs": """id bigint, task text, args jsonb, queue text, priority smallint, tags text[], meta jsonb, parent_id bigint, unique_key text,
        state text, created_at timestamptz, run_at timestamptz, started_at timestamptz, finished_at timestamptz, attempt smallint,
        max_attempts smallint, crash_count smallint, max_crashes smallint, time_limit interval, error_type text, error text,
        error_at timestamptz, result jsonb, wait_ms bigint, run_ms bigint, cpu_ms bigint, worker_id bigint, lease bigint,
        cancel_requested_at timestamptz, soft_time_limit interval, cpu_limit interval, memory_limit bigint, memory_limit_on_retry real,
        output_limit bigint, max_processes integer, progress real, progress_text text, checkpoint jsonb, peak_memory bigint,
        ordering_key text, expires_at timestamptz""",
    "v_attempts": """job_id bigint, attempt smallint, lease bigint, task text, queue text, worker_id bigint, started_at timestamptz,
        finished_at timestamptz, outcome text, error_type text, message text, traceback text, fingerprint text, exit_cause text,
        run_ms bigint, cpu_ms bigint, peak_memory bigint""",
    "v_queues": """queue text, ready_count bigint, scheduled_count bigint, retrying_count bigint, running_count bigint,
        unserved_count bigint, oldest_ready_at timestamptz, worker_count bigint, slot_count bigint""",
    "v_workers": """id bigint, name text, host text, pid integer, kind text, version text, queues text[], tasks text[], slots integer,
        state text, started_at timestamptz, heartbeat_at timestamptz, lease_expires_at timestamptz, stopped_at timestamptz,
        last_exit text, running_count bigint, succeeded_count bigint, failed_count bigint, crashed_count bigint, rss_bytes bigint,
        pool text, pool_slot integer, claimed_count bigint, memory_bytes bigint, running jsonb""",
    "v_worker_runs": """id bigint, worker_id bigint, name text, host text, pid integer, kind text, pool text, pool_slot integer, version text,
        started_at timestamptz, finished_at timestamptz, run_ms bigint, reason text, exit_code smallint, error text, claimed_count bigint,
        succeeded_count bigint, failed_count bigint, crashed_count bigint, left_count bigint, next_due_at timestamptz""",
    "v_throughput": """minute timestamptz, queue text, task text, outcome text, ended_count bigint, run_ms numeric, wait_ms numeric,
        cpu_ms numeric, run_histogram bigint[], wait_histogram bigint[]""",
    "v_throughput_hourly": """hour timestamptz, queue text, task text, outcome text, ended_count bigint, run_ms numeric, wait_ms numeric,
        cpu_ms numeric, run_histogram bigint[], wait_histogram bigint[]""",
    "v_retention": """task text, state text, keep interval, origin text, app text, changed_at timestamptz, changed_by text, rank integer""",
    "v_logs": """job_id bigint, lease bigint, attempt smallint, line integer, logged_at timestamptz, level text, logger text,
        message text""",
}
NOW = datetime.now(UTC).replace(microsecond=0)
LATER, EARLIER = NOW + timedelta(hours=1), NOW - timedelta(hours=1)
LIMITS = {
    "soft_time_limit": timedelta(seconds=50), "cpu_limit": timedelta(seconds=40), "memory_limit": 256_000_000, "memory_limit_on_retry": 1.5,
    "output_limit": 1_000, "max_processes": 4,
}  # fmt: skip
PLACE = {"ordering_key": "customer 7", "expires_at": LATER}
SAID = {"progress": 0.5, "progress_text": "page 4/8", "checkpoint": {"page": 4}}
ERROR = {"last_error_type": "shop.Timeout", "last_error": "no answer", "last_error_at": NOW}


@pytest.fixture
def rows(connection):
    """An empty database to put rows in."""
    return Rows(connection)


@pytest.fixture
def look(connection):
    """Reads a view: one row by a condition, as a dict."""

    def read(view, condition="true", *parameters):
        with connection.cursor(row_factory=dict_row) as cursor:
            (found,) = cursor.execute(f"SELECT * FROM jobrunner.{view} WHERE {condition}", parameters).fetchall()
        return found

    return read


def pinned(view):
    """(column, type) of a view, as promised."""
    return [tuple(pair.split()) for pair in COLUMNS[view].split(",")]


def in_database(connection, view):
    """(column, type) of a view, as it is."""
    found = connection.execute(
        "SELECT attname, replace(format_type(atttypid, atttypmod), 'timestamp with time zone', 'timestamptz') FROM pg_attribute"
        " WHERE attrelid = %s::regclass AND attnum > 0 ORDER BY attnum",
        (f"jobrunner.{view}",),
    )
    return found.fetchall()


def test_the_views_are_those(connection):
    """There is no public view that nobody promised."""
    found = connection.execute("SELECT viewname FROM pg_views WHERE schemaname = 'jobrunner'").fetchall()
    assert {name for (name,) in found} == set(COLUMNS)


@pytest.mark.parametrize("view", COLUMNS)
def test_columns_and_types_are_pinned(connection, view):
    """Names, types and order of a view's columns are as promised."""
    assert in_database(connection, view) == pinned(view)


def test_the_page_documents_exactly_the_columns(connection):
    """The reference lists every column of every view with its type and a meaning, in their order, and no other."""
    pages = {view: ROW.findall(text) for view, text in SECTION.findall(PAGE.read_text())}
    assert {view: [(name, kind) for name, kind, _ in found] for view, found in pages.items()} == {
        view: in_database(connection, view) for view in COLUMNS
    }


def test_words_of_the_page_are_those_of_the_schema(connection):
    """Every state, outcome and kind that the schema allows is explained on the page."""
    allowed = connection.execute(
        "SELECT conrelid::regclass::text, pg_get_constraintdef(oid) FROM pg_constraint"
        " WHERE conname IN ('job_history_state', 'job_attempts_outcome', 'workers_kind', 'retention_origin')"
    ).fetchall()
    words = {word for _, definition in allowed for word in re.findall(r"'(\w+)'::text", definition)}
    assert words > {"succeeded", "crashed", "cron"}
    page = PAGE.read_text()
    assert not [word for word in words if f"`{word}`" not in page]


@pytest.mark.parametrize(
    ("state", "columns"),
    [
        ("queued", {}),
        ("scheduled", {"run_at": LATER}),
        ("retrying", {"attempt": 1, "lease": 1, "run_at": LATER, **ERROR}),
        ("retrying", {"attempt": 1, "lease": 1, **ERROR}),
        ("queued", {"attempt": 0, "lease": 1, "crash_count": 1, **ERROR}),
    ],
)
def test_a_waiting_job(rows, look, state, columns):
    """A live job shows in a word why it waits; what only a finished job can have is null."""
    number = rows.job(**columns)
    found = look("v_jobs", "id = %s", number)
    assert found["state"] == state
    assert [found["error_type"], found["error"], found["error_at"]] == ([*ERROR.values()] if "last_error" in columns else [None] * 3)
    nulls = ("started_at", "finished_at", "result", "wait_ms", "run_ms", "cpu_ms", "worker_id", "cancel_requested_at")
    assert {found[name] for name in nulls} == {None}


def test_a_running_job(rows, look):
    """A running job shows its worker, since when, and whether somebody asked to cancel it."""
    worker = rows.worker("w")
    number = rows.running(worker, started_at=EARLIER, cancel_requested_at=NOW, time_limit=timedelta(minutes=5), parent_id=7)
    found = look("v_jobs", "id = %s", number)
    assert (found["state"], found["worker_id"], found["started_at"]) == ("running", worker, EARLIER)
    assert (found["cancel_requested_at"], found["time_limit"], found["parent_id"], found["lease"]) == (NOW, timedelta(minutes=5), 7, 1)
    assert found["finished_at"] is None


def test_limits_and_progress_of_a_live_job(rows, look):
    """A live job shows its limits and what its attempts said of themselves; one without any shows nulls."""
    found = look("v_jobs", "id = %s", rows.running(rows.worker("w"), **LIMITS, **SAID, **PLACE))
    assert {name: found[name] for name in (*LIMITS, *SAID, *PLACE)} == {**LIMITS, **SAID, **PLACE}
    bare = look("v_jobs", "id = %s", rows.job())
    assert {bare[name] for name in (*LIMITS, *SAID, *PLACE, "peak_memory")} == {None}


@pytest.mark.parametrize("state", ["succeeded", "failed", "cancelled", "quarantined"])
def test_a_finished_job(rows, look, state):
    """A finished job keeps what it had, and shows how it ended and what it cost."""
    worker = rows.worker("w")
    number = rows.finished(
        state, args={"to": "ana"}, queue="mail", priority=3, tags=["nightly"], meta={"trace": "1"}, unique_key="k", created_at=EARLIER,
        run_at=EARLIER, attempt=2, crash_count=1, worker_id=worker, started_at=NOW, finished_at=NOW, result={"sent": 1}, wait_ms=10,
        run_ms=20, cpu_ms=5, peak_memory=81_000_000, **LIMITS, **SAID, **PLACE, **ERROR,
    )  # fmt: skip
    found = look("v_jobs", "id = %s", number)
    expected = {
        "id": number, "task": "mail.send", "args": {"to": "ana"}, "queue": "mail", "priority": 3, "tags": ["nightly"], "meta": {"trace": "1"},
        "parent_id": None, "unique_key": "k", "state": state, "created_at": EARLIER, "run_at": EARLIER, "started_at": NOW, "finished_at": NOW,
        "attempt": 2, "max_attempts": 5, "crash_count": 1, "max_crashes": 3, "time_limit": None, "error_type": "shop.Timeout",
        "error": "no answer", "error_at": NOW, "result": {"sent": 1}, "wait_ms": 10, "run_ms": 20, "cpu_ms": 5, "worker_id": worker, "lease": 1,
        "cancel_requested_at": None, "peak_memory": 81_000_000, **LIMITS, **SAID, **PLACE,
    }  # fmt: skip
    assert found == expected


def test_attempts_of_a_job_that_succeeded_at_last(rows, connection):
    """The view has every ended attempt once: the record of those that did not succeed, and the success from the job itself."""
    worker = rows.worker("w")
    number = rows.finished(
        "succeeded", lease=3, attempt=2, worker_id=worker, started_at=NOW, finished_at=LATER, run_ms=20, cpu_ms=5, peak_memory=7
    )
    rows.attempt(number, "crashed", attempt=1, lease=1, exit_cause="signal 9", finished_at=EARLIER)
    rows.attempt(
        number, "retried", attempt=1, lease=2, error_type="E", message="m", traceback="t", fingerprint="f", exit_cause="memory", peak_memory=9
    )
    other = rows.finished("failed")
    rows.attempt(other, "failed")
    query = "SELECT lease, attempt, outcome, exit_cause, run_ms, peak_memory FROM jobrunner.v_attempts WHERE job_id = %s ORDER BY lease"
    assert connection.execute(query, (number,)).fetchall() == [
        (1, 1, "crashed", "signal 9", None, None),
        (2, 1, "retried", "memory", None, 9),
        (3, 2, "succeeded", None, 20, 7),
    ]
    assert connection.execute(query, (other,)).fetchall() == [(1, 1, "failed", None, None, None)]


def test_a_queue_counts_its_live_jobs(rows, look):
    """Each count is what the page says: a due retry is ready and retrying, and unserved is what no live worker registers."""
    worker = rows.worker("w", queues=["default", "mail"], slots=8)
    rows.worker("gone", lease_expires_at=EARLIER)
    rows.worker("left", stopped_at=NOW, tasks=["video.encode"])
    rows.job(run_at=EARLIER)
    rows.job(run_at=LATER)
    rows.job(attempt=1, run_at=LATER)
    rows.job(attempt=1, run_at=NOW - timedelta(minutes=5))
    rows.job("video.encode", run_at=NOW - timedelta(minutes=5))
    rows.running(worker)
    rows.finished("succeeded")
    assert look("v_queues", "queue = 'default'") == {
        "queue": "default", "ready_count": 3, "scheduled_count": 1, "retrying_count": 2, "running_count": 1, "unserved_count": 1,
        "oldest_ready_at": EARLIER, "worker_count": 1, "slot_count": 8,
    }  # fmt: skip
    idle = look("v_queues", "queue = 'mail'")
    assert (idle["ready_count"], idle["running_count"], idle["oldest_ready_at"], idle["worker_count"], idle["slot_count"]) == (
        0,
        0,
        None,
        1,
        8,
    )


def test_a_queue_without_a_worker_is_there(rows, look):
    """Jobs that nobody listens to are not hidden."""
    rows.job("video.encode", queue="gpu")
    found = look("v_queues")
    assert (found["queue"], found["ready_count"], found["unserved_count"], found["worker_count"], found["slot_count"]) == (
        "gpu",
        1,
        1,
        0,
        0,
    )


@pytest.mark.parametrize(
    ("state", "columns"),
    [
        ("alive", {}),
        ("lost", {"lease_expires_at": EARLIER}),
        ("lost", {"lease_expires_at": EARLIER, "stopped_at": NOW, "last_exit": "lost"}),
        ("stopped", {"lease_expires_at": NOW, "stopped_at": NOW, "last_exit": "drained"}),
    ],
)
def test_a_worker_is_alive_lost_or_stopped(rows, look, state, columns):
    """A worker is lost from the instant its lease expires, whether or not somebody has noticed."""
    worker = rows.worker("w", succeeded_count=3, rss_bytes=1_000, **columns)
    rows.running(worker)
    rows.running(worker)
    found = look("v_workers", "id = %s", worker)
    assert (found["state"], found["running_count"], found["succeeded_count"], found["rss_bytes"]) == (state, 2, 3, 1_000)
    assert found["last_exit"] == columns.get("last_exit")


def test_what_a_worker_runs_is_shown_until_it_stops(rows, look):
    """Pool, claims, memory and what each slot runs are as of the last heartbeat; a stopped worker runs nothing."""
    columns = {"pool": "nightly", "pool_slot": 2, "claimed_count": 7, "memory_bytes": 90_000_000, "running": {"slot": 1}}
    alive = look("v_workers", "id = %s", rows.worker("w", **columns))
    assert {name: alive[name] for name in columns} == columns
    stopped = look("v_workers", "id = %s", rows.worker("w", **columns, stopped_at=NOW, last_exit="done"))
    assert (stopped["running"], stopped["pool"], stopped["claimed_count"]) == (None, "nightly", 7)


def test_a_run_of_a_worker(rows, look):
    """A worker that left has a run with how long it was there, why it went, what it did, and what it left behind."""
    given = {
        "worker_id": 5, "pool": "nightly", "pool_slot": 2, "started_at": EARLIER, "finished_at": NOW, "reason": "drained", "exit_code": 0,
        "error": None, "claimed_count": 3, "succeeded_count": 2, "failed_count": 1, "crashed_count": 0, "left_count": 4, "next_due_at": LATER,
    }  # fmt: skip
    found = look("v_worker_runs", "id = %s", rows.run("w", **given))
    assert found["run_ms"] == 3_600_000
    assert {name: found[name] for name in given} == given
    assert (found["name"], found["host"], found["kind"], found["version"]) == ("w", "web-1", "cron", "0.1.0")


def test_rules_of_retention(look, connection):
    """Defaults are rows as well; a rule shows who wrote it, and the more specific one has the higher rank."""
    default = look("v_retention", "state = 'failed'")
    assert (default["task"], default["keep"], default["origin"], default["rank"]) == ("*", timedelta(days=180), "default", 0)
    for task, state, rank in (("mail.*", "failed", 4), ("mail.*", "*", 3), ("*", "failed", 2), ("*", "*", 1)):
        connection.execute("INSERT INTO jobrunner.retention (task, state, keep) VALUES (%s, %s, %s)", (task, state, None))
        found = look("v_retention", "task = %s AND state = %s AND origin = 'operator'", task, state)
        assert (found["keep"], found["app"], found["rank"], found["changed_by"]) == (None, "", rank, connection.info.user)


@pytest.mark.parametrize(
    ("level", "word"),
    [
        (1, "DEBUG"), (10, "DEBUG"), (19, "DEBUG"), (20, "INFO"), (29, "INFO"), (30, "WARNING"), (40, "ERROR"), (49, "ERROR"), (50, "CRITICAL"),
        (99, "CRITICAL"),
    ],
)  # fmt: skip
def test_a_line_of_a_log_has_its_level_in_a_word(rows, look, level, word):
    """A level between two of Python's has the word of the lower one; what was logged is shown as it was."""
    rows.log(17, "two\nlines", lease=3, line=2, attempt=1, level=level, logger="shop.mail", logged_at=NOW)
    assert look("v_logs", "job_id = 17") == {
        "job_id": 17, "lease": 3, "attempt": 1, "line": 2, "logged_at": NOW, "level": word, "logger": "shop.mail", "message": "two\nlines",
    }  # fmt: skip


@pytest.mark.parametrize(("view", "period"), [("v_throughput", "minute"), ("v_throughput_hourly", "hour")])
def test_throughput(rows, look, view, period):
    """What ended in the same period, and in the same way, is one row with counts, sums and histograms; the rest are rows of their own."""
    at = NOW.replace(minute=30, second=17) - timedelta(hours=2)
    rows.finished("succeeded", run_ms=4, wait_ms=50, cpu_ms=1, finished_at=at)
    rows.finished("succeeded", run_ms=400, wait_ms=60, cpu_ms=2, finished_at=at + timedelta(seconds=31))
    rows.finished("cancelled", finished_at=at)
    rows.finished("succeeded", "other", finished_at=at)
    rows.finished("succeeded", queue="mail", finished_at=at)
    rows.attempt(1, "retried", run_ms=7, finished_at=at)
    rows.attempt(1, "failed", lease=2, run_ms=7, finished_at=at)
    run, wait = [0] * 20, [0] * 20
    run[2], run[6], wait[4] = 1, 1, 2
    assert look(view, "outcome = 'succeeded' AND task = 'mail.send' AND queue = 'default'") == {
        period: at.replace(second=0, minute=30 if period == "minute" else 0), "queue": "default", "task": "mail.send", "outcome": "succeeded",
        "ended_count": 2, "run_ms": 404, "wait_ms": 110, "cpu_ms": 3, "run_histogram": run, "wait_histogram": wait,
    }  # fmt: skip
    assert look(view, "outcome = 'cancelled'")["run_histogram"] == [0] * 20
    assert look(view, "outcome = 'retried'")["run_ms"] == 7
    assert rows.connection.execute(f"SELECT sum(ended_count) FROM jobrunner.{view}").fetchone() == (6,)
