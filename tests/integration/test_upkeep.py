"""When a worker takes its rare steps: now and then, and again soon when one of them has more to do."""

from __future__ import annotations

from jobrunner.maintenance.history import Removed
from jobrunner.store import Store
from jobrunner.worker.upkeep import CHORES, CHORES_AGAIN, Upkeep


def test_a_step_with_more_to_do_is_taken_again_soon(connection):
    """A chore that says there is more comes again after seconds, one that does not after minutes."""
    said = [Removed(more=True), Removed(more=True), Removed(), Removed()]
    taken: list[float] = []
    now = 0.0

    def chore(_store):
        taken.append(now)
        return said[len(taken) - 1]

    upkeep = Upkeep((chore, lambda _store: Removed()), 0.0)
    store = Store(connection)
    while len(taken) < len(said):
        upkeep.run(store, now)
        now += 1.0
    first = taken[0]
    assert CHORES / 2 <= first <= CHORES + 1
    assert [at - first for at in taken] == [0, CHORES_AGAIN, 2 * CHORES_AGAIN, 2 * CHORES_AGAIN + CHORES]


def test_every_step_is_taken_also_behind_one_with_more_to_do(connection):
    """That one chore has more to do keeps none of the others from its turn."""
    taken: list[str] = []

    def first(_store):
        taken.append("first")
        return Removed(more=True)

    def second(_store):
        taken.append("second")
        return Removed()

    assert Upkeep((first, second), 0.0).finish(Store(connection))
    assert taken == ["first", "second"]
