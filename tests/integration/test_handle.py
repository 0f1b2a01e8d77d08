"""A job's handle shows its state, waits for its end, and gives what the function returned."""

from __future__ import annotations

import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from jobrunner import IllegalTransition, Job, JobCancelled, JobFailed, JobNotFound, JobRunner, JobrunnerError, ResultExpired, current_job
from jobrunner.current import JobContext, running
from tests.support.endings import finish, record_attempt
from tests.support.waiting import wait_until


@pytest.fixture
def jobs(dsn, monkeypatch):
    monkeypatch.setattr("jobrunner.waiters.LAST_LOOK", 60.0)  # a busy machine may take its time
    jobs = JobRunner(dsn=dsn, wakeups=False)

    @jobs.task
    def when(number: int) -> datetime: ...  # type: ignore[empty-body]

    yield jobs
    jobs.close()


@pytest.fixture
def task(jobs):
    return jobs.registry.get("when")


def test_a_result_is_decoded_by_the_annotation(jobs, task, connection):
    """`result()` gives the value the function returned, also through a handle made from the id."""
    job = task.enqueue(1)
    finish(connection, job.id, result="2026-01-01T00:00:00+00:00")
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
    finish(connection, job.id, result="2026-01-01T00:00:00+00:00")
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


def test_bad_timeouts_are_refused(task):
    """What is no duration is refused with its value, not waited for."""
    job = task.enqueue(1)
    for bad in ("5", True, float("nan"), [1]):
        with pytest.raises(TypeError, match="expected seconds, a timedelta or None"):
            job.wait(bad)
    for past in (-1, timedelta(seconds=-1)):
        with pytest.raises(TimeoutError, match="it is queued"):
            job.wait(past)


def test_a_huge_timeout_is_for_ever(task, connection):
    """A timeout that no clock can hold waits, and does not overflow."""
    job = task.enqueue(1)
    finish(connection, job.id)
    assert [job.wait(much) for much in (1e30, float("inf"), timedelta.max)] == ["succeeded"] * 3


@pytest.mark.parametrize(("state", "words"), [("failed", "failed"), ("quarantined", "was quarantined")])
def test_a_failure_is_raised_with_its_error(task, connection, state, words):
    """JobFailed has the error, the traceback and the cause of the last attempt; `wait` only gives the state."""
    job = task.enqueue(1)
    finish(connection, job.id, state=state, error_type="shop.Gone", error="no such user")
    record_attempt(connection, job.id, 1, "retried", "the first", "exception")
    record_attempt(connection, job.id, 3, "failed", "the last", "signal 9")
    record_attempt(connection, job.id, 2, "retried", "the second", "exception")
    assert job.wait() == state
    with pytest.raises(JobFailed) as caught:
        job.result()
    error = caught.value
    assert (error.job_id, error.state, error.error_type, error.message) == (job.id, state, "shop.Gone", "no such user")
    assert (error.traceback, error.exit_cause) == ("the last", "signal 9")
    assert str(error) == f"job {job.id} {words}: shop.Gone: no such user"
    assert f"jobs show {job.id}" in error.hint


def test_an_uncaught_failure_prints_the_remote_traceback(task, connection):
    """Whoever prints JobFailed sees first where it happened in the worker, then who asked for the result."""
    job = task.enqueue(1)
    finish(connection, job.id, state="failed", error_type="ValueError", error="no")
    record_attempt(
        connection, job.id, 1, "failed", 'Traceback (most recent call last):\n  File "shop.py", line 7\nValueError: no\n', "exception"
    )
    with pytest.raises(JobFailed) as caught:
        job.result()
    printed = "".join(traceback.format_exception(caught.value))
    assert printed.index('File "shop.py", line 7') < printed.index("direct cause") < printed.index("job.result()")


def test_a_failure_without_a_traceback_has_no_cause(task, connection):
    """A job whose process was killed left none; nothing is made up."""
    job = task.enqueue(1)
    finish(connection, job.id, state="quarantined", error_type="jobrunner.errors.WorkerProcessDied", error="killed by signal 11")
    record_attempt(connection, job.id, 1, "quarantined", None, "signal 11")
    with pytest.raises(JobFailed) as caught:
        job.result()
    assert (caught.value.traceback, caught.value.__cause__, caught.value.exit_cause) == (None, None, "signal 11")


def test_a_result_that_was_pruned_has_expired(jobs, task, connection):
    """A job that this program saw, by its own enqueue or by looking, and whose row is gone has expired; one it never saw is not found."""
    own, looked_at = task.enqueue(1), task.enqueue(2)
    unseen, seen = Job[Any](jobs, looked_at.id, ""), jobs.job(looked_at.id)
    connection.execute("DELETE FROM jobrunner.jobs")
    for job in (own, seen):
        for ask in (job.wait, job.result, job.refresh):
            with pytest.raises(ResultExpired, match=rf"result of job {job.id} has expired") as caught:
                ask()
            assert isinstance(caught.value, JobNotFound)
            assert "keep history longer" in caught.value.hint
    for ask in (unseen.wait, unseen.result, unseen.refresh):
        with pytest.raises(JobNotFound, match=f"no job {unseen.id}") as absent:
            ask()
        assert type(absent.value) is JobNotFound


def test_a_job_that_was_rolled_back_is_not_found(jobs, task):
    """A handle from a transaction of the caller's is no proof that the job exists: before the commit and after a rollback there is none."""
    engine = sa.create_engine(jobs.dsn.sqlalchemy_url)
    with engine.connect() as place:
        job = task.options(connection=place).enqueue(1)
        for _ in range(2):
            with pytest.raises(JobNotFound) as caught:
                job.result(timeout=5)
            assert type(caught.value) is JobNotFound
            place.rollback()
        committed = task.options(connection=place).enqueue(1)
        place.commit()
    engine.dispose()
    with pytest.raises(TimeoutError, match="it is queued"):
        committed.result(timeout=0)


def test_two_who_wait_share_nothing(jobs, connection):
    """Each gets a value of its own: changing one does not change the other."""

    @jobs.task
    def listing() -> list[int]: ...  # type: ignore[empty-body]

    job = listing.enqueue()
    with ThreadPoolExecutor(2) as threads:
        waiting = [threads.submit(job.result, 20) for _ in range(2)]
        finish(connection, job.id, result=[1])
        first, second = [future.result() for future in waiting]
    first.append(2)
    assert second == [1]


def test_cancel_and_retry(task, connection):
    """A waiting job is cancelled at once; a cancelled one may be retried; a job that succeeded may not."""
    job = task.enqueue(1)
    assert job.cancel() == "cancelled"
    with pytest.raises(JobCancelled):
        job.result()
    job.retry()
    assert job.refresh().state == "queued"
    finish(connection, job.id)
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
