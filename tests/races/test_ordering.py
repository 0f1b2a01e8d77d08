"""Claims of one ordering key against each other, against late commits and against operators, with transactions held open on purpose."""

from __future__ import annotations

import threading

import pytest

from jobrunner.jobs import Succeeded, Walk
from jobrunner.states import State
from jobrunner.store import Overtaken
from tests.support.rows import TASK, fenced_parameters
from tests.support.sessions import PATIENCE

CLAIMERS, KEYS, OF_EACH = 3, 7, 12
WALK = Walk(keys=100)


def next_of(session, worker, take=9, walk=WALK):
    """What a claim of keys takes, by id."""
    return [job.id for job in session.store.claim_ordered(worker, [TASK], "default", 0, take, walk).jobs]


def test_claimers_at_the_same_time_keep_every_key_in_order(scene, sessions):
    """Several claimers work off keys together: of each key the jobs begin in the order of ids, each after the one before has ended."""
    for number in range(KEYS * OF_EACH):
        scene.job(ordering_key=f"key {number % KEYS}")
    begin, lock = threading.Barrier(CLAIMERS), threading.Lock()
    log: list[tuple[str, str, int]] = []
    left = [KEYS * OF_EACH]

    def work(session, worker):
        begin.wait(PATIENCE)
        while left[0] > 0:
            try:
                found = session.store.claim_ordered(worker, [TASK], "default", 0, 2, WALK)
            except Overtaken:
                continue
            with lock:
                log.extend(("began", job.ordering_key, job.id) for job in found.jobs)
            with lock:  # before the end is written: what follows it can only begin after that
                log.extend(("ended", job.ordering_key, job.id) for job in found.jobs)
            assert session.store.finish([Succeeded(job.id, job.lease, None, 1, 1, 1.0) for job in found.jobs]) == []
            left[0] = scene_left(session)

    def scene_left(session):
        return session.one("SELECT count(*) FROM jobrunner.jobs WHERE state = 'queued'")

    opened = [sessions() for _ in range(CLAIMERS)]
    running = [session.call(lambda session=session: work(session, session.worker())) for session in opened]
    for call in running:
        call.result(PATIENCE)
    assert len(log) == 2 * KEYS * OF_EACH
    for number in range(KEYS):
        events = [(what, job_id) for what, key, job_id in log if key == f"key {number}"]
        ids = sorted({job_id for _, job_id in events})
        assert events == [(what, job_id) for job_id in ids for what in ("began", "ended")]


def test_of_two_claims_with_different_snapshots_one_is_overtaken(scene, sessions):
    """An older job that commits while a newer one of its key is being claimed is not claimed beside it: the second claim loses the race."""
    application, first, second = sessions(), sessions(), sessions()
    workers = [scene.worker(), scene.worker()]
    with application.connection.transaction():
        older = application.job(ordering_key="k")
        newer = scene.job(ordering_key="k")
        transaction = first.connection.transaction()
        transaction.__enter__()
        assert next_of(first, workers[0]) == [newer]
    late = second.call_blocked(lambda: next_of(second, workers[1]), scene)
    transaction.__exit__(None, None, None)
    with pytest.raises(Overtaken):
        late.result(PATIENCE)
    assert (scene.state(older), scene.state(newer)) == (State.QUEUED, State.RUNNING)
    assert next_of(second, workers[1]) == []
    assert scene.run("succeed", fenced_parameters("succeed", [(newer, scene.row(newer)["lease"])])) == [newer]
    assert next_of(second, workers[1]) == [older]


def test_a_claim_that_is_rolled_back_lets_the_other_one_go(scene, sessions):
    """When the claim that was in the way is undone, the one that waited for it takes what it found."""
    application, first, second = sessions(), sessions(), sessions()
    worker = scene.worker()
    with application.connection.transaction():
        older = application.job(ordering_key="k")
        newer = scene.job(ordering_key="k")
        first.execute("BEGIN")
        assert next_of(first, worker) == [newer]
    late = second.call_blocked(lambda: next_of(second, worker), scene)
    first.execute("ROLLBACK")
    assert late.result(PATIENCE) == [older]
    assert scene.state(newer) is State.QUEUED


def test_a_claim_under_way_is_passed_by(scene, sessions):
    """While a claim of one key is uncommitted another takes the other keys, without waiting, and nothing of that key."""
    first_of = {key: scene.job(ordering_key=key) for key in ("a", "b")}
    for key in ("a", "b"):
        scene.job(ordering_key=key)
    claimer, other = sessions(), sessions.impatient()
    worker = scene.worker()
    with claimer.connection.transaction():
        assert next_of(claimer, worker, take=1) == [first_of["a"]]
        assert next_of(other, worker) == [first_of["b"]]
    assert next_of(other, worker) == []


@pytest.mark.parametrize("commits", [True, False])
def test_the_next_job_is_not_taken_before_the_end_of_the_one_before_is_committed(scene, sessions, commits):
    """While the end of a job is uncommitted nothing of its key begins; after a rollback it runs still."""
    one, two = scene.job(ordering_key="k"), scene.job(ordering_key="k")
    finisher, claimer = sessions(), sessions.impatient()
    worker = scene.worker()
    assert next_of(scene, worker) == [one]
    with finisher.connection.transaction(force_rollback=not commits):
        assert finisher.run("succeed", fenced_parameters("succeed", [(one, scene.row(one)["lease"])])) == [one]
        assert next_of(claimer, worker) == []
    assert next_of(claimer, worker) == ([two] if commits else [])


def test_a_job_that_was_brought_back_waits_for_the_one_that_runs(scene):
    """An operator brings an old job back while a newer one of its key runs: it begins when that has ended, before those that came after it."""
    old = scene.job(State.FAILED, ordering_key="k")
    running, behind = scene.job(ordering_key="k"), scene.job(ordering_key="k")
    worker = scene.worker()
    assert next_of(scene, worker) == [running]
    assert scene.store.requeue(old) == "default"
    assert next_of(scene, worker) == []
    assert scene.run("fail", fenced_parameters("fail", [(running, scene.row(running)["lease"])])) == [running]
    assert next_of(scene, worker) == [old]
    assert scene.run("succeed", fenced_parameters("succeed", [(old, scene.row(old)["lease"])])) == [old]
    assert next_of(scene, worker) == [behind]


@pytest.mark.parametrize("ending", ["retry", "snooze", "release", "crash"])
def test_a_job_that_comes_back_keeps_its_place(scene, ending):
    """Whatever brings a job back to the queue, those behind it wait until it is due again and has ended."""
    one, two = scene.job(ordering_key="k", max_attempts=5), scene.job(ordering_key="k")
    worker = scene.worker()
    assert next_of(scene, worker) == [one]
    assert scene.run(ending, fenced_parameters(ending, [(one, scene.row(one)["lease"])], delay_ms=3_600_000)) == [one]
    if ending in ("retry", "snooze"):
        assert next_of(scene, worker) == []
        scene.set(one, "run_at = now()")
    assert next_of(scene, worker) == [one]
    assert scene.run("fail", fenced_parameters("fail", [(one, scene.row(one)["lease"])])) == [one]
    assert next_of(scene, worker) == [two]


def test_the_order_within_a_key_comes_before_priority_and_time(scene):
    """A more urgent or earlier job behind another of its key waits; a job that is not due yet holds up those behind it."""
    first = scene.job(ordering_key="k", priority=0, run_at="=now() + interval '1 hour'")
    scene.job(ordering_key="k", priority=0)
    urgent = scene.job(ordering_key="k", priority=-5)
    worker = scene.worker()
    found = scene.store.claim_ordered(worker, [TASK], "default", 0, 9, WALK)
    assert found.jobs == []
    assert 0 < found.due_in_ms <= 3_600_000
    assert scene.store.claim_ordered(worker, [TASK], "default", -5, 9, WALK).jobs == []
    scene.store.requeue(first)  # makes it due now
    assert next_of(scene, worker) == [first]
    assert scene.state(urgent) is State.QUEUED


def test_a_key_is_of_one_queue(scene):
    """The same key in two queues is two keys."""
    here, there = scene.job(ordering_key="k"), scene.job(ordering_key="k", queue="other")
    worker = scene.worker()
    assert next_of(scene, worker) == [here]
    assert [job.id for job in scene.store.claim_ordered(worker, [TASK], "other", 0, 9, WALK).jobs] == [there]


def test_a_walk_over_many_keys_goes_on_where_it_ended(scene):
    """A walk of a few keys at a time comes to all of them, and says when there is none left."""
    ids = [scene.job(ordering_key=f"{number:02}") for number in range(10)]
    worker, found, behind = scene.worker(), [], ""
    for expected in (4, 4, 2):
        step = scene.store.claim_ordered(worker, [TASK], "default", 0, 99, Walk(behind, 4))
        assert step.key_count == expected
        found += [job.id for job in step.jobs]
        behind = step.last_key
    assert found == ids
