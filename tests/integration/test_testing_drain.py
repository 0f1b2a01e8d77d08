"""`testing.Jobs` runs jobs as a worker does, in the app's database or inside the test's own transaction, and leaves no trace of the latter."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobrunner import DuplicateJob, InvalidPayload, JobCancelled, JobFailed, Snooze
from jobrunner.enqueue import COPY_FROM
from jobrunner.errors import NotDrained
from jobrunner.testing import Jobs, immediate
from tests.support.playground import PLACES, place, read, shop

TRACE = ("jobs", "job_history", "job_attempts", "workers")


@pytest.fixture(params=PLACES)
def where(request):
    return request.param


@pytest.fixture
def made(dsn, connection, where):
    made = shop(dsn)
    yield made
    made.jobs.close()
    if where != "committed":
        left = [connection.execute(f"SELECT count(*) FROM jobrunner.{table}").fetchone()[0] for table in TRACE]
        assert left == [0] * len(TRACE), "a rolled-back test leaves no trace"


@pytest.fixture
def helper(made, where, dsn):
    with place(where, made.jobs, dsn) as helper:
        yield helper


def test_due_jobs_run_and_are_finished(made, helper):
    """A drained job has succeeded everywhere: in the handle, its result, the views; a second drain finds nothing."""
    job = made.add.enqueue(40)
    drained = helper.drain()
    assert drained.counts == {"succeeded": 1}
    assert (len(drained), drained.jobs) == (1, [job])
    attempt = drained.attempts[0]
    assert (attempt.task, attempt.args, attempt.number, attempt.error, attempt.job.state) == ("add", {"a": 40}, 1, None, "succeeded")
    assert (made.seen, job.result(), job.wait(), job.state) == ([(40, 2)], 42, "succeeded", "succeeded")
    assert made.jobs.job(job.id).state == "succeeded"
    assert read(helper, "SELECT state, result, attempt FROM jobrunner.v_jobs") == [("succeeded", 42, 1)]
    assert read(helper, "SELECT outcome, job_id FROM jobrunner.v_attempts") == [("succeeded", job.id)]
    assert len(helper.drain()) == 0


def test_the_order_is_that_of_a_worker(made, helper):
    """Urgent jobs first, whatever their queue; then by time, then by id."""
    made.send.enqueue(1)
    for number in (2, 3):
        made.send.options(priority=0, queue=f"q{number}").enqueue(number)
    made.send.options(priority=-1).enqueue(4)
    helper.drain()
    assert made.seen == [4, 2, 3, 1]


def test_jobs_by_name_and_by_sql(made, helper):
    """What was enqueued by a task's name, or by an INSERT, is a job of the test too."""
    made.jobs.enqueue("add", {"a": 1})
    read(helper, "INSERT INTO jobrunner.jobs (task, args) VALUES ('add', '{\"a\": 2}'), ('unknown', '{}') RETURNING id")
    assert helper.drain().counts == {"succeeded": 2}
    assert [job.task for job in helper.enqueued()] == ["unknown"], "no worker of this app would run it"


def test_children_run_in_the_same_drain(made, helper):
    """A drain goes on until nothing is due, with the jobs that jobs enqueue."""
    made.parent.enqueue(3)
    assert helper.drain().counts == {"succeeded": 4}
    assert made.seen == ["parent", (0, 0), (1, 0), (2, 0)]


def test_children_know_their_parent(made, helper):
    """What a job enqueues has its id as `parent_id`."""
    job = made.parent.enqueue(2)
    helper.drain(tasks=made.parent)
    assert [child.parent_id for child in helper.enqueued()] == [job.id, job.id]


def test_a_transactional_job(made, helper):
    """Its writes, the jobs that it enqueues and its own end are there together, or after an error not at all."""
    done, failing = made.settle.enqueue(1), made.settle.enqueue(-1)
    assert helper.drain(tasks=made.settle, raise_errors=False).counts == {"succeeded": 1, "failed": 1}
    assert (done.result(), failing.refresh().state) == (1, "failed")
    assert [job.task for job in helper.enqueued()] == ["add", "settled 1"]
    assert helper.drain().counts == {"succeeded": 1}


def test_progress_and_checkpoints(made, helper):
    """What an attempt says of itself is in the row, and the next attempt finds its checkpoint."""
    job = made.paged.enqueue(3)
    assert helper.drain(limit=3).counts == {"retried": 2, "succeeded": 1}
    assert made.seen == [1, 2, 3]
    assert job.result() == [3, 3]
    assert read(helper, "SELECT progress, progress_text FROM jobrunner.v_jobs") == [(1, "page 3")]


def test_only_some_queues_and_tasks(made, helper):
    """`queue` and `tasks` choose; what they leave out waits."""
    made.add.enqueue(1)
    made.send.enqueue(2)
    made.once.enqueue(3)
    assert [attempt.task for attempt in helper.drain(queue="mail").attempts] == ["send"]
    assert len(helper.drain(queue=["mail", "other"])) == 0
    assert [attempt.task for attempt in helper.drain(tasks=[made.once, "send"]).attempts] == ["once"]
    assert [job.task for job in helper.enqueued()] == ["add"]


def test_an_error_is_raised_in_the_test(made, helper):
    """The task's own exception comes out of `drain()`, with the job in a note and a traceback of the task only; its outcome is written."""
    job = made.flaky.enqueue(9)
    made.add.enqueue(1)
    with pytest.raises(ValueError, match="attempt 1") as caught:
        helper.drain()
    assert caught.value.__notes__ == [f"raised by job {job.id}: task 'flaky', attempt 1 of 3, args {{\"times\": 9}}"]
    assert [entry.name for entry in caught.traceback][-1] == "flaky"
    assert not {Path(entry.path).name for entry in caught.traceback} & {"child.py", "executing.py"}
    assert job.refresh().state == "retrying"
    assert made.seen == [1], "the drain stops there"


def test_errors_can_be_recorded_instead(made, helper):
    """Without `raise_errors` a failed attempt is what it is with a worker, and the drain goes on."""
    job = made.flaky.options(max_attempts=1).enqueue(9)
    later = made.add.enqueue(1)
    drained = helper.drain(raise_errors=False)
    assert drained.counts == {"failed": 1, "succeeded": 1}
    assert isinstance(drained.attempts[0].error, ValueError)
    assert read(helper, "SELECT outcome, error_type, message FROM jobrunner.v_attempts WHERE job_id = %s", job.id) == [
        ("failed", "ValueError", "attempt 1")
    ]
    with pytest.raises(JobFailed, match="ValueError: attempt 1") as caught:
        job.result()
    assert "in flaky" in (caught.value.traceback or "")
    assert caught.value.exit_cause == "exception"
    assert later.result() == 3


@pytest.mark.parametrize(
    ("how", "outcome", "state"),
    [
        ("snooze", "snoozed", "scheduled"),
        ("retry", "retried", "retrying"),
        ("cancel", "cancelled", "cancelled"),
        ("fail", "failed", "failed"),
    ],
)
def test_a_task_steers_its_job(made, helper, how, outcome, state):
    """Retry, Snooze, Cancel and Fail do what they do in a worker, and are no errors."""
    job = made.steer.enqueue(how)
    assert helper.drain().counts == {outcome: 1}
    assert job.refresh().state == state
    assert [waiting.state for waiting in helper.enqueued()] == [state] * (how in {"snooze", "retry"})
    if how == "cancel":
        with pytest.raises(JobCancelled):
            job.result()


def test_async_tasks_run(made, helper):
    """Jobs of `async def` tasks run on one event loop, each as the current job."""
    jobs = [made.asynchronous.enqueue(number) for number in (1, 2)]
    helper.drain()
    assert [job.result() for job in jobs] == [2, 4]
    assert made.seen == [job.id for job in jobs]


def test_arguments_arrive_by_their_annotations(made, helper):
    """What is run is what a worker would make of the row: dates, UUIDs and durations come back from JSON."""
    when, key = datetime(2026, 5, 1, tzinfo=UTC), UUID(int=7)
    job = made.typed.enqueue(when, key, timedelta(hours=1))
    helper.drain()
    assert made.seen == [(when, key, timedelta(hours=1))]
    assert job.result() == when + timedelta(hours=1)


def test_unique_jobs(made, helper):
    """A second enqueue gives the waiting job; after the drain the key is free."""
    first = made.once.enqueue(1)
    second = made.once.enqueue(1)
    assert (second, second.created) == (first, False)
    assert next(iter(made.once.enqueue_many([(1,), (2,)]))) == first.id
    assert helper.drain().counts == {"succeeded": 2}
    assert made.once.enqueue(1).created


def test_many_jobs_by_copy(made, helper):
    """A batch that is copied into the table is in the test's place too."""
    ids = made.add.enqueue_many([(number,) for number in range(COPY_FROM)])
    assert [job.id for job in helper.enqueued("add")] == list(ids)
    assert made.jobs.job(ids[-1]).cancel() == "cancelled"


def test_what_cannot_be_stored_is_written_in_the_workers_words(made, helper):
    """A result that PostgreSQL refuses becomes a failed attempt, as a worker writes it; the transaction stays usable."""

    @made.jobs.task(max_attempts=1)
    def odd() -> str:
        return "\\u0000"

    @made.jobs.task(max_attempts=1)
    def unfit() -> object:
        return object()

    odd.enqueue()
    assert helper.drain().counts == {"succeeded": 1}
    unfit.enqueue()
    with pytest.raises(InvalidPayload, match="return value"):
        helper.drain()
    made.add.enqueue(1)
    assert helper.drain().counts == {"succeeded": 1}


def test_an_endless_drain_ends(made, helper):
    """A job that always enqueues itself is stopped at the limit, and named."""

    @made.jobs.task
    def again() -> None:
        again.enqueue()

    again.enqueue()
    with pytest.raises(NotDrained, match=r"after 7 attempts jobs are still due: next is job .* 'again'") as caught:
        helper.drain(limit=7)
    assert "limit=" in caught.value.hint
    with pytest.raises(NotDrained):
        helper.drain(limit=0)


def test_handles_work_in_the_place(made, helper):
    """`cancel()` and `retry()` of a handle, and their refusals, are those of the test's place and leave it usable."""
    job = made.once.enqueue(1)
    assert job.cancel() == "cancelled"
    other = made.once.enqueue(1)
    with pytest.raises(DuplicateJob) as caught:
        job.retry()
    assert caught.value.job_id == other.id
    other.cancel()
    job.retry()
    assert helper.drain().counts == {"succeeded": 1}


def test_waiting_for_a_job_that_nobody_runs_ends_at_once(made, helper):
    """`result()` and `wait()` of a job that was not drained raise instead of hanging, and say what to do."""
    job = made.add.enqueue(1)
    for call in (job.result, job.wait, made.jobs.job(job.id).result):
        with pytest.raises(TimeoutError, match=r"is queued, and nobody runs it: drain\(\)"):
            call()


def test_perform_goes_through_json(made, helper):
    """`perform` runs one call as a worker would, without a job: decoded arguments, a current job, the result after JSON."""
    when = datetime(2026, 5, 1, tzinfo=UTC)
    assert helper.perform(made.typed, when, UUID(int=7), timedelta(hours=1)) == when + timedelta(hours=1)
    assert helper.perform(made.asynchronous, 4) == 8
    assert helper.perform(made.flaky.options(max_attempts=2), times=0) == "at last"
    assert made.seen[1:] == [0, 1]
    assert helper.perform(made.once, 3) is None
    assert read(helper, "SELECT * FROM jobrunner.v_jobs") == []
    with pytest.raises(InvalidPayload, match="'a'"):
        helper.perform(made.add, object())
    with pytest.raises(ValueError, match="attempt 1"):
        helper.perform(made.flaky, 1)
    with pytest.raises(Snooze):
        helper.perform(made.steer, "snooze")
    assert helper.perform(made.settle, 1) == 1
    with pytest.raises(ValueError, match="negative"):
        helper.perform(made.settle, -1)
    assert [job.task for job in helper.enqueued()] == ["add", "settled 1"]


def test_immediate_runs_at_the_enqueue(made, helper):
    """In immediate mode `enqueue()` gives a finished job, its children too; what is due later waits, errors come out of `enqueue()`."""
    with helper.immediate():
        assert made.add.enqueue(1).state == "succeeded"
        made.parent.enqueue(1)
        assert made.seen == [(1, 2), "parent", (0, 0)]
        assert made.add.options(delay=60).enqueue(5).state == "scheduled"
        assert made.steer.enqueue("retry").state == "retrying"
        ids = made.add.enqueue_many([(7,), (8,)])
        assert [made.jobs.job(job_id).result() for job_id in ids] == [9, 10]
        with pytest.raises(ValueError, match="attempt 1"):
            made.flaky.enqueue(1)
    with helper.immediate(raise_errors=False):
        assert made.flaky.enqueue(1).state == "retrying"
    assert made.add.enqueue(2).state == "queued"


def test_the_job_runner_is_given_back(made, where, dsn):
    """After the block the JobRunner is what it was: its verbs, its wake-ups, its database, also after an error inside."""
    before = dict(vars(made.jobs))
    with pytest.raises(ZeroDivisionError), place(where, made.jobs, dsn):
        raise ZeroDivisionError
    assert {**vars(made.jobs), "_database": None, "_found": None} == {**before, "_database": None, "_found": None}
    assert made.jobs.submit.__func__ is type(made.jobs).submit


def test_immediate_by_itself(made, dsn, where):
    """`testing.immediate(jobs)` is the same in one step."""
    if where == "committed":
        with immediate(made.jobs):
            assert made.add.enqueue(1).result() == 3
    else:
        engine = sa.create_engine(dsn.replace("postgresql:", "postgresql+psycopg:"))
        with Session(engine) as session, immediate(made.jobs, session=session):
            assert made.add.enqueue(1).result() == 3
        engine.dispose()


def test_ctrl_c_ends_the_test(made, helper):
    """What ends a test run is no outcome of a job: it comes out even when errors are recorded."""

    @made.jobs.task
    def interrupted() -> None:
        raise KeyboardInterrupt

    @made.jobs.task(backoff_base=60, backoff_jitter=0)
    def exits() -> None:
        raise SystemExit(3)

    interrupted.enqueue()
    with pytest.raises(KeyboardInterrupt):
        helper.drain(raise_errors=False)
    exits.enqueue()
    assert helper.drain(raise_errors=False, tasks=exits).counts == {"retried": 1}


def test_a_thread_is_not_needed(made, helper):
    """Jobs run in the thread of the test, so that thread-local things are the test's."""
    seen = []

    @made.jobs.task
    def where_am_i() -> None:
        seen.append(threading.current_thread())

    where_am_i.enqueue()
    helper.drain()
    assert seen == [threading.current_thread()]


def test_a_worker_row_stands_for_the_test(made, helper):
    """While it drains the test is a worker of kind `test`, and has left when it is done."""
    seen = []

    @made.jobs.task
    def look() -> None:
        seen.extend(read(helper, "SELECT kind, state, running_count FROM jobrunner.v_workers"))

    look.enqueue()
    helper.drain()
    assert seen == [("test", "alive", 1)]
    assert read(helper, "SELECT kind, state FROM jobrunner.v_workers") == [("test", "stopped")]


def test_the_default_session_is_the_place(dsn, connection):
    """Without arguments the helper takes the JobRunner's own default session; `session=None` is the app's database all the same."""
    engine = sa.create_engine(dsn.replace("postgresql:", "postgresql+psycopg:"))
    with Session(engine) as session:
        made = shop(dsn)
        made.jobs.session = session
        with Jobs(made.jobs) as helper:
            job = made.add.enqueue(1)
            assert helper.drain().jobs == [job]
            own = made.add.options(session=None).enqueue(2)
            assert helper.drain().jobs == [own]
        with Jobs(made.jobs, session=None) as helper:
            made.add.options(session=None).enqueue(3)
            assert helper.drain().counts == {"succeeded": 1}
        session.rollback()
        made.jobs.close()
    engine.dispose()
    assert connection.execute("SELECT args FROM jobrunner.v_jobs").fetchall() == [({"a": 3},)]
