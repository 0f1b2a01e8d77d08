"""Every query of the cookbook runs as it is printed, gives the answer that its question asks for, and uses the index it names."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from psycopg.rows import dict_row

from tests.support.viewrows import Rows

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "cookbook.md"
RECIPE = re.compile(r"^## ([^\n]+\?)\n.*?^```sql\n(.*?)^```\n```text\n(.*?)^```\nIndex: (.*?)$", re.MULTILINE | re.DOTALL)
VARIABLE = re.compile(r"(?<!:):'?(\w+)'?")
SOME = {"job": 1, "worker": "w"}
VIEWS = {
    f"jobrunner.{name}"
    for name in (
        "v_jobs", "v_attempts", "v_logs", "v_queues", "v_workers", "v_worker_runs", "v_throughput", "v_throughput_hourly", "histogram_percentile",
    )
}  # fmt: skip

RECIPES = {title: (query, sample, index) for title, query, sample, index in RECIPE.findall(PAGE.read_text())}
WITH_INDEX = [title for title, (_, _, index) in RECIPES.items() if "`" in index]


def ago(**duration):
    """An instant in the past."""
    return datetime.now(UTC) - timedelta(**duration)


@pytest.fixture
def rows(connection):
    """An empty database to put rows in, with a table of the user's own."""
    connection.execute("CREATE TABLE orders (id integer PRIMARY KEY, paid_at timestamptz)")
    return Rows(connection)


@pytest.fixture
def answer(connection, rows):
    """Runs the recipe of that title, with its variables, and returns its rows as dicts."""

    def run(title, **variables):
        query = VARIABLE.sub(r"%(\1)s", RECIPES[title][0].replace("%", "%%"))
        with connection.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(query, variables).fetchall()

    return run


def test_no_recipe_is_missed():
    """Every heading is a recipe with query, sample and index, and each has a test of its own below."""
    headings = [line.removeprefix("## ") for line in PAGE.read_text().splitlines() if line.startswith("## ")]
    assert headings == list(RECIPES)
    asked = re.findall(r"answer\(\s*\"([^\"]+)\"", Path(__file__).read_text())
    assert set(asked) == set(RECIPES)


@pytest.mark.parametrize("title", RECIPES)
def test_the_sample_has_the_columns_of_the_query(connection, rows, title):
    """What is shown as output has the columns that the query gives."""
    query, sample, _ = RECIPES[title]
    cursor = connection.execute(VARIABLE.sub(r"%(\1)s", query.replace("%", "%%")), SOME)
    assert [column.name for column in cursor.description] == [name.strip() for name in sample.splitlines()[0].split("|")]


@pytest.mark.parametrize("title", RECIPES)
def test_only_public_views_are_read(title):
    """A recipe names nothing in our schema but the public views and their function, so that it survives an upgrade."""
    assert set(re.findall(r"jobrunner\.\w+", RECIPES[title][0])) <= VIEWS


@pytest.mark.parametrize("title", WITH_INDEX)
def test_the_named_indexes_can_be_used(connection, rows, title):
    """The planner has a way through each index that the recipe names, in a partition when it is one of a partitioned table.

    On empty tables two indexes cost the same, and which of them it takes is chance: then it is asked again without the other.
    """
    query, _, index = RECIPES[title]
    named = set(re.findall(r"`(\w+)`", index))
    rows.attempt(rows.finished("succeeded", lease=2), "retried")  # a table without a page costs nothing to read
    with connection.transaction(force_rollback=True):
        connection.execute("SET LOCAL enable_seqscan = off")
        connection.execute("SET LOCAL enable_bitmapscan = off")
        connection.execute("SET LOCAL seq_page_cost = 1000000")  # a subquery's choice minds costs only, not what is switched off
        used = indexes_used(connection, query)
        while named - used and (rivals := sorted(used - named)):
            drop_index(connection, rivals[0])
            used = indexes_used(connection, query)
    assert named <= used


def drop_index(connection, name):
    """Of a primary key too, which goes with its constraint."""
    table = name.removesuffix("_pkey")
    connection.execute(
        f"DROP INDEX jobrunner.{name}" if table == name else f"ALTER TABLE jobrunner.{table} DROP CONSTRAINT {name} CASCADE"
    )


def indexes_used(connection, query):
    """The indexes in the plan of a query, by the names of their partitioned parents."""
    plan = connection.execute("EXPLAIN " + VARIABLE.sub(r"%(\1)s", query.replace("%", "%%")), SOME).fetchall()
    parents = dict(
        connection.execute(
            "SELECT c.relname, p.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_class p ON p.oid = i.inhparent WHERE c.relkind = 'i'"
        )
    )
    return {parents.get(name, name) for name in re.findall(r"using (\w+)", "\n".join(line for (line,) in plan))}


def test_queue_depth(rows, answer):
    """The queue whose oldest job waits longest comes first; a queue without jobs shows with its slots."""
    rows.worker("w", queues=["default", "idle"], slots=8)
    rows.job(run_at=ago(seconds=5))
    rows.job(queue="mail", run_at=ago(minutes=2))
    rows.job(queue="mail", run_at=ago(seconds=1))
    found = answer("How deep is each queue, and how old is its oldest job?")
    assert [(row["queue"], row["ready"], row["slots"]) for row in found] == [("mail", 2, 0), ("default", 1, 8), ("idle", 0, 8)]
    assert timedelta(minutes=2) <= found[0]["oldest"] < timedelta(minutes=4)
    assert found[2]["oldest"] is None


def test_queues_that_break_their_promise(rows, answer):
    """By the promise of each queue, the longest wait first; what runs, is not due, or waits within its promise is none."""
    rows.worker("web-1:311", slots=8)
    rows.job(run_at=ago(minutes=4))
    rows.job(queue="reports", run_at=ago(minutes=50))
    assert answer("Which queues keep a job waiting for longer than promised?") == []
    rows.job(queue="mail", run_at=ago(minutes=2))
    rows.job(queue="mail", run_at=ago(seconds=1))
    rows.job(run_at=ago(minutes=6))
    rows.job(queue="images", run_at=ago(hours=-1))
    rows.running(rows.worker("web-2:298"), queue="music", run_at=ago(hours=2))
    found = answer("Which queues keep a job waiting for longer than promised?")
    assert [(row["queue"], row["ready"], row["workers"]) for row in found] == [("default", 2, 2), ("mail", 2, 0)]
    assert timedelta(minutes=2) <= found[1]["oldest"] < timedelta(minutes=4)


def test_why_a_job_waits(rows, answer):
    """Each cause hides those behind it: finished, running, lost, not due, nobody alive, not listened to, not registered, behind."""

    def why(number):
        (row,) = answer("Why is job N waiting?", job=number)
        return row["reason"]

    number = rows.job("mail.send", queue="mail")
    assert why(number) == "no worker is alive"
    rows.worker("elsewhere", queues=["default"])
    assert why(number) == "no live worker listens on its queue"
    rows.worker("other", queues=["mail"], tasks=["other"])
    assert why(number) == "no live worker on its queue registers its task"
    worker = rows.worker("web-1:311", queues=["mail"], slots=2)
    rows.running(worker)
    rows.job(queue="mail", priority=-1)
    rows.job(queue="mail", priority=1)
    rows.job(queue="mail", priority=-1, run_at=ago(hours=-1))
    assert why(number) == "1 due jobs are ahead of it, 1 slots are free"
    assert why(rows.job(run_at=ago(hours=-1), attempt=1)).startswith("retrying, due in 00:59:5")
    assert why(rows.running(worker)) == "it runs on web-1:311"
    assert why(rows.running(rows.worker("gone", lease_expires_at=ago(seconds=1)))) == "its worker was lost; the next live one gives it back"
    assert why(rows.finished("cancelled")) == "it is over: cancelled"


def test_what_a_job_logged(rows, answer):
    """The lines of one job, live or finished, in the order of its attempts, and nobody else's."""
    for number in (rows.running(rows.worker("w"), lease=2, attempt=2), rows.finished("failed", created_at=ago(minutes=1))):
        rows.log(number, "again", lease=2, attempt=2, level=20)
        rows.log(number, "second", line=2, level=30)
        rows.log(number, "first", line=1, level=20)
        rows.log(number + 1_000, "another's")
        found = answer("What did job N log?", job=number)
        assert [(row["attempt"], row["level"], row["message"]) for row in found] == [
            (1, "INFO", "first"),
            (1, "WARNING", "second"),
            (2, "INFO", "again"),
        ]


def test_running_longer_than_usual(rows, answer):
    """A job past the 95th percentile of its task is listed with its worker; one within it, or of a task never seen, is not."""
    worker = rows.worker("web-1:311")
    for milliseconds in (1_000, 2_000, 60_000):
        rows.finished("succeeded", "etl.load", run_ms=milliseconds)
    rows.finished("failed", "etl.load", run_ms=9_000_000)
    slow = rows.running(worker, "etl.load", started_at=ago(minutes=10))
    rows.running(worker, "etl.load", started_at=ago(seconds=5))
    rows.running(worker, "new.task", started_at=ago(hours=5))
    (found,) = answer("Which jobs run longer than usual?")
    assert (found["id"], found["usual"], found["worker"]) == (slow, timedelta(minutes=1), "web-1:311")
    assert found["running_for"] >= timedelta(minutes=10)


def test_failures_today(rows, answer):
    """Attempts are counted by error, jobs once, and neither yesterday's nor successful ones."""
    for attempt, outcome in ((1, "retried"), (2, "failed")):
        rows.attempt(1, outcome, attempt=attempt, lease=attempt, error_type="Timeout", message="no answer", fingerprint="a")
    rows.attempt(2, "retried", error_type="Timeout", message="no answer", fingerprint="a")
    rows.attempt(3, "failed", error_type="KeyError", message="'sku'", fingerprint="b")
    rows.attempt(4, "failed", error_type="Old", fingerprint="c", finished_at=ago(days=1))
    rows.attempt(5, "snoozed", message="later")
    rows.finished("succeeded")
    found = answer("What failed today, by error?")
    assert [(row["error_type"], row["attempts"], row["jobs"], row["for_good"]) for row in found] == [
        ("Timeout", 3, 2, 1),
        ("KeyError", 1, 1, 1),
    ]
    assert found[0]["example"] == "no answer"


def test_retry_exhaustion(rows, answer):
    """Jobs that failed with attempts left, because the task gave up, are not counted as exhausted."""
    rows.finished("failed", "crm.sync", attempt=5)
    rows.finished("failed", "crm.sync", attempt=1)
    for _ in range(2):
        rows.finished("succeeded", "crm.sync", attempt=5)
    rows.finished("succeeded", "fine")
    assert answer("Which tasks use up all their attempts?") == [{"task": "crm.sync", "exhausted": 1, "finished": 4, "percent": 25}]


def test_success_after_retry(rows, answer):
    """A crash counts as a retry although its attempt was given back; a release and a snooze do not."""
    for lease, outcome in ((2, "crashed"), (2, "retried"), (2, "released"), (2, "snoozed")):
        rows.attempt(rows.finished("succeeded", "crm.sync", lease=lease), outcome)
    rows.finished("succeeded", "fine")
    assert answer("Which tasks succeed only after a retry?") == [{"task": "crm.sync", "succeeded": 4, "after_retry": 2, "percent": 50}]


def test_percentiles(rows, answer):
    """Percentiles are values that occurred, of successful runs, slowest task first."""
    for milliseconds in range(1, 101):
        rows.finished("succeeded", run_ms=milliseconds)
    rows.finished("failed", run_ms=10_000)
    rows.finished("succeeded", "report.daily", run_ms=93_022)
    rows.finished("succeeded", run_ms=10_000, finished_at=ago(days=2))
    assert answer("How long does each task run?") == [
        {"task": "report.daily", "runs": 1, "p50_ms": 93_022, "p95_ms": 93_022, "p99_ms": 93_022},
        {"task": "mail.send", "runs": 100, "p50_ms": 50, "p95_ms": 95, "p99_ms": 99},
    ]


def test_wait_against_run(rows, answer):
    """The queue that waits most comes first; jobs that never began do not count."""
    rows.finished("succeeded", queue="mail", wait_ms=900, run_ms=100)
    rows.finished("failed", queue="mail", wait_ms=900, run_ms=100)
    rows.finished("cancelled", queue="mail")
    rows.finished("succeeded", wait_ms=0, run_ms=0)
    found = answer("Do jobs wait longer than they run?")
    assert found[0] == {"queue": "mail", "jobs": 2, "wait_ms": 900, "run_ms": 100, "percent_waiting": 90}
    assert (found[1]["queue"], found[1]["percent_waiting"]) == ("default", None)


def test_busy_tasks(rows, answer):
    """Jobs are counted once however often they were tried, and the time of each attempt is added up; what is a day old is left out."""
    rows.finished("succeeded", run_ms=60_000)
    rows.finished("quarantined", run_ms=1_000)
    rows.attempt(1, "retried", run_ms=29_000)
    rows.attempt(2, "quarantined", run_ms=1_000)
    rows.finished("cancelled", "report.daily", run_ms=10_000)
    rows.finished("succeeded", "old", run_ms=90_000, finished_at=ago(days=2))
    assert [tuple(row.values()) for row in answer("Which tasks keep the workers busy?")] == [
        ("mail.send", 2, 1, 1, timedelta(seconds=90), 90),
        ("report.daily", 1, None, None, timedelta(seconds=10), 10),
    ]


def test_waits_by_the_hour(rows, answer):
    """Percentiles of an hour are of all tasks of the queue together, and as near as the buckets are."""
    at = ago(hours=2).replace(minute=30)
    for wait_ms in (5, 5, 5, 150):
        rows.finished("succeeded", f"task.{wait_ms}", wait_ms=wait_ms, finished_at=at)
    rows.finished("failed", queue="mail", wait_ms=40_000, finished_at=at)
    rows.finished("cancelled", queue="mail", finished_at=at)
    mail, default = answer("How long did jobs wait, hour by hour?")
    assert (mail["hour"], mail["queue"], mail["jobs"]) == (at.replace(minute=0, second=0, microsecond=0), "mail", 1)
    assert (default["queue"], default["jobs"]) == ("default", 4)
    assert 3 <= default["p50_ms"] < 10
    assert 100 <= default["p95_ms"] < 300
    assert 30_000 <= mail["p50_ms"] < 100_000


def test_who_ran_what(rows, answer):
    """Successes and crashes of one worker, the latest first, and nobody else's."""
    worker, other = rows.worker("web-1:311"), rows.worker("web-2:298")
    rows.attempt(7, "crashed", worker_id=worker, exit_cause="signal 9", run_ms=902, finished_at=ago(minutes=2))
    number = rows.finished("succeeded", worker_id=worker, run_ms=131, finished_at=ago(minutes=1))
    rows.finished("succeeded", worker_id=other)
    found = answer("Who ran what on worker X?", worker="web-1:311")
    assert [(row["job_id"], row["outcome"], row["exit_cause"], row["run_ms"]) for row in found] == [
        (number, "succeeded", None, 131),
        (7, "crashed", "signal 9", 902),
    ]


def test_per_argument(rows, answer):
    """Jobs are counted by the value of an argument, the most expensive first, and those without it left out."""
    rows.finished("succeeded", args={"tenant": "globex"}, run_ms=500)
    rows.finished("succeeded", args={"tenant": "acme"}, run_ms=1_500)
    rows.finished("failed", args={"tenant": "acme"}, run_ms=500)
    rows.finished("succeeded", args={"user": 1}, run_ms=90_000)
    assert [tuple(row.values()) for row in answer("Which tenant uses the queues most?")] == [("acme", 2, 2, 1), ("globex", 1, 0.5, 0)]


def test_own_table(rows, answer, connection):
    """An order is listed unless its own receipt has succeeded; a failed, a waiting or somebody else's receipt is none."""
    connection.execute("INSERT INTO orders SELECT id, now() - interval '1 hour' FROM generate_series(1, 4) AS id")
    connection.execute("INSERT INTO orders VALUES (5, now() - interval '2 days')")
    rows.finished("succeeded", "mail.receipt", args={"order_id": 1})
    rows.finished("failed", "mail.receipt", args={"order_id": 2})
    rows.job("mail.receipt", args={"order_id": 3})
    rows.finished("succeeded", "mail.invoice", args={"order_id": 4})
    assert {row["id"] for row in answer("Which of my orders have no receipt?")} == {2, 3, 4}


def test_crashes(rows, answer):
    """Quarantined jobs and live ones that have crashed, with how the process ended last; not those that recovered."""
    dead = rows.finished("quarantined", crash_count=3, last_error="ended")
    for lease, cause in ((1, "signal 9"), (2, "exit 1")):
        rows.attempt(dead, "crashed", lease=lease, exit_cause=cause)
    rows.attempt(dead, "quarantined", lease=3, exit_cause="signal 11")
    limping = rows.job(crash_count=1, lease=1)
    rows.attempt(limping, "crashed", exit_cause="lost worker")
    rows.finished("failed", crash_count=2)
    rows.job()
    found = answer("Which jobs kill their process?")
    assert [(row["id"], row["state"], row["crashes"], row["exit_cause"]) for row in found] == [
        (dead, "quarantined", 3, "signal 11"),
        (limping, "queued", 1, "lost worker"),
    ]


def test_unregistered_tasks(rows, answer):
    """A task that only a lost worker, or one of another queue, registers is nobody's; a job that is not due is no matter."""
    rows.worker("w", queues=["default"], tasks=["mail.send", "video.encode"])
    rows.worker("gone", tasks=["export.gdpr"], lease_expires_at=ago(seconds=1))
    rows.job("mail.send")
    for _ in range(2):
        rows.job("export.gdpr")
    rows.job("video.encode", queue="gpu", attempt=1)
    rows.job("export.gdpr", run_at=ago(hours=-1))
    found = answer("Which jobs wait for a task that no live worker registers?")
    assert [(row["task"], row["queue"], row["jobs"]) for row in found] == [("export.gdpr", "default", 2), ("video.encode", "gpu", 1)]
