"""What the tables refuse by themselves, and how their daily partitions are made."""

from __future__ import annotations

import threading
from datetime import timedelta

import psycopg
import pytest
from psycopg.errors import CheckViolation, NotNullViolation, UniqueViolation

from jobrunner import migrate, schema
from tests.support.waiting import wait_until

RUNNING = {"state": "'running'", "worker_id": "1", "claimed_at": "now()", "lease": "1"}
FINISHED = """
INSERT INTO jobrunner.job_history (id, task, args, queue, priority, tags, created_at, run_at, state, lease, attempt, max_attempts,
    backoff, backoff_base, backoff_cap, backoff_jitter, crash_count, max_crashes, finished_at)
SELECT id, task, args, queue, priority, tags, created_at, run_at, {state}, lease, attempt, max_attempts,
    backoff, backoff_base, backoff_cap, backoff_jitter, crash_count, max_crashes, {finished_at}
FROM jobrunner.jobs LIMIT 1
RETURNING tableoid::regclass::text
"""
ATTEMPT = "INSERT INTO jobrunner.job_attempts (job_id, attempt, lease, task, queue, outcome) VALUES (1, 1, 1, 'add', 'default', {})"
WORKER = """
INSERT INTO jobrunner.workers (name, host, pid, kind, version, queues, tasks, slots, lease_expires_at)
VALUES ('w', 'h', 1, {}, '0', '{{}}', '{{}}', 1, now())
"""


def insert(connection, **values):
    """Insert a job whose columns are these SQL expressions."""
    values = {"task": "'add'", **values}
    connection.execute(f"INSERT INTO jobrunner.jobs ({', '.join(values)}) VALUES ({', '.join(values.values())})")


def finish(connection, finished_at="now()", state="'succeeded'"):
    """Insert a history row that ended then; returns the partition it is in."""
    if connection.execute("SELECT FROM jobrunner.jobs").fetchone() is None:
        insert(connection)
    return connection.execute(FINISHED.format(finished_at=finished_at, state=state)).fetchone()[0].removeprefix("jobrunner.")


def day(connection, days=0):
    """The name that a partition of history has for today, or so many days later."""
    return connection.execute(
        "SELECT 'job_history_' || to_char((now() AT TIME ZONE 'UTC') + %s, 'YYYYMMDD')", (timedelta(days),)
    ).fetchone()[0]


def detach_today(connection):
    """Take the state of a database that nobody kept for days: no partition for today."""
    for parent in schema.PARTITIONED:
        connection.execute(f"DROP TABLE jobrunner.{day(connection).replace('job_history', parent)}")


def ensure(connection, ahead=7):
    """How many partitions were made."""
    return connection.execute("SELECT jobrunner.ensure_partitions(%s)", (ahead,)).fetchone()[0]


@pytest.mark.matrix
def test_the_tables_are_those_of_the_program(dsn):
    """The migrations make exactly what the program's metadata, views and functions say."""
    assert migrate.drift(dsn) == []


@pytest.mark.parametrize(
    ("constraint", "values"),
    [
        ("jobs_state", {"state": "'done'"}),
        ("jobs_state", {"state": "'scheduled'"}),
        ("jobs_running_shape", {**RUNNING, "worker_id": "NULL"}),
        ("jobs_running_shape", {**RUNNING, "claimed_at": "NULL"}),
        ("jobs_running_shape", {**RUNNING, "lease": "0"}),
        ("jobs_queued_shape", {"worker_id": "1"}),
        ("jobs_queued_shape", {"claimed_at": "now()"}),
        ("jobs_queued_shape", {"started_at": "now()"}),
        ("jobs_queued_shape", {"cancel_requested_at": "now()"}),
        ("jobs_args_object", {"args": "'[1]'"}),
        ("jobs_args_object", {"args": "'null'"}),
        ("jobs_args_object", {"args": "'\"text\"'"}),
        ("jobs_names", {"task": "''"}),
        ("jobs_names", {"queue": "''"}),
        ("jobs_counts", {"attempt": "-1"}),
        ("jobs_counts", {"max_attempts": "0"}),
        ("jobs_counts", {"crash_count": "-1"}),
        ("jobs_counts", {"max_crashes": "0"}),
        ("jobs_counts", {"lease": "-1"}),
        ("jobs_backoff", {"backoff": "'random'"}),
        ("jobs_backoff_range", {"backoff_base": "'-1 s'"}),
        ("jobs_backoff_range", {"backoff_cap": "'-1 s'"}),
        ("jobs_backoff_range", {"backoff_jitter": "-0.1"}),
        ("jobs_backoff_range", {"backoff_jitter": "1.1"}),
        ("jobs_backoff_range", {"backoff_jitter": "'NaN'"}),
        ("jobs_time_limit", {"time_limit": "'0'"}),
        ("jobs_time_limit", {"time_limit": "'-1 s'"}),
        ("jobs_run_at", {"run_at": "'infinity'"}),
        ("jobs_run_at", {"run_at": "'-infinity'"}),
        ("jobs_run_at", {"run_at": "'9999-01-01 00:00+00'"}),
        ("jobs_run_at", {"run_at": "'1969-12-31 23:59:59+00'"}),
    ],
)
def test_a_job_out_of_shape_is_refused(connection, constraint, values):
    """A row that breaks a rule is refused by the constraint of that rule, whoever inserts it."""
    with pytest.raises(CheckViolation) as caught:
        insert(connection, **values)
    assert caught.value.diag.constraint_name == constraint


def test_every_check_of_jobs_is_tested(connection):
    """No CHECK constraint of live jobs is without a case above."""
    found = connection.execute("SELECT conname FROM pg_constraint WHERE conrelid = 'jobrunner.jobs'::regclass AND contype = 'c'").fetchall()
    mark = next(mark for mark in test_a_job_out_of_shape_is_refused.pytestmark if mark.name == "parametrize")
    assert {name for (name,) in found} == {constraint for constraint, _ in mark.args[1]}


@pytest.mark.parametrize("column", ["task", "args", "queue", "priority", "tags", "run_at", "state", "lease", "attempt", "backoff_base"])
def test_what_a_job_cannot_lack(connection, column):
    """A NULL where the engine needs a value is refused."""
    with pytest.raises(NotNullViolation) as caught:
        insert(connection, **{column: "NULL"})
    assert caught.value.diag.column_name == column


def test_shapes_that_are_right(connection):
    """The least a row needs is a task; a running one needs worker, claim time and lease, and nothing else."""
    insert(connection)
    insert(connection, **RUNNING)
    insert(connection, **RUNNING, started_at="now()", cancel_requested_at="now()")
    assert connection.execute("SELECT DISTINCT args, queue, priority, tags, attempt FROM jobrunner.jobs").fetchall() == [
        ({}, "default", 0, [], 0)
    ]


def test_a_unique_key_counts_per_task_among_live_jobs(connection):
    """Two live jobs of a task cannot share a key; other tasks, jobs without a key and finished jobs do not matter."""
    for task in ("'add'", "'send'"):
        insert(connection, task=task, unique_key="'k'")
        insert(connection, task=task)
        insert(connection, task=task)
    with pytest.raises(UniqueViolation) as caught:
        insert(connection, **RUNNING, unique_key="'k'")
    assert caught.value.diag.constraint_name == "jobs_unique"
    connection.execute("DELETE FROM jobrunner.jobs")
    finish(connection)
    insert(connection, unique_key="'k'")


@pytest.mark.parametrize(
    ("constraint", "statement"),
    [
        ("job_history_state", FINISHED.format(state="'running'", finished_at="now()")),
        ("job_history_state", FINISHED.format(state="'queued'", finished_at="now()")),
        ("job_attempts_outcome", ATTEMPT.format("'succeeded'")),
        ("workers_kind", WORKER.format("'thread'")),
    ],
)
def test_words_that_are_not_in_the_list_are_refused(connection, constraint, statement):
    """A state, an outcome or a kind of worker that does not exist is refused: a success is no row of job_attempts."""
    insert(connection)
    with pytest.raises(CheckViolation) as caught:
        connection.execute(statement)
    assert caught.value.diag.constraint_name == constraint


def test_partitions_are_made_ahead(fresh_dsn):
    """From yesterday to `ahead` days from now there is a partition a day for history and attempts, and a second call makes none."""
    with psycopg.connect(fresh_dsn, autocommit=True) as connection:
        assert ensure(connection, 7) == 0
        assert ensure(connection, 10) == 2 * 3
        assert ensure(connection, 10) == 0
        assert [finish(connection, f"now() + interval '{days} days'") for days in (-1, 0, 10)] == [day(connection, n) for n in (-1, 0, 10)]
        assert migrate.drift(fresh_dsn) == []


def test_a_day_ends_in_utc(fresh_dsn):
    """The partition of an instant does not depend on anybody's time zone."""
    with psycopg.connect(fresh_dsn, autocommit=True) as connection:
        today = day(connection)
        connection.execute("SET TIME ZONE 'Pacific/Auckland'")
        assert finish(connection, "date_trunc('day', now(), 'UTC')") == today
        assert finish(connection, "date_trunc('day', now(), 'UTC') + interval '1 day' - interval '1 us'") == today
        assert ensure(connection, 7) == 0


def test_a_far_day_lands_in_the_default_partition(fresh_dsn):
    """An insert never fails for want of a partition."""
    with psycopg.connect(fresh_dsn, autocommit=True) as connection:
        assert finish(connection, "now() + interval '400 days'") == "job_history_default"
        assert finish(connection, "now() - interval '400 days'") == "job_history_default"


def test_rows_move_out_of_the_default_partition(fresh_dsn):
    """When a day gets its partition, the rows that waited in the default one are in it, and those of other days stay."""
    with psycopg.connect(fresh_dsn, autocommit=True) as connection:
        detach_today(connection)
        assert finish(connection) == "job_history_default"
        finish(connection, "now() + interval '400 days'")
        assert ensure(connection) == 2
        rows = connection.execute("SELECT tableoid::regclass::text, count(*) FROM jobrunner.job_history GROUP BY 1 ORDER BY 1").fetchall()
        assert rows == [(f"jobrunner.{day(connection)}", 1), ("jobrunner.job_history_default", 1)]


def test_a_row_that_commits_meanwhile_does_not_stop_the_partition(fresh_dsn):
    """An insert into the default partition that commits while its day gets a partition is waited for, and moved as well."""
    with psycopg.connect(fresh_dsn, autocommit=True) as connection, psycopg.connect(fresh_dsn) as finisher:
        detach_today(connection)
        finish(finisher)
        made = []
        with psycopg.connect(fresh_dsn, autocommit=True) as other:
            maker = threading.Thread(target=lambda: made.append(ensure(other)))
            maker.start()
            pid = other.info.backend_pid
            wait_until(
                lambda: connection.execute("SELECT cardinality(pg_blocking_pids(%s)) > 0", (pid,)).fetchone() == (True,),
                timeout=30,
                what="the partition waiting for the insert",
            )
            finisher.commit()
            maker.join()
        assert made == [2]
        assert connection.execute("SELECT tableoid::regclass::text FROM jobrunner.job_history").fetchall() == [
            (f"jobrunner.{day(connection)}",)
        ]


def test_many_make_partitions_at_once(fresh_dsn):
    """Of four sessions that make the same days at once, each is made once and nobody fails."""
    with psycopg.connect(fresh_dsn) as gate:
        gate.execute("SELECT pg_advisory_xact_lock(hashtextextended('jobrunner.ensure_partitions', 0))")
        made: list[int] = []

        def make() -> None:
            with psycopg.connect(fresh_dsn, autocommit=True) as connection:
                made.append(ensure(connection, 12))

        makers = [threading.Thread(target=make) for _ in range(4)]
        for maker in makers:
            maker.start()
        with psycopg.connect(fresh_dsn, autocommit=True) as watch:
            wait_until(
                lambda: watch.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted").fetchone() == (4,),
                timeout=30,
                what="four sessions at the gate",
            )
        gate.rollback()
        for maker in makers:
            maker.join()
    assert sorted(made) == [0, 0, 0, 10]
