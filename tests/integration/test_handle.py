"""A job's handle shows its state, waits for its end, and gives what the function returned."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime

import pytest

from jobrunner import IllegalTransition, JobCancelled, JobFailed, JobNotFound, JobRunner, JobrunnerError, current_job
from jobrunner.current import JobContext, running
from tests.support.waiting import wait_until

FINISH = """
WITH gone AS (DELETE FROM jobrunner.jobs WHERE id = %(id)s RETURNING *)
INSERT INTO jobrunner.job_history (id, task, args, queue, priority, tags, created_at, run_at, state, lease, attempt, max_attempts, backoff,
    backoff_base, backoff_cap, backoff_jitter, crash_count, max_crashes, last_error_type, last_error, result)
SELECT id, task, args, queue, priority, tags, created_at, run_at, %(state)s, lease, 1, max_attempts, backoff,
    backoff_base, backoff_cap, backoff_jitter, crash_count, max_crashes, %(error_type)s, %(error)s, %(result)s
FROM gone
"""


@pytest.fixture
def jobs(dsn):
    jobs = JobRunner(dsn=dsn, wakeups=False)

    @jobs.task
    def when(number: int) -> datetime: ...  # type: ignore[empty-body]

    yield jobs
    jobs.close()


@pytest.fixture
def task(jobs):
    return jobs.registry.get("when")


def finish(connection, job, state="succeeded", result=None, error_type=None, error=None):
    parameters = {"id": job.id, "state": state, "result": json.dumps(result), "error_type": error_type, "error": error}
    assert connection.execute(FINISH, parameters).rowcount == 1


def test_a_result_is_decoded_by_the_annotation(jobs, task, connection):
    """`result()` gives the value the function returned, also through a handle made from the id."""
    job = task.enqueue(1)
    finish(connection, job, result="2026-01-01T00:00:00+00:00")
    assert job.result(timeout=5) == datetime(2026, 1, 1, tzinfo=UTC)
    assert job.state == "succeeded"
    assert jobs.job(job.id).result() == datetime(2026, 1, 1, tzinfo=UTC)
    assert jobs.job(job.id) == job


def test_result_waits_for_the_end(task, connection):
    """A caller that is ahead of the worker gets the result as soon as it is there."""
    job = task.enqueue(1)
    got: list[object] = []
    waiting = threading.Thread(target=lambda: got.append(job.result(timeout=20)))
    waiting.start()
    finish(connection, job, result="2026-01-01T00:00:00+00:00")
    wait_until(lambda: got, timeout=10, what="the result")
    waiting.join()


def test_a_timeout_leaves_the_job_alone(task):
    """TimeoutError says the state; the job goes on."""
    job = task.enqueue(1)
    with pytest.raises(TimeoutError, match="it is queued"):
        job.result(timeout=0.05)
    with pytest.raises(TimeoutError):
        job.wait(0)
    assert job.refresh().state == "queued"


def test_a_failure_is_raised_with_its_error(task, connection):
    """JobFailed has the error of the last attempt and its traceback; `wait` only gives the state."""
    job = task.enqueue(1)
    finish(connection, job, state="failed", error_type="shop.Gone", error="no such user")
    connection.execute(
        "INSERT INTO jobrunner.job_attempts (job_id, attempt, lease, task, queue, outcome, traceback) "
        "VALUES (%s, 1, 1, 'x', 'x', 'failed', 'tb')",
        (job.id,),
    )
    assert job.wait() == "failed"
    with pytest.raises(JobFailed) as caught:
        job.result()
    assert (caught.value.error_type, caught.value.message, caught.value.traceback) == ("shop.Gone", "no such user", "tb")


def test_cancel_and_retry(task, connection):
    """A waiting job is cancelled at once; a cancelled one may be retried; a job that succeeded may not."""
    job = task.enqueue(1)
    assert job.cancel() == "cancelled"
    with pytest.raises(JobCancelled):
        job.result()
    job.retry()
    assert job.refresh().state == "queued"
    finish(connection, job)
    with pytest.raises(IllegalTransition):
        job.retry()
    with pytest.raises(IllegalTransition):
        job.cancel()
    connection.execute("DELETE FROM jobrunner.job_history")
    with pytest.raises(JobNotFound):
        job.result(timeout=5)


def test_the_current_job_is_known_inside_only():
    """`current_job()` gives the running attempt in a worker, and an error of ours outside."""
    context = JobContext(id=1, task="t", queue="q", attempt=2, max_attempts=5, lease=3)
    with running(context):
        assert current_job() is context
    with pytest.raises(JobrunnerError, match="no current job"):
        current_job()
    with pytest.raises(RuntimeError):
        current_job()
