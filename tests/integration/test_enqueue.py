"""A job exists exactly when the transaction that wrote it has committed, with the columns that were asked for."""

from __future__ import annotations

import sys
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobrunner import InvalidPayload, JobNotFound, JobRunner, SchemaMissing
from jobrunner.settings import parse_dsn
from tests.support.commands import run
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator


def send(user_id: int, *, loud: bool = False) -> str:
    return str(user_id) + "!" * loud


def build(dsn: str, **options: Any) -> JobRunner:
    options = {"wakeups": False, **options}
    jobs = JobRunner(dsn=dsn, **options)
    jobs.task(send)
    return jobs


@pytest.fixture
def jobs(dsn) -> Iterator[JobRunner]:
    jobs = build(dsn)
    yield jobs
    jobs.close()


@pytest.fixture
def task(jobs):
    return jobs.registry.get("send")


@pytest.fixture
def engine(dsn) -> Iterator[sa.Engine]:
    engine = sa.create_engine(parse_dsn(dsn, "test").sqlalchemy_url)
    yield engine
    engine.dispose()


def count(connection) -> Any:
    return connection.execute("SELECT count(*) FROM jobrunner.jobs").fetchone()[0]


def row(connection, job_id: int, *columns: str) -> Any:
    return connection.execute(f"SELECT {', '.join(columns)} FROM jobrunner.jobs WHERE id = %s", (job_id,)).fetchone()


# -- its own transaction


def test_a_job_is_there_when_enqueue_returns(task, connection):
    """The row is committed, keyed by parameter name, and the handle has its id and state."""
    job = task.enqueue(42, loud=True)
    assert row(connection, job.id, "task", "args->>'user_id'", "args->>'loud'", "state") == ("send", "42", "true", "queued")
    assert (job.state, job.created, job.refresh().state) == ("queued", True, "queued")


def test_a_plain_enqueue_equals_plain_sql(task, connection):
    """A row of `INSERT INTO jobrunner.jobs (task, args)` has the same columns as one of `enqueue`."""
    ours = task.enqueue(42).id
    theirs = connection.execute("""INSERT INTO jobrunner.jobs (task, args) VALUES ('send', '{"user_id": 42}') RETURNING id""").fetchone()[0]
    query = "SELECT to_jsonb(j) - 'id' - 'created_at' - 'run_at' FROM jobrunner.jobs j WHERE id = %s"
    assert connection.execute(query, (ours,)).fetchone() == connection.execute(query, (theirs,)).fetchone()


def test_a_plain_call_writes_nothing(task, connection):
    """Calling a task runs it here and now."""
    assert task(3, loud=True) == "3!"
    assert count(connection) == 0


def test_every_option_is_in_its_column(jobs, connection):
    """Policy and options arrive in the row; an option wins over the policy."""
    task = jobs.task(name="full", queue="mail", max_attempts=3, tags=["a"], backoff="linear", backoff_base=1, backoff_jitter=0.5)(send)
    parent = task.enqueue(1)
    job = task.options(
        queue="slow", priority=-5, time_limit="90s", max_crashes=2, backoff_cap="2m", tags=["x", 'y"\\,{}'], meta={"at": datetime.now(UTC)},
        parent_id=parent.id,
    ).enqueue(2)  # fmt: skip
    columns = (
        "queue",
        "priority",
        "max_attempts",
        "backoff",
        "backoff_base",
        "backoff_cap",
        "backoff_jitter",
        "max_crashes",
        "time_limit",
        "tags",
        "parent_id",
    )
    expected = (
        "slow", -5, 3, "linear", timedelta(seconds=1), timedelta(minutes=2), 0.5, 2, timedelta(seconds=90), ["x", 'y"\\,{}'], parent.id,
    )  # fmt: skip
    assert row(connection, job.id, *columns) == expected
    assert row(connection, job.id, "meta->>'at'")[0].startswith("20")
    ids = task.options(
        queue="slow", priority=-5, time_limit="90s", max_crashes=2, backoff_cap="2m", tags=["x", 'y"\\,{}'], parent_id=parent.id
    )
    for many in (3, 600):
        last = ids.enqueue_many([(number,) for number in range(many)])[-1]
        assert row(connection, last, *columns) == expected


def test_a_delay_counts_from_the_databases_clock(task, connection):
    """`delay` is added by PostgreSQL, so the clock of this host does not matter; the state is scheduled."""
    for ids in (
        [(job := task.options(delay="1h").enqueue(1)).id],
        task.options(delay=3600).enqueue_many([(1,), (2,)]),
        task.options(delay=timedelta(hours=1)).enqueue_many([(number,) for number in range(600)]),
    ):
        distances = connection.execute(
            "SELECT DISTINCT run_at - created_at FROM jobrunner.jobs WHERE id = ANY(%s)", (list(ids),)
        ).fetchall()
        assert all(abs(distance - timedelta(hours=1)) < timedelta(seconds=5) for (distance,) in distances)
    assert (job.state, job.refresh().state) == ("scheduled", "scheduled")


def test_run_at_is_the_moment_given(task, connection):
    """`run_at` is stored as it is, for one job and for many."""
    moment = datetime(2031, 5, 6, 7, 8, 9, tzinfo=UTC)
    bound = task.options(run_at=moment)
    for ids in ([bound.enqueue(1).id], bound.enqueue_many([(1,)]), bound.enqueue_many([(1,)] * 600)):
        assert row(connection, ids[-1], "run_at")[0] == moment


def test_a_missing_schema_says_what_to_do(empty_dsn):
    """Before `db upgrade` the error is about the schema, not about a table."""
    jobs = build(empty_dsn)
    with pytest.raises(SchemaMissing, match="does not exist"):
        jobs.registry.get("send").enqueue(1)
    jobs.close()


def test_a_connection_that_the_server_closed_is_replaced(jobs, task, connection):
    """A restart or an idle timeout between two enqueues costs no error."""
    task.enqueue(1)
    ours = "FROM pg_stat_activity WHERE application_name = 'jobrunner' AND datname = current_database()"
    connection.execute(f"SELECT pg_terminate_backend(pid) {ours}")
    wait_until(lambda: connection.execute(f"SELECT count(*) = 0 {ours}").fetchone()[0], timeout=10, what="the server has closed it")
    task.enqueue(2)
    assert count(connection) == 2


def test_eight_threads_lose_nothing(task, connection):
    """Every acknowledged id of concurrent threads is a row, and no id is given twice."""
    ids: list[int] = []

    def work(base: int) -> None:
        ids.extend(task.enqueue(base + number).id for number in range(50))
        ids.extend(task.enqueue_many([(base + number,) for number in range(600)]))

    threads = [threading.Thread(target=work, args=(index * 1000,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stored = dict(connection.execute("SELECT id, (args->>'user_id')::int FROM jobrunner.jobs").fetchall())
    assert len(ids) == len(set(ids)) == 8 * 650
    assert set(stored) == set(ids)
    assert sorted(stored.values()) == sorted([base * 1000 + n for base in range(8) for n in [*range(50), *range(600)]])


# -- many


@pytest.mark.parametrize("size", [1, 3, 499, 500, 2500])
def test_many_jobs_have_ids_in_the_order_of_the_calls(task, connection, size):
    """Whatever statement a batch takes, the i-th id is the i-th call's row."""
    forms = [lambda n: (n,), lambda n: {"user_id": n}, lambda n: n]
    ids = task.enqueue_many(forms[number % 3](number) for number in range(size))
    assert len(ids) == size
    stored = dict(connection.execute("SELECT id, (args->>'user_id')::int FROM jobrunner.jobs").fetchall())
    assert [stored[job_id] for job_id in ids] == list(range(size))
    assert list(ids) == sorted(ids)


def test_no_calls_are_no_jobs(task):
    """An empty batch touches nothing."""
    assert list(task.enqueue_many([])) == []


@pytest.mark.parametrize("size", [3, 2000])
def test_one_bad_call_refuses_the_batch(task, connection, size):
    """The bad call is named by its index, and none of the others is written."""
    with pytest.raises(InvalidPayload) as caught:
        task.enqueue_many([*[(number,) for number in range(size)], ("x",)])
    assert caught.value.argument == f"[{size}].user_id"
    assert count(connection) == 0
    task.enqueue(1)  # the connection is still good


TRICKY = ["\\", "\\N", "\\.", "\t\n\r", '"', "{}", "é😀", "'", "a\\u0000", "\x7f\x01", "%s %(x)s", ":name", "NULL", ""]


@pytest.mark.parametrize("repeat", [1, 60])
def test_any_text_survives_every_way_of_writing(jobs, connection, engine, repeat):
    """Backslashes, tabs, quotes and escapes arrive as they are: by INSERT, by array, by COPY, in a caller's transaction."""

    @jobs.task(tags=["\\", "a\tb"])
    def say(text: str): ...

    texts = TRICKY * repeat
    ids = list(say.enqueue_many([(text,) for text in texts]))
    with engine.begin() as connected:
        ids += say.options(connection=connected).enqueue_many([(text,) for text in texts])
        ids += [say.options(connection=connected).enqueue(text).id for text in TRICKY]
    ids += [say.enqueue(text).id for text in TRICKY]
    stored = dict(connection.execute("SELECT id, args->>'text' FROM jobrunner.jobs WHERE tags = %s", (["\\", "a\tb"],)).fetchall())
    assert [stored[job_id] for job_id in ids] == texts * 2 + TRICKY * 2


# -- by name, and handles


def test_enqueue_by_name_takes_what_a_row_holds(jobs, connection):
    """`jobs.enqueue` takes JSON data, checks it against the annotations and stores it the same way."""

    @jobs.task
    def remind(when: datetime, note: str = ""): ...

    job = jobs.enqueue("remind", {"when": "2031-01-01T00:00:00Z"}, queue="slow")
    assert row(connection, job.id, "queue", "args") == ("slow", {"when": "2031-01-01T00:00:00+00:00"})
    with pytest.raises(InvalidPayload, match="'when'"):
        jobs.enqueue("remind", {"when": "soon"})


def test_an_unknown_job_is_not_found(jobs, task, engine):
    """`jobs.job` and a handle of an uncommitted job say so."""
    with pytest.raises(JobNotFound):
        jobs.job(10**9)
    with Session(engine) as session:
        job = task.options(session=session).enqueue(1)
        with pytest.raises(JobNotFound):
            job.result(timeout=5)
        session.rollback()


def test_psycopg_is_not_left_in_a_transaction(jobs, task, dsn):
    """A connection that goes back to the pool after COPY or an error holds no lock and no transaction."""
    task.enqueue_many([(number,) for number in range(600)])
    with pytest.raises(InvalidPayload):
        task.enqueue_many([*[(number,) for number in range(600)], ("x",)])
    with jobs.database.store() as store:
        assert store.connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE


def test_the_first_enqueue_may_come_from_many_threads_at_once(dsn, connection, tmp_path):
    """In a server that just started, requests that enqueue for the first time together all succeed, and so do those that wait."""
    code = (
        "import sys\nfrom concurrent.futures import ThreadPoolExecutor\nfrom threading import Barrier\nfrom jobrunner import JobRunner\n"
        "jobs = JobRunner(dsn=sys.argv[1], wakeups=False)\nbarrier = Barrier(8)\nsys.setswitchinterval(1e-6)\n"
        "@jobs.task\ndef work(number: int): ...\n"
        "def request(number):\n    barrier.wait()\n    job = work.enqueue(number)\n"
        "    try:\n        job.wait(0)\n    except TimeoutError:\n        return job.id\n"
        "with ThreadPoolExecutor(8) as threads:\n    print(len(set(threads.map(request, range(8)))))\n"
    )
    assert run(sys.executable, "-c", code, dsn, cwd=tmp_path).stdout == "8\n"
    assert connection.execute("SELECT count(*) FROM jobrunner.jobs").fetchone() == (8,)
