"""When a worker claims again, and where: queues with a bound of their own, beside others that have none."""

from __future__ import annotations

import psycopg
import pytest

from jobrunner import claimer as claims
from jobrunner import clock, keywalk
from jobrunner.claimer import Claimer, Room
from jobrunner.jobs import Succeeded
from jobrunner.store import UNGATED, Overtaken, Store
from tests.support.rows import Scene
from tests.support.workers import insert

QUEUES, TASK, POLL = ["default", "mail"], "send", 60.0


class Counting(Store):
    """Counts the looks at what is due anywhere."""

    looks = 0

    def find_due(self, queues):
        self.looks += 1
        return super().find_due(queues)


@pytest.fixture
def store(dsn):
    with psycopg.connect(dsn, autocommit=True) as connection:
        yield Counting(connection)


@pytest.fixture
def worker(store):
    return Scene(store.connection).worker()


def test_a_bounded_queue_is_claimed_from_as_soon_as_it_has_room(dsn, store, worker):
    """Who reached a queue's bound claims again when one of its jobs ends, behind the last one and without a look at all queues."""
    insert(dsn, TASK, 5, queue="mail")
    claimer = Claimer(QUEUES, [TASK], POLL)
    first = claimer.claim(store, worker, Room(6, {"mail": 2}))
    assert len(first) == 2
    full, free, busy = Room(4, {"mail": 0}), Room(5, {"mail": 1}), Room(0, {"mail": 1})
    now = clock.monotonic()
    assert [claimer.wants(room, now) for room in (full, free, busy)] == [False, True, False]
    looks = store.looks
    second = claimer.claim(store, worker, free)
    assert [job.id for job in second] == [first[-1].id + 1]
    assert store.looks == looks
    assert claimer.wants(Room(5, {"mail": 1}), now)


def test_an_empty_bounded_queue_is_left_alone(dsn, store, worker, monkeypatch):
    """Once a claim came back short there is nothing to hold back: room in that queue is no reason to ask before the time."""
    monkeypatch.setattr(claims, "RESCAN", POLL)  # or the time has come when the second claim took a quarter of a second
    insert(dsn, TASK, 3, queue="mail")
    claimer = Claimer(QUEUES, [TASK], POLL)
    assert len(claimer.claim(store, worker, Room(6, {"mail": 2}))) == 2
    assert len(claimer.claim(store, worker, Room(6, {"mail": 2}))) == 1
    assert not claimer.wants(Room(6, {"mail": 2}), clock.monotonic())
    assert claimer.wants(Room(6, {"mail": 2}), clock.monotonic() + POLL)


def test_room_for_slots_that_are_about_to_come_free_counts_while_many_are_due(dsn, store, worker):
    """A busy worker leaves a single job to an idle one; it claims ahead after a claim that took all it could, until one comes back short."""
    insert(dsn, TASK, 8)
    claimer = Claimer(QUEUES, [TASK], POLL)
    ahead = Room(2, early=2)
    assert not claimer.wants(ahead, clock.monotonic())
    taken = []
    for total, early in ((3, 2), (3, 2), (4, 2), (4, 2)):
        now = clock.monotonic() + POLL
        assert claimer.wants(Room(total, early=early), now)
        taken.append(len(claimer.claim(store, worker, Room(total, early=early))))
        if taken[-1] == total or len(taken) == 1:
            assert claimer.wants(ahead, clock.monotonic())
        else:
            assert not claimer.wants(ahead, clock.monotonic() + POLL)
    assert taken == [1, 3, 4, 0]


def test_more_room_than_a_claim_may_take_is_no_reason_to_look_anew(dsn, store, worker, monkeypatch):
    """Workers with many slots claim batch behind batch by their floor; a look from the start walks over all dead entries."""
    monkeypatch.setattr(claims, "MAX_BATCH", 4)
    monkeypatch.setattr(claims, "RESCAN", POLL)
    insert(dsn, TASK, 14)
    claimer = Claimer(QUEUES, [TASK], POLL)
    assert [len(claimer.claim(store, worker, Room(6))) for _ in range(3)] == [4, 4, 4]
    assert store.looks == 1
    assert claimer.wants(Room(6), clock.monotonic())
    assert len(claimer.claim(store, worker, Room(6))) == 2


@pytest.mark.parametrize(("slow", "looks"), [("claim", 5), ("find_due", 3)])
def test_only_the_walk_puts_the_next_look_off(dsn, store, worker, monkeypatch, slow, looks):
    """A large claim takes its time with nothing dead to walk over; a look that had to walk is not repeated for ten times as long."""
    now = 100.0

    def slowly(method):
        def run(*args, **more):
            nonlocal now
            now += 0.2
            return method(*args, **more)

        return run

    monkeypatch.setattr("jobrunner.clock.monotonic", lambda: now)
    monkeypatch.setattr(store, slow, slowly(getattr(store, slow)))
    insert(dsn, TASK, 20)
    claimer = Claimer(QUEUES, [TASK], POLL)
    for _ in range(5):
        assert len(claimer.claim(store, worker, Room(2))) == 2
        now += claims.RESCAN
    assert store.looks == looks


def keyed(dsn, *keys, **columns):
    """One job of each of these ordering keys, in this order."""
    for key in keys:
        insert(dsn, TASK, 1, ordering_key=key, **columns)


def finish(store, jobs):
    """These have ended well."""
    assert store.finish([Succeeded(job.id, job.lease, None, 0, 0, clock.monotonic()) for job in jobs]) == []


def test_the_next_job_of_a_key_is_taken_as_soon_as_the_one_before_has_ended(dsn, store, worker, monkeypatch):
    """Who ended a job of a key wants the next of it at once, and finds it without a look at everything."""
    monkeypatch.setattr(claims, "RESCAN", POLL)
    keyed(dsn, "a", "a", "a", "b")
    claimer = Claimer(QUEUES, [TASK], POLL)
    first = claimer.claim(store, worker, Room(4))
    assert [job.ordering_key for job in first] == ["a", "b"]
    assert not claimer.wants(Room(2), clock.monotonic())
    looks = store.looks
    finish(store, first[:1])
    claimer.follow({"default": ["a"]})
    assert claimer.wants(Room(2), clock.monotonic())
    second = claimer.claim(store, worker, Room(2))
    assert [(job.id, job.ordering_key) for job in second] == [(first[0].id + 1, "a")]
    assert store.looks == looks
    assert not claimer.wants(Room(2), clock.monotonic())


def test_a_key_that_came_later_is_followed_by_a_look(dsn, store, worker, monkeypatch):
    """When nothing of a key waited at the last look, its end makes the claimer look again: something may have come since."""
    monkeypatch.setattr(claims, "RESCAN", POLL)
    keyed(dsn, "a")
    claimer = Claimer(QUEUES, [TASK], POLL)
    first = claimer.claim(store, worker, Room(4))
    assert claimer.claim(store, worker, Room(4)) == []
    keyed(dsn, "a")
    finish(store, first)
    claimer.follow({"default": ["a"]})
    assert len(claimer.claim(store, worker, Room(4))) == 1


def test_keys_and_jobs_without_one_take_turns(dsn, store, worker):
    """A backlog of either kind does not keep the other waiting: with room for one job at a time both come."""
    keyed(dsn, *(f"key {number}" for number in range(20)))
    insert(dsn, TASK, 20)
    claimer = Claimer(QUEUES, [TASK], POLL)
    taken = [claimer.claim(store, worker, Room(1))[0].ordering_key is None for _ in range(12)]
    assert 4 <= sum(taken) <= 8


def test_a_more_urgent_job_comes_first_whether_it_has_a_key_or_not(dsn, store, worker):
    """Priority counts between keys and jobs without one."""
    insert(dsn, TASK, 2, priority=0)
    keyed(dsn, "a", "b", priority=5)
    keyed(dsn, "c", priority=-5)
    claimer = Claimer(QUEUES, [TASK], POLL)
    taken = [claimer.claim(store, worker, Room(1))[0].ordering_key for _ in range(5)]
    assert taken == ["c", None, None, "a", "b"]


def test_a_walk_over_many_keys_comes_to_all_of_them(dsn, store, worker, monkeypatch):
    """More keys than one look takes in: the claimer goes on where it ended, and then leaves them alone."""
    monkeypatch.setattr(keywalk, "KEYS", 3)
    monkeypatch.setattr(keywalk, "STEPS", 2)
    monkeypatch.setattr(claims, "RESCAN", POLL)
    insert(dsn, TASK, 10, ordering_key="blocked")
    for number in range(20):
        keyed(dsn, f"key {number:02}", **({"run_at": "2999-01-01 00:00+00"} if number < 19 else {}))
    claimer = Claimer(QUEUES, [TASK], POLL)
    taken = []
    for _ in range(10):
        if not claimer.wants(Room(9), clock.monotonic()):
            break
        taken += claimer.claim(store, worker, Room(9))
    assert sorted(str(job.ordering_key) for job in taken) == ["blocked", "key 19"]
    assert not claimer.wants(Room(9), clock.monotonic())


def test_a_key_whose_next_job_waits_for_its_backoff_is_looked_at_in_time(dsn, store, worker):
    """Jobs that are due behind one that is not do not hide when that one will be."""
    keyed(dsn, "a", "a")
    store.connection.execute("UPDATE jobrunner.jobs SET run_at = now() + interval '5 seconds' WHERE id = (SELECT min(id) FROM jobrunner.jobs)")
    claimer = Claimer(QUEUES, [TASK], POLL)
    assert claimer.claim(store, worker, Room(4)) == []
    assert clock.monotonic() < claimer.next_at <= clock.monotonic() + 5


def test_a_claim_that_was_overtaken_is_made_again(dsn, store, worker, monkeypatch):
    """A lost race over a key costs one more claim, not the worker's round."""
    keyed(dsn, "a")
    claim, calls = store.claim_ordered, []

    def overtaken_once(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            raise Overtaken
        return claim(*arguments)

    monkeypatch.setattr(store, "claim_ordered", overtaken_once)
    assert len(Claimer(QUEUES, [TASK], POLL).claim(store, worker, Room(4))) == 1
    monkeypatch.setattr(store, "claim_ordered", lambda *_: (_ for _ in ()).throw(Overtaken))
    keyed(dsn, "b")
    assert Claimer(QUEUES, [TASK], POLL).claim(store, worker, Room(4)) == []


@pytest.fixture
def closed(dsn, worker):
    """The gate of the queue `default`, in which two large claims stand until the test ends."""
    with psycopg.connect(dsn) as one, psycopg.connect(dsn) as two:
        for connection in (one, two):
            Store(connection).claim(worker, ["another"], "default", 0, UNGATED + 1)
        yield
        one.rollback()
        two.rollback()


@pytest.fixture
def slow(monkeypatch):
    """Pauses so long that a machine that stands still for a while does not hide them."""
    monkeypatch.setattr(claims, "STEP_BACK", 20.0)
    monkeypatch.setattr(claims, "LONGEST_STEP_BACK", 200.0)


@pytest.mark.usefixtures("closed", "slow")
def test_who_finds_the_gate_closed_comes_back_later_each_time(dsn, store, worker):
    """A claimer in a crowd takes nothing, is not idle, and asks again after a pause that grows; it does not scan meanwhile."""
    insert(dsn, TASK, UNGATED + 1, queue="default")
    claimer = Claimer(QUEUES, [TASK], POLL)
    pauses = []
    for _ in range(3):
        assert claimer.claim(store, worker, Room(UNGATED + 1)) == []
        assert not claimer.idle
        pauses.append(claimer.next_at - clock.monotonic())
    assert 0 < pauses[0] <= claims.STEP_BACK
    assert pauses[0] < pauses[2] <= claims.LONGEST_STEP_BACK
    assert store.looks == 1
    assert not claimer.wants(Room(UNGATED + 1), clock.monotonic())
    claimer.wake()
    assert claimer.wants(Room(UNGATED + 1), clock.monotonic())


@pytest.mark.usefixtures("closed")
def test_who_finds_the_gate_closed_for_long_passes_by(dsn, store, worker, monkeypatch):
    """When somebody stands in the gate and does not move, others claim as much as ever, now and then; each such claim has waited from the last."""
    now = 1000.0
    monkeypatch.setattr(clock, "monotonic", lambda: now)
    many = UNGATED + 1
    insert(dsn, TASK, 3 * many, queue="default")
    claimer = Claimer(QUEUES, [TASK], POLL)
    assert claimer.claim(store, worker, Room(many)) == []
    now += claims.CROWD_PATIENCE
    assert len(claimer.claim(store, worker, Room(many))) == many
    assert claimer.waited == claims.CROWD_PATIENCE
    now += claims.PASS_PAUSE / 2
    assert claimer.claim(store, worker, Room(many)) == []
    assert claimer.next_at > now
    assert claimer.waited == 0.0, "a claim for which nobody waited has the time of an earlier one"
    now += claims.PASS_PAUSE / 2
    assert len(claimer.claim(store, worker, Room(many))) == many
    assert claimer.waited == claims.PASS_PAUSE


@pytest.mark.usefixtures("slow")
def test_an_open_gate_ends_the_crowd(dsn, store, worker):
    """As soon as those in the gate are through, the pauses are forgotten; how long that took is known, and not taken for the next claim's."""
    many = UNGATED + 1
    insert(dsn, TASK, 3 * many, queue="default")
    claimer = Claimer(QUEUES, [TASK], POLL)
    with psycopg.connect(dsn) as one, psycopg.connect(dsn) as two:
        for connection in (one, two):
            Store(connection).claim(worker, ["another"], "default", 0, many)
        began = clock.monotonic()
        for _ in range(2):
            assert claimer.claim(store, worker, Room(many)) == []
        one.rollback()
        assert len(claimer.claim(store, worker, Room(many))) == many
        assert 0 < claimer.waited <= clock.monotonic() - began
        Store(one).claim(worker, ["another"], "default", 0, many)
        assert claimer.claim(store, worker, Room(many)) == []
        assert 0 < claimer.next_at - clock.monotonic() <= claims.STEP_BACK
        two.rollback()
        one.rollback()
    claimer = Claimer(QUEUES, [TASK], POLL)
    assert len(claimer.claim(store, worker, Room(many))) == many
    assert claimer.waited == 0.0


@pytest.mark.usefixtures("slow")
def test_a_crowd_scans_seldom(dsn, store, worker, monkeypatch):
    """Who stood outside continues behind its last key: of many workers somebody looks for what is more urgent anyway."""
    monkeypatch.setattr(claims, "RESCAN", 0.0)
    monkeypatch.setattr(claims, "CROWD_RESCAN", POLL)
    many = UNGATED + 1
    insert(dsn, TASK, 3 * many, queue="default")
    claimer = Claimer(QUEUES, [TASK], 0.0)
    assert len(claimer.claim(store, worker, Room(many))) == many
    with psycopg.connect(dsn) as one, psycopg.connect(dsn) as two:
        for connection in (one, two):
            Store(connection).claim(worker, ["another"], "default", 0, many)
        assert claimer.claim(store, worker, Room(many)) == []
        two.rollback()
        one.rollback()
    looks = store.looks
    assert len(claimer.claim(store, worker, Room(many))) == many
    assert store.looks == looks
