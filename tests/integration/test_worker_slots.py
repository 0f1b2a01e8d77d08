"""Workers that take a slot of a pool, and the one record that each worker leaves when it is gone."""

from __future__ import annotations

from datetime import timedelta

import pytest

from jobrunner.jobs import Leaving, WorkerCounts, WorkerSight
from tests.support.rows import ALIVE, EXPIRED, STOPPED, TASK, Scene

HOUR = timedelta(hours=1)
FACTS = {"name": "w", "host": "h", "pid": 1, "kind": "cron", "version": "0", "queues": ["default"], "tasks": [], "slots": 1}
SLOT = ("nightly", 1)
COUNTS = WorkerCounts(succeeded=3, failed=2, crashed=1, claimed=6)


@pytest.fixture
def scene(connection):
    return Scene(connection)


def register(scene, slot=SLOT):
    """The id of a new worker, or None when the slot is taken."""
    if slot is None:
        return scene.store.register_worker(FACTS, HOUR)
    taken = scene.store.take_slot(FACTS, HOUR, *slot)
    return None if taken is None else taken.worker_id


def runs(scene, worker):
    """What is on record about a worker that is gone."""
    query = """
        SELECT reason, exit_code, error, claimed_count, succeeded_count, failed_count, crashed_count, left_count, pool, pool_slot, name, kind
        FROM jobrunner.worker_runs WHERE worker_id = %s"""
    return scene.execute(query, (worker,)).fetchall()


def test_a_slot_has_one_living_holder(scene):
    """While the holder's lease holds nobody else gets the slot; other slots, other pools and workers without one are free."""
    holder = register(scene)
    assert holder is not None
    assert register(scene) is None
    others = [register(scene, slot) for slot in (("nightly", 2), ("hourly", 1), None, None)]
    assert None not in others
    assert len({holder, *others}) == 5
    assert register(scene) is None
    assert scene.one("SELECT count(*) FROM jobrunner.worker_runs") == 0


def test_a_holder_that_left_gives_the_slot_free(scene):
    """The next worker takes the slot of one that stopped in order, and the first is on record once."""
    holder = register(scene)
    assert scene.store.stop_worker(holder, Leaving("drained"), COUNTS) is True
    heir = register(scene)
    assert heir not in {None, holder}
    assert [run[0] for run in runs(scene, holder)] == ["drained"]


def test_an_expired_holder_gives_way(scene):
    """A holder whose lease is over loses the slot to whoever asks, is on record as lost once, and cannot come back."""
    holder = register(scene)
    scene.store.heartbeat(holder, HOUR, WorkerSight(), COUNTS)
    scene.age_worker(holder)
    heir = register(scene)
    assert heir is not None
    assert runs(scene, holder) == [("lost", None, None, 6, 3, 2, 1, None, *SLOT, "w", "cron")]
    assert scene.store.heartbeat(holder, HOUR, WorkerSight(), COUNTS) is False
    assert scene.store.stop_worker(holder, Leaving("done"), COUNTS) is False
    assert register(scene) is None
    assert scene.store.rescue() == ([], 0)  # it was announced when the slot was taken from it
    assert len(runs(scene, holder)) == 1


def test_the_jobs_of_a_holder_that_gave_way_are_rescued(scene):
    """Losing the slot does not hide what the lost worker was running."""
    holder = register(scene)
    scene.store.set_tasks(holder, [TASK])
    job_id = scene.job()
    assert [job.id for job in scene.store.claim(holder, [TASK], "default", 0, 1)] == [job_id]
    scene.age_worker(holder)
    assert register(scene) is not None
    assert scene.store.rescue()[1] == 1
    assert scene.state(job_id) == "queued"


def test_a_lost_worker_is_on_record_once(scene):
    """The first rescue after its lease is over writes the run; later ones, and its own late leaving, do not write another."""
    worker = register(scene, None)
    scene.store.heartbeat(worker, HOUR, WorkerSight(), COUNTS)
    scene.age_worker(worker)
    assert [lost.id for lost in scene.store.rescue()[0]] == [worker]
    assert runs(scene, worker) == [("lost", None, None, 6, 3, 2, 1, None, None, None, "w", "cron")]
    scene.execute("UPDATE jobrunner.workers SET rescued_at = rescued_at - interval '2 minutes'")
    assert scene.store.rescue() == ([], 0)
    assert scene.store.stop_worker(worker, Leaving("done"), COUNTS) is False
    assert len(runs(scene, worker)) == 1


def test_a_worker_that_leaves_in_order_is_on_record_once(scene):
    """Why it left, what it did, what it left behind and when the next job is due; a second leaving and a rescue add nothing."""
    worker = register(scene)
    due = scene.one("SELECT now() + interval '1 minute'")
    leaving = Leaving("error", exit_code=70, error="OSError: disk full", left_count=4, next_due_at=due)
    assert scene.store.stop_worker(worker, leaving, COUNTS) is True
    assert runs(scene, worker) == [("error", 70, "OSError: disk full", 6, 3, 2, 1, 4, *SLOT, "w", "cron")]
    assert scene.one("SELECT next_due_at FROM jobrunner.worker_runs") == due
    assert scene.store.stop_worker(worker, Leaving("done"), COUNTS) is False
    assert scene.store.rescue() == ([], 0)
    assert len(runs(scene, worker)) == 1
    row = scene.execute("SELECT last_exit, running, claimed_count FROM jobrunner.workers WHERE id = %s", (worker,)).fetchone()
    assert row == ("error", None, 6)


def test_nobody_looked_what_is_left(scene):
    """A worker that does not say what it left behind has null there, not zero."""
    worker = register(scene, None)
    scene.store.stop_worker(worker, Leaving("signal"), COUNTS)
    assert scene.execute("SELECT left_count, next_due_at, exit_code FROM jobrunner.worker_runs").fetchone() == (None, None, 0)


@pytest.mark.parametrize(("life", "told"), [(ALIVE, True), (EXPIRED, False), (STOPPED, False)])
def test_a_worker_says_its_tasks_while_its_lease_holds(scene, life, told):
    """A worker that took its slot before it imported the application names its tasks later; one that was lost learns it."""
    worker = scene.worker(life)
    assert scene.store.set_tasks(worker, ["a", "b"]) is told
    assert scene.one("SELECT tasks FROM jobrunner.workers WHERE id = %s", (worker,)) == (["a", "b"] if told else [TASK])


def test_a_heartbeat_shows_what_runs(scene):
    """Memory of the whole worker, claims and what each slot runs are in its row until it says something else."""
    worker = register(scene, None)
    query = "SELECT rss_bytes, memory_bytes, running, claimed_count FROM jobrunner.workers WHERE id = %s"
    assert scene.execute(query, (worker,)).fetchone() == (None, None, None, None)
    sight = WorkerSight(20, 80, '[{"slot": 1, "job": 17, "task": "resize"}]')
    assert scene.store.heartbeat(worker, HOUR, sight, COUNTS) is True
    assert scene.execute(query, (worker,)).fetchone() == (20, 80, [{"slot": 1, "job": 17, "task": "resize"}], 6)
    assert scene.store.heartbeat(worker, HOUR, WorkerSight(), WorkerCounts(claimed=7)) is True
    assert scene.execute(query, (worker,)).fetchone() == (None, None, None, 7)
