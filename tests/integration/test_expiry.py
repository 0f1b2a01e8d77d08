"""Jobs that are not begun in time: no claim takes them, whoever looks ends them in bounded steps, and what was said about it is on record."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from jobrunner import JobRunner
from jobrunner.errors import ConfigurationError, JobCancelled
from jobrunner.jobs import Walk
from jobrunner.states import State
from tests.support.rows import TASK, Scene
from tests.support.workers import Ledger, insert, wait_for_states, workers

PAST, FUTURE = "=now() - interval '1 second'", "=now() + interval '1 hour'"


@pytest.fixture
def scene(connection):
    return Scene(connection)


@pytest.fixture
def jobs(dsn):
    runner = JobRunner(dsn=dsn, wakeups=False)

    @runner.task
    def work(number: int = 0) -> int:
        return number

    yield runner
    runner.close()


@pytest.mark.parametrize("key", [None, "k"])
def test_an_expired_job_is_never_begun(scene, key):
    """No claim takes a job past its expiry; one that has not expired is taken as any other."""
    expired = scene.job(expires_at=PAST, ordering_key=key)
    fresh = scene.job(expires_at=FUTURE, ordering_key=key and "another")
    worker = scene.worker()
    if key is None:
        taken = scene.store.claim(worker, [TASK], "default", 0, 9)
    else:
        taken = scene.store.claim_ordered(worker, [TASK], "default", 0, 9, Walk(keys=9)).jobs
    assert [job.id for job in taken] == [fresh]
    assert scene.state(expired) is State.QUEUED


def test_what_has_expired_ends_cancelled_and_says_so(scene):
    """`expire` moves those past their expiry to the history, at most as many as asked for, the first to expire first."""
    later, first, second = (scene.job(expires_at=f"=now() - interval '{age} minutes'") for age in (1, 3, 2))
    waiting, running = scene.job(expires_at=FUTURE), scene.job(State.RUNNING, expires_at=PAST)
    assert scene.store.expire(2) == 2
    assert [scene.state(job_id) for job_id in (first, second, later)] == [State.CANCELLED, State.CANCELLED, State.QUEUED]
    assert scene.store.expire(2) == 1
    assert scene.store.expire(2) == 0
    row = scene.row(first)
    assert (row["last_error_type"], row["last_error"]) == ("jobrunner.errors.JobExpired", "the job expired before it was begun")
    assert (scene.state(waiting), scene.state(running)) == (State.QUEUED, State.RUNNING)


def test_a_job_that_waits_for_another_attempt_expires_too(scene):
    """An attempt that failed does not make the work more timely: a retry past the expiry is not begun."""
    job_id = scene.job(attempt=1, expires_at=PAST, run_at=FUTURE)
    assert scene.store.expire(9) == 1
    assert scene.state(job_id) is State.CANCELLED


def test_the_end_of_an_expired_job_lets_the_next_of_its_key_go(scene):
    """Those behind an expired job of their key wait until it is ended, and not longer."""
    expired, behind = scene.job(expires_at=PAST, ordering_key="k"), scene.job(ordering_key="k")
    worker = scene.worker()
    assert scene.store.claim_ordered(worker, [TASK], "default", 0, 9, Walk(keys=9)).jobs == []
    assert scene.store.expire(9) == 1
    assert [job.id for job in scene.store.claim_ordered(worker, [TASK], "default", 0, 9, Walk(keys=9)).jobs] == [behind]
    assert scene.state(expired) is State.CANCELLED


def test_an_operator_can_have_it_run_after_all(scene):
    """An expired job that is brought back does not expire again; an expiry that lies ahead stays."""
    expired, cancelled = scene.job(expires_at=PAST), scene.job(State.CANCELLED, expires_at=FUTURE)
    scene.store.expire(9)
    for job_id in (expired, cancelled):
        scene.store.requeue(job_id)
    assert (scene.row(expired)["expires_at"], scene.row(cancelled)["expires_at"] is None) == (None, False)
    assert {job.id for job in scene.store.claim(scene.worker(), [TASK], "default", 0, 9)} == {cancelled, expired}


def test_ttl_counts_from_the_databases_clock(jobs, connection):
    """`ttl` is added by the server, for one job, for a few, and for as many as are copied; `expires_at` is stored as it is."""
    task = jobs.registry["work"]
    instant = datetime(2040, 1, 31, 9, tzinfo=UTC)
    one = task.options(ttl="1h").enqueue(1).id
    few = task.options(ttl=3600, delay=60).enqueue_many([(2,), (3,)])
    many = task.options(ttl=timedelta(hours=1), delay=60, ordering_key="k\t1").enqueue_many([(number,) for number in range(600)])
    given = task.options(expires_at=instant, ordering_key="k").enqueue(4).id
    query = "SELECT expires_at - created_at = interval '1 hour', run_at - created_at, ordering_key FROM jobrunner.jobs WHERE id = ANY (%s)"
    assert connection.execute(query, ([one],)).fetchall() == [(True, timedelta(0), None)]
    assert set(connection.execute(query, (list(few),)).fetchall()) == {(True, timedelta(minutes=1), None)}
    assert set(connection.execute(query, (list(many),)).fetchall()) == {(True, timedelta(minutes=1), "k\t1")}
    row = connection.execute("SELECT expires_at, ordering_key FROM jobrunner.jobs WHERE id = %s", (given,)).fetchone()
    assert row == (instant, "k")


def test_unique_jobs_have_a_key_and_a_ttl_as_others(jobs, connection):
    """The INSERT that leaves out what is there already carries both."""
    ids = jobs.registry["work"].options(ttl=60, ordering_key="k", unique=True).enqueue_many([(1,), (1,), (2,)])
    rows = connection.execute("SELECT id, ordering_key, expires_at > now() FROM jobrunner.jobs").fetchall()
    assert {(job_id, key, ahead) for job_id, key, ahead in rows} == {(job_id, "k", True) for job_id in set(ids)}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"ttl": 0}, "ttl=0"),
        ({"ttl": "soon"}, "ttl='soon'"),
        ({"ttl": 60, "expires_at": datetime(2040, 1, 1, tzinfo=UTC)}, "give one of the two"),
        ({"expires_at": datetime(2040, 1, 1)}, "expires_at="),  # noqa: DTZ001  what is refused
        ({"ordering_key": ""}, "ordering_key=''"),
        ({"ordering_key": "k" * 501}, "1 to 500 characters"),
        ({"ordering_key": 7}, "ordering_key=7"),
        ({"ordering_key": "a\0b"}, "ordering_key="),
    ],
)
def test_what_makes_no_sense_is_refused(jobs, given, says):
    """A key or an expiry that cannot be meant is refused at the enqueue, naming the parameter."""
    with pytest.raises(ConfigurationError, match=says):
        jobs.registry["work"].options(**given)


def test_options_go_on_from_options(jobs, connection):
    """Further options leave a key and an expiry in place, and None takes them away."""
    bound = jobs.registry["work"].options(ordering_key="k", ttl=60)
    bound.options(priority=3).enqueue()
    bound.options(ordering_key=None, ttl=None).enqueue()
    rows = connection.execute("SELECT ordering_key, expires_at IS NOT NULL, priority FROM jobrunner.jobs ORDER BY id").fetchall()
    assert rows == [("k", True, 3), (None, False, 0)]


def test_the_result_of_an_expired_job_is_that_it_was_cancelled(jobs, connection):
    """Who waits for the result of a job that expired is told so."""
    job = jobs.registry["work"].options(ttl=60).enqueue(1)
    connection.execute("UPDATE jobrunner.jobs SET expires_at = now()")
    Scene(connection).store.expire(9)
    with pytest.raises(JobCancelled):
        job.result(timeout=10)


def test_a_worker_ends_what_has_expired(fresh_dsn, tmp_path):
    """A worker begins none of the expired jobs, ends them all while it works off the others, however many there are."""
    insert(fresh_dsn, "work", 1200, expires_at="2020-01-01 00:00+00")
    insert(fresh_dsn, "work", 5)
    ledger = Ledger(tmp_path / "ledger")
    with workers(fresh_dsn, ledger.path, "-c", "2"):
        wait_for_states(fresh_dsn, 60, succeeded=5, cancelled=1200)
    assert len(ledger.count("begin")) == 5
