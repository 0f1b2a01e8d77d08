"""Two workers want the same slot of a pool, or the record of the same worker: one gets it, whichever comes first, and the other learns it."""

from __future__ import annotations

from datetime import timedelta

import pytest

from jobrunner.jobs import Leaving, WorkerCounts
from tests.support.sessions import PATIENCE

HOUR = timedelta(hours=1)
FACTS = {"name": "w", "host": "h", "pid": 1, "kind": "cron", "version": "0", "queues": [], "tasks": [], "slots": 1}
SLOT = ("nightly", 1)
COUNTS = WorkerCounts()


def register(session):
    """The id of a new worker with the slot, or None."""
    taken = session.store.take_slot(FACTS, HOUR, *SLOT)
    return None if taken is None else taken.worker_id


def runs(scene, worker):
    """The reasons on record for a worker that is gone."""
    return scene.one("SELECT array_agg(reason) FROM jobrunner.worker_runs WHERE worker_id = %s", (worker,))


@pytest.mark.parametrize("commits", [True, False])
def test_of_two_that_register_at_once_one_gets_the_slot(scene, sessions, commits):
    """The second waits for the first: turned away if that commits, and the holder if it does not."""
    first, second = sessions(), sessions()
    with first.connection.transaction(force_rollback=not commits):
        holder = register(first)
        late = second.call_blocked(lambda: register(second), scene)
    found = late.result(PATIENCE)
    assert (found is None) is commits
    assert scene.one("SELECT array_agg(id) FROM jobrunner.workers WHERE pool IS NOT NULL") == [holder if commits else found]


@pytest.mark.parametrize("commits", [True, False])
def test_of_two_heirs_of_an_expired_holder_one_gets_the_slot(scene, sessions, commits):
    """The second waits for the one that gives the slot up, and the lost holder is on record once, whoever wrote it."""
    lost = register(scene)
    scene.age_worker(lost)
    first, second = sessions(), sessions()
    with first.connection.transaction(force_rollback=not commits):
        assert register(first) is not None
        late = second.call_blocked(lambda: register(second), scene)
    assert (late.result(PATIENCE) is None) is commits
    assert runs(scene, lost) == ["lost"]
    assert scene.one("SELECT count(*) FROM jobrunner.workers WHERE stopped_at IS NULL") == 1


def test_a_rescuer_that_holds_the_row_of_the_expired_holder(scene, sessions):
    """A registration waits for the rescue under way and then has the slot; the run is on record once."""
    lost = register(scene)
    scene.age_worker(lost)
    rescuer, late = sessions(), sessions()
    with rescuer.connection.transaction():
        assert [worker.id for worker in rescuer.store.rescue()[0]] == [lost]
        waiting = late.call_blocked(lambda: register(late), scene)
    assert waiting.result(PATIENCE) is not None
    assert runs(scene, lost) == ["lost"]


def test_a_rescuer_goes_past_a_slot_that_is_being_given_up(scene, sessions):
    """The other way round nobody waits: the rescuer skips the row, and later finds nothing to announce."""
    lost = register(scene)
    scene.age_worker(lost)
    heir, rescuer = sessions(), sessions.impatient()
    with heir.connection.transaction():
        assert register(heir) is not None
        assert rescuer.store.rescue() == ([], 0)
    assert rescuer.store.rescue() == ([], 0)
    assert runs(scene, lost) == ["lost"]


@pytest.mark.parametrize("leaving_first", [True, False])
def test_a_worker_that_leaves_while_it_is_given_up_is_on_record_once(scene, sessions, leaving_first):
    """Leaving in order and being given up exclude each other: who comes first says why it is gone."""
    worker = register(scene)
    scene.age_worker(worker)
    own, heir = sessions(), sessions()
    leave = lambda: own.store.stop_worker(worker, Leaving("done"), COUNTS)  # noqa: E731
    take = lambda: register(heir)  # noqa: E731
    first, (second, call) = ((own, leave), (heir, take)) if leaving_first else ((heir, take), (own, leave))
    with first[0].connection.transaction():
        assert first[1]()
        late = second.call_blocked(call, scene)
    answer = late.result(PATIENCE)
    assert answer is not None
    assert (answer is False) is not leaving_first
    assert runs(scene, worker) == (["done"] if leaving_first else ["lost"])
