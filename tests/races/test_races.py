"""Two writers want the same job or worker: exactly one wins, whichever comes first, and the other learns it."""

from __future__ import annotations

from datetime import timedelta

import psycopg
import pytest

from jobrunner.errors import DuplicateJob, IllegalTransition
from jobrunner.jobs import Ending, Succeeded, Unsuccessful, WorkerCounts, WorkerSight
from jobrunner.states import State
from jobrunner.transient import is_transient
from tests.support.rows import EXPIRED, LEASE
from tests.support.sessions import PATIENCE
from tests.support.waiting import wait_until

HOUR = timedelta(hours=1)
LATER = "rescued_at = rescued_at - interval '6 seconds'"  # when what a rescue went past is looked at again
COUNTS = WorkerCounts()
ENDINGS = [None, *Ending]
ENDED = {
    None: State.SUCCEEDED, Ending.RETRY: State.QUEUED, Ending.FAIL: State.FAILED, Ending.SNOOZE: State.QUEUED,
    Ending.RELEASE: State.QUEUED, Ending.ABORT: State.CANCELLED, Ending.CRASH: State.QUEUED,
}  # fmt: skip


def report(ending, job_id, lease=LEASE):
    """An outcome; None is success."""
    return Succeeded(job_id, lease, None, 1, 1, 1.0) if ending is None else Unsuccessful(ending, job_id, lease, run_ms=1, delay_ms=0)


def test_a_heartbeat_that_meets_a_rescue_learns_that_the_lease_is_lost(scene, sessions):
    """The heartbeat waits for the rescuer that has the worker's row, and is then refused: it cannot bring itself back."""
    worker = scene.worker()
    job_id = scene.job(State.RUNNING, worker_id=worker)
    rescuer, late = sessions(), sessions()
    with rescuer.connection.transaction():
        rescuer.age_worker(worker)  # in here, so that by all that is committed the lease still holds
        assert rescuer.store.rescue()[1] == 1
        heartbeat = late.call_blocked(lambda: late.store.heartbeat(worker, HOUR, WorkerSight(), COUNTS), scene)
    assert heartbeat.result(PATIENCE) is False
    assert scene.state(job_id) is State.QUEUED


def test_a_rescue_that_meets_a_heartbeat_leaves_the_worker_alone(scene, sessions):
    """A lease renewed in time holds even if the commit comes late: the rescuer goes past the row without waiting."""
    worker = scene.worker()
    job_id = scene.job(State.RUNNING, worker_id=worker)
    own, rescuer = sessions(), sessions.impatient()
    with own.connection.transaction():  # began before the lease ends, and is in time however long it takes from here
        scene.age_worker(worker, "lease_expires_at = clock_timestamp()")
        assert own.store.heartbeat(worker, HOUR, WorkerSight(), COUNTS) is True
        over = "SELECT lease_expires_at < now() FROM jobrunner.workers WHERE id = %s"
        wait_until(lambda: scene.one(over, (worker,)), timeout=PATIENCE, what="the committed lease is over")
        assert rescuer.store.rescue() == ([], 0)
    assert rescuer.store.rescue() == ([], 0)
    assert scene.state(job_id) is State.RUNNING


def test_two_rescuers_do_not_wait_for_each_other(scene, sessions):
    """Each lost worker has one rescuer; the other goes past it."""
    one = scene.worker(EXPIRED)
    job_id = scene.job(State.RUNNING, worker_id=one)
    first, second = sessions(), sessions.impatient()
    with first.connection.transaction():
        assert first.store.rescue()[1] == 1
        two = scene.worker(EXPIRED)
        assert [lost.id for lost in second.store.rescue()[0]] == [two]
    assert scene.row(job_id)["crash_count"] == 1


@pytest.mark.parametrize("ending", ENDINGS, ids=str)
def test_a_finish_before_a_rescue_wins(scene, sessions, ending):
    """The rescue goes past the job whose finish is under way, and finds nothing to bring back when it looks again."""
    worker = scene.worker(EXPIRED)
    job_id = scene.job(State.RUNNING, worker_id=worker, max_crashes=9)
    own, rescuer = sessions(), sessions.impatient()
    with own.connection.transaction():
        assert own.store.finish([report(ending, job_id)]) == []
        assert rescuer.store.rescue()[1] == 0
    scene.age_worker(worker, LATER)
    assert rescuer.store.overdue()[0] is True
    assert rescuer.store.rescue() == ([], 0)
    assert rescuer.store.overdue()[0] is False
    assert scene.state(job_id) is ENDED[ending]
    assert scene.row(job_id)["crash_count"] == (1 if ending is Ending.CRASH else 0)


@pytest.mark.parametrize("facts", [{}, {"max_crashes": 1, "started_at": "=now()"}, {"cancel_requested_at": "=now()"}], ids=["back", "dead", "cancelled"])
def test_an_end_that_stays_open_holds_up_no_rescue(scene, sessions, facts):
    """While the end of one attempt is open in somebody's transaction, everything else of its worker goes back; once it is rolled back so does that."""
    worker = scene.worker(EXPIRED)
    ending, other = (scene.job(State.RUNNING, worker_id=worker, **facts) for _ in range(2))
    own, rescuer = sessions(), sessions.impatient()
    own.execute("BEGIN")
    assert own.store.finish([report(None, ending)]) == []
    lost, count = rescuer.store.rescue()
    assert ([each.id for each in lost], count) == ([worker], 1)
    assert (scene.state(ending), scene.state(other) is State.RUNNING) == (State.RUNNING, False)
    assert rescuer.store.overdue()[0] is False  # or all would write here once a second, for as long as that is open
    # However long it takes: a worker that stopped is looked at for a quarter of an hour only.
    scene.age_worker(worker, f"stopped_at = now() - interval '14 minutes', {LATER}")
    assert rescuer.store.overdue()[0] is True
    assert rescuer.store.rescue() == ([], 0)
    scene.age_worker(worker, f"stopped_at = stopped_at - interval '8 minutes', {LATER}")
    own.execute("ROLLBACK")
    assert rescuer.store.rescue() == ([], 1)
    assert scene.state(ending) is scene.state(other)
    assert rescuer.store.overdue()[0] is False


@pytest.mark.parametrize("ending", ENDINGS, ids=str)
def test_a_rescue_before_a_finish_wins(scene, sessions, ending):
    """The finish waits for the rescue under way and is then refused; the outcome leaves no trace."""
    job_id = scene.job(State.RUNNING, worker_id=scene.worker(EXPIRED), max_crashes=9)
    own, rescuer = sessions(), sessions()
    with rescuer.connection.transaction():
        assert rescuer.store.rescue()[1] == 1
        finish = own.call_blocked(lambda: own.store.finish([report(ending, job_id)]), scene)
    assert finish.result(PATIENCE) == [report(ending, job_id)]
    assert scene.state(job_id) is State.QUEUED
    assert [attempt["outcome"] for attempt in scene.attempts(job_id)] == ["crashed"]


@pytest.mark.parametrize("ending", ENDINGS, ids=str)
def test_a_cancel_request_before_a_finish(scene, sessions, ending):
    """The finish waits for the request and honours it, unless the attempt has succeeded."""
    job_id = scene.job(State.RUNNING)
    operator, own = sessions(), sessions()
    with operator.connection.transaction():
        assert operator.store.cancel(job_id) == "requested"
        finish = own.call_blocked(lambda: own.store.finish([report(ending, job_id)]), scene)
    assert finish.result(PATIENCE) == []
    assert scene.state(job_id) is (State.SUCCEEDED if ending is None else State.CANCELLED)


@pytest.mark.parametrize("ending", ENDINGS, ids=str)
def test_a_finish_before_a_cancel(scene, sessions, ending):
    """The cancel waits for the finish: it cancels a job that went back to the queue, and refuses one that is finished."""
    job_id = scene.job(State.RUNNING)
    own, operator = sessions(), sessions()
    with own.connection.transaction():
        assert own.store.finish([report(ending, job_id)]) == []
        cancel = operator.call_blocked(lambda: operator.store.cancel(job_id), scene)
    if ENDED[ending] is State.QUEUED:
        assert cancel.result(PATIENCE) == "cancelled"
        assert scene.state(job_id) is State.CANCELLED
    else:
        with pytest.raises(IllegalTransition):
            cancel.result(PATIENCE)
        assert scene.state(job_id) is ENDED[ending]


@pytest.mark.parametrize("commits", [True, False])
def test_a_requeue_waits_for_an_insert_with_the_same_unique_key(scene, sessions, commits):
    """The requeue waits for an uncommitted job of the same key: refused with its id if that commits, done if it does not."""
    failed = scene.job(State.FAILED, unique_key="k")
    application, operator = sessions(), sessions()
    with application.connection.transaction(force_rollback=not commits):
        newer = application.job(unique_key="k")
        requeue = operator.call_blocked(lambda: operator.store.requeue(failed), scene)
    if commits:
        with pytest.raises(DuplicateJob) as refused:
            requeue.result(PATIENCE)
        assert refused.value.job_id == newer
    else:
        assert requeue.result(PATIENCE) == "default"
    assert scene.state(failed) is (State.FAILED if commits else State.QUEUED)
    assert scene.one("SELECT count(*) FROM jobrunner.jobs WHERE unique_key = 'k'") == 1


def test_an_insert_waits_for_a_requeue_with_the_same_unique_key(scene, sessions):
    """The other way round: the insert waits, and is refused when the requeue commits."""
    failed = scene.job(State.FAILED, unique_key="k")
    operator, application = sessions(), sessions()
    with operator.connection.transaction():
        operator.store.requeue(failed)
        insert = application.call_blocked(lambda: application.job(unique_key="k"), scene)
    with pytest.raises(psycopg.errors.UniqueViolation):
        insert.result(PATIENCE)


def test_two_requeues_of_one_job_make_one_live_row(scene, sessions):
    """The second requeue waits for the first and finds the job queued already: the same answer, one row."""
    job_id = scene.job(State.FAILED)
    first, second = sessions(), sessions()
    with first.connection.transaction():
        assert first.store.requeue(job_id) == "default"
        again = second.call_blocked(lambda: second.store.requeue(job_id), scene)
    assert again.result(PATIENCE) == "default"
    assert scene.state(job_id) is State.QUEUED


def test_a_retried_batch_after_a_deadlock_is_right(scene, sessions):
    """Whoever locks jobs by hand, in an order of his own, may deadlock with a finish: the worker is told so as transient, and its retry is right."""
    low, high = scene.job(State.RUNNING), scene.job(State.RUNNING)
    operator, own = sessions(), sessions()
    operator.execute("SET deadlock_timeout = '5min'")  # the other one is the first to look, and so the victim

    def finish():
        return own.store.finish([report(None, high), report(Ending.RETRY, low)])

    by_hand = "SELECT FROM jobrunner.jobs WHERE id = %s FOR UPDATE"
    with operator.connection.transaction():
        operator.execute(by_hand, (high,))
        finishing = own.call_blocked(finish, scene)
        operator.execute(by_hand, (low,))
    error = finishing.exception(PATIENCE)
    assert isinstance(error, psycopg.errors.DeadlockDetected)
    assert is_transient(error)
    assert [scene.state(job_id) for job_id in (low, high)] == [State.RUNNING, State.RUNNING]
    assert finish() == []
    assert [scene.state(job_id) for job_id in (low, high)] == [State.QUEUED, State.SUCCEEDED]
