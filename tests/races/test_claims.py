"""Claims against each other, against operators and against late commits, with transactions held open on purpose."""

from __future__ import annotations

import threading
from collections import Counter

import pytest

from jobrunner.jobs import Floor
from jobrunner.states import State
from jobrunner.store import UNGATED, Crowded
from tests.support.rows import ALIVE, EXPIRED, TASK, fenced_parameters
from tests.support.sessions import PATIENCE

CLAIMERS = 3
TAKE = 7
JOBS = 150


def test_claimers_at_the_same_time_never_share_a_job_nor_take_more_than_asked(scene, sessions):
    """Several claimers empty a queue together: each job is claimed once, each claim has at most what it asked for."""
    expected = sorted(scene.job(priority=0) for _ in range(JOBS))
    begin = threading.Barrier(CLAIMERS)

    def work(session, worker):
        begin.wait(PATIENCE)
        batches = []
        while batch := session.store.claim(worker, [TASK], "default", 0, TAKE):
            batches.append([job.id for job in batch])
        return batches

    opened = [sessions() for _ in range(CLAIMERS)]
    running = [session.call(lambda session=session: work(session, session.worker())) for session in opened]
    batches = [batch for call in running for batch in call.result(PATIENCE)]
    assert max(len(batch) for batch in batches) <= TAKE
    assert sorted(job_id for batch in batches for job_id in batch) == expected
    assert Counter(scene.one("SELECT array_agg(lease) FROM jobrunner.jobs")) == {8: JOBS}


def test_a_claim_goes_past_another_claim_under_way(scene, sessions):
    """While a claim is uncommitted the next claimer takes the jobs behind, without waiting; after a rollback the first ones are free."""
    ids = [scene.job() for _ in range(6)]
    first, second = sessions(), sessions.impatient()
    worker = scene.worker()
    with first.connection.transaction(force_rollback=True):
        assert [job.id for job in first.store.claim(worker, [TASK], "default", 0, 2)] == ids[:2]
        assert [job.id for job in second.store.claim(worker, [TASK], "default", 0, 2)] == ids[2:4]
    assert [job.id for job in second.store.claim(worker, [TASK], "default", 0, 9)] == [*ids[:2], *ids[4:]]


@pytest.mark.parametrize("commits", [True, False])
def test_a_claim_skips_a_job_under_an_uncommitted_cancel(scene, sessions, commits):
    """A claim does not wait for a cancel that is under way; whether it commits or not decides who gets the job."""
    cancelled, other = scene.job(), scene.job()
    operator, claimer = sessions(), sessions.impatient()
    worker = scene.worker()
    with operator.connection.transaction(force_rollback=not commits):
        assert operator.store.cancel(cancelled) == "cancelled"
        assert [job.id for job in claimer.store.claim(worker, [TASK], "default", 0, 9)] == [other]
    assert [job.id for job in claimer.store.claim(worker, [TASK], "default", 0, 9)] == ([] if commits else [cancelled])
    assert scene.state(cancelled) is (State.CANCELLED if commits else State.RUNNING)


def test_a_cancel_waits_for_a_claim_and_then_asks_the_worker(scene, sessions):
    """A cancel that meets an uncommitted claim is not lost: it becomes a request to the attempt that won."""
    job_id = scene.job()
    claimer, operator = sessions(), sessions()
    with claimer.connection.transaction():
        claimer.store.claim(scene.worker(), [TASK], "default", 0, 1)
        cancel = operator.call_blocked(lambda: operator.store.cancel(job_id), scene)
    assert cancel.result(PATIENCE) == "requested"
    assert scene.row(job_id)["cancel_requested_at"] is not None


def test_a_job_that_commits_late_is_found_from_the_start(scene, sessions):
    """A job inserted before, but committed after, what was claimed lies below the floor: only a scan from the start finds it."""
    application = sessions()
    worker = scene.worker()
    with application.connection.transaction():
        late = application.job()
        early = scene.job(run_at="=clock_timestamp()")
        (claimed,) = scene.store.claim(worker, [TASK], "default", 0, 9)
        assert claimed.id == early
    floor = Floor(claimed.run_at, claimed.id)
    assert scene.row(late)["run_at"] < claimed.run_at
    assert scene.store.claim(worker, [TASK], "default", 0, 9, floor) == []
    assert [job.id for job in scene.store.claim(worker, [TASK], "default", 0, 9)] == [late]


def test_the_floor_tells_jobs_of_one_instant_apart(scene):
    """Jobs of one transaction share their instant: the id decides, and none is passed over or claimed twice."""
    with scene.connection.transaction():
        ids = [scene.job() for _ in range(10)]
    worker, floor, found = scene.worker(), None, []
    while batch := scene.store.claim(worker, [TASK], "default", 0, 3, floor):
        found += [job.id for job in batch]
        floor = Floor(batch[-1].run_at, batch[-1].id)
    assert found == ids


def test_the_job_at_the_floor_is_not_behind_it(scene):
    """A job that was claimed last and given back keeps its key: a claim from the floor passes it over, one from the start takes it."""
    worker, job_id = scene.worker(), scene.job()
    (job,) = scene.store.claim(worker, [TASK], "default", 0, 9)
    assert scene.run("release", fenced_parameters("release", [(job.id, job.lease)])) == [job_id]
    assert scene.store.claim(worker, [TASK], "default", 0, 9, Floor(job.run_at, job.id)) == []
    assert [again.id for again in scene.store.claim(worker, [TASK], "default", 0, 9)] == [job_id]


@pytest.mark.parametrize("life", [EXPIRED, "given up, not yet committed", "given up"])
def test_a_worker_without_a_lease_claims_nothing(scene, sessions, life):
    """From the instant its lease is over a worker gets no job, whether or not somebody has noticed."""
    job_id = scene.job()
    worker = scene.worker(EXPIRED)
    rescuer, claimer = sessions(), sessions.impatient()
    if life == "given up":
        assert [lost.id for lost in rescuer.store.rescue()[0]] == [worker]
        # As if a heartbeat had been on its way: the row says that the worker is gone, so a lease in the future does not help.
        scene.age_worker(worker, "lease_expires_at = now() + interval '1 hour'")
    with rescuer.connection.transaction():
        if life == "given up, not yet committed":
            assert [lost.id for lost in rescuer.store.rescue()[0]] == [worker]
        assert claimer.store.claim(worker, [TASK], "default", 0, 9) == []
    assert claimer.store.claim(worker, [TASK], "default", 0, 9) == []
    assert scene.state(job_id) is State.QUEUED


def rescued(session):
    """Rescue; the ids of the workers found lost, and how many jobs were moved."""
    lost, moved = session.store.rescue()
    return [worker.id for worker in lost], moved


def test_jobs_of_a_claim_that_commits_after_the_worker_was_given_up_are_found_later(scene, sessions):
    """A claim that was under way while its worker was given up leaves jobs behind; the next look, a minute later, brings them back."""
    job_id = scene.job()
    worker = scene.worker(ALIVE)
    claimer, rescuer = sessions(), sessions.impatient()
    with claimer.connection.transaction():
        assert len(claimer.store.claim(worker, [TASK], "default", 0, 1)) == 1
        scene.age_worker(worker)
        assert rescued(rescuer) == ([worker], 0)
    assert scene.state(job_id) is State.RUNNING
    assert rescued(rescuer) == ([], 0)  # not every round: once a minute
    scene.age_worker(worker, "rescued_at = rescued_at - interval '61 seconds'")
    assert rescued(rescuer) == ([], 1)  # no news of the worker, but of its job
    assert scene.state(job_id) is State.QUEUED


def test_no_more_than_two_claim_many_jobs_of_a_queue_at_once(scene, sessions):
    """While two large claims are under way a third takes nothing and does not wait; a small one, another queue's, and the impatient pass."""
    for queue in ("default", "other"):
        for _ in range(UNGATED + 1):
            scene.job(queue=queue)
    worker, many = scene.worker(), UNGATED + 1
    inside, third = [sessions() for _ in range(2)], sessions.impatient()
    with inside[0].connection.transaction(force_rollback=True):
        assert len(inside[0].store.claim(worker, [TASK], "default", 0, many)) == many
        with inside[1].connection.transaction(force_rollback=True):
            assert inside[1].store.claim(worker, [TASK], "default", 0, many) == []
            with pytest.raises(Crowded):
                third.store.claim(worker, [TASK], "default", 0, many)
            assert third.store.claim(worker, [TASK], "default", 0, UNGATED) == []  # the first has them all, but nobody is in the way
            assert third.store.claim(worker, [TASK], "default", 0, many, past_gate=True) == []
            assert len(third.store.claim(worker, [TASK], "other", 0, many)) == many
        assert third.store.claim(worker, [TASK], "default", 0, many) == []
    assert len(third.store.claim(worker, [TASK], "default", 0, many)) == many
