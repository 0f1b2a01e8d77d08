"""What the tables refuse by themselves."""

from __future__ import annotations

import pytest
from psycopg.errors import CheckViolation, NotNullViolation, UniqueViolation

from jobrunner import migrate

RUNNING = {"state": "'running'", "worker_id": "1", "claimed_at": "now()", "lease": "1"}
FINISHED = """
INSERT INTO jobrunner.job_history (id, task, args, queue, priority, tags, created_at, run_at, state, lease, attempt, max_attempts,
    backoff, backoff_base, backoff_cap, backoff_jitter, crash_count, max_crashes, finished_at)
SELECT id, task, args, queue, priority, tags, created_at, run_at, {state}, lease, attempt, max_attempts,
    backoff, backoff_base, backoff_cap, backoff_jitter, crash_count, max_crashes, now()
FROM jobrunner.jobs LIMIT 1
"""
ATTEMPT = "INSERT INTO jobrunner.job_attempts (job_id, attempt, lease, task, queue, outcome) VALUES (1, 1, 1, 'add', 'default', {})"
WORKER = """
INSERT INTO jobrunner.workers (name, host, pid, kind, version, queues, tasks, slots, lease_expires_at, pool, pool_slot)
VALUES ('w', 'h', 1, {}, '0', '{{}}', '{{}}', 1, now(), {}, {})
"""


def insert(connection, **values):
    """Insert a job whose columns are these SQL expressions."""
    values = {"task": "'add'", **values}
    connection.execute(f"INSERT INTO jobrunner.jobs ({', '.join(values)}) VALUES ({', '.join(values.values())})")


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
        *[
            ("jobs_limits", {column: value})
            for column, values in {
                "soft_time_limit": ("'0'", "'-1 s'"), "cpu_limit": ("'0'", "'-1 s'"), "memory_limit": ("0", "-1"), "output_limit": ("-1",),
                "max_processes": ("0", "-1"),
            }.items()
            for value in values
        ],
        ("jobs_limits", {"soft_time_limit": "'1 s'", "cpu_limit": "'1 s'", "memory_limit": "1", "output_limit": "0", "max_processes": "0"}),
        ("jobs_soft_below_hard", {"soft_time_limit": "'61 s'", "time_limit": "'1 minute'"}),
        ("jobs_memory_on_retry", {"memory_limit_on_retry": "0.9"}),
        ("jobs_memory_on_retry", {"memory_limit_on_retry": "1001"}),
        ("jobs_memory_on_retry", {"memory_limit_on_retry": "'NaN'"}),
        ("jobs_progress", {"progress": "-0.1"}),
        ("jobs_progress", {"progress": "1.1"}),
        ("jobs_progress", {"progress": "'NaN'"}),
        ("jobs_ordering_key", {"ordering_key": "''"}),
        ("jobs_ordering_key", {"ordering_key": "repeat('k', 501)"}),
        ("jobs_expires_at", {"expires_at": "'infinity'"}),
        ("jobs_expires_at", {"expires_at": "'-infinity'"}),
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
    insert(connection, soft_time_limit="'1 minute'", time_limit="'1 minute'", output_limit="0", max_processes="1", memory_limit_on_retry="2")
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
    connection.execute(FINISHED.format(state="'succeeded'"))
    connection.execute("DELETE FROM jobrunner.jobs")
    insert(connection, unique_key="'k'")


@pytest.mark.parametrize(
    ("constraint", "statement"),
    [
        ("job_history_state", FINISHED.format(state="'running'")),
        ("job_history_state", FINISHED.format(state="'queued'")),
        ("job_attempts_outcome", ATTEMPT.format("'succeeded'")),
        ("workers_kind", WORKER.format("'thread'", "NULL", "NULL")),
        ("workers_pool", WORKER.format("'cron'", "'nightly'", "NULL")),
        ("workers_pool", WORKER.format("'cron'", "NULL", "1")),
        ("workers_pool", WORKER.format("'cron'", "'nightly'", "0")),
    ],
)
def test_words_that_are_not_in_the_list_are_refused(connection, constraint, statement):
    """A state, an outcome or a kind of worker that does not exist is refused, and half a slot of a pool: a success is no row of job_attempts."""
    insert(connection)
    with pytest.raises(CheckViolation) as caught:
        connection.execute(statement)
    assert caught.value.diag.constraint_name == constraint
