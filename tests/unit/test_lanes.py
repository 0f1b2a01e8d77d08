"""Handing out: who gets which job, what waits where, what is taken back; with children that are sockets only."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime

import pytest

from jobrunner.jobs import ClaimedJob, Ending
from jobrunner.worker import channels, lanes, wire
from jobrunner.worker.bundles import Inbox
from jobrunner.worker.children import AHEAD, ASYNC, LONGEST_AHEAD, MAX_AHEAD, MOVE_AFTER, PROCESS, STALE, THREADS, Child
from jobrunner.worker.lanes import MOST_AHEAD, MOST_SOLO, REPLACE_AFTER, ROUNDS, Lane
from jobrunner.worker.pace import OVERHEAD

NOW = 1000.0
DUE = datetime(2026, 1, 1, tzinfo=UTC)
CPU = '{"cpu_ms": 1000}'
numbers = itertools.count(1)
inboxes: dict[int, Inbox] = {}  # of the children, by their numbers


class Hands:
    """A lane, its children, and what they would do."""

    def __init__(self):
        self.lanes, self.prepared = [], []
        self._ends = []

    def lane(self, kind=PROCESS, wanted=2, capacity=1):
        lane = Lane(kind, wanted, capacity, lambda child, run: self.prepared.append((child.number, run.job.id)))
        for _ in range(wanted):
            self.child(lane)
        return lane

    def child(self, lane, **more):
        fields, _, close = channels.connect()
        child = Child(number=next(numbers), kind=lane.kind, capacity=lane.capacity, pid=1, **fields)
        for name, value in more.items():
            setattr(child, name, value)
        lane.children[child.number] = child
        self._ends += [child.close, *close]
        return child

    def close(self):
        for end in self._ends:
            end()


@pytest.fixture
def hands():
    made = Hands()
    yield made
    made.close()


def jobs(count, task="short", **columns):
    """Claimed jobs."""
    return [
        ClaimedJob(
            next(numbers), 1, 1, 5, task, "default", "{}", DUE, None, suspect=columns.get("suspect", False), limits=columns.get("limits")
        )
        for _ in range(count)
    ]


def read(child):
    """The child begins the next job in its inbox."""
    return wire.job_id(inboxes.setdefault(child.number, Inbox(child.inbox_there)).take())


def done(lane, child, job_id, run_ms=0):
    """A child has finished a job; the next one begins."""
    run = child.drop(job_id)
    lane.pace.learn(run.job.task, run_ms / 1000)
    for following in child.active():
        if not following.since:
            child.begins(following, NOW)


def known(lane, **run_ms):
    """Let the lane know how long tasks take."""
    for task, milliseconds in run_ms.items():
        lane.pace.learn(task, milliseconds / 1000)
    return lane


def test_an_unknown_task_never_waits_behind_another(hands):
    """Before one of its jobs has ended a task may be long: one for each slot, and the rest stay in the backlog."""
    lane = hands.lane()
    assert lane.room(NOW) == 2
    lane.backlog.extend(jobs(5))
    lane.hand_out(NOW)
    assert [len(child.runs) for child in lane.children.values()] == [1, 1]
    assert len(lane.backlog) == 3


def test_short_jobs_travel_in_equal_shares(hands):
    """A batch is spread over the children that are idle, as far as each may hold."""
    lane = known(hands.lane(), short=1)
    lane.backlog.extend(jobs(14))
    lane.hand_out(NOW)
    assert [len(child.runs) for child in lane.children.values()] == [7, 7]
    assert not lane.backlog


def test_a_child_holds_so_much_work_and_so_many_jobs(hands):
    """Twenty milliseconds of work by expected run times, of which no job is thought to take none; a fixed number where slots are many."""
    lane = known(hands.lane(wanted=1), short=5)
    lane.backlog.extend(jobs(20))
    lane.hand_out(NOW)
    assert [len(child.runs) for child in lane.children.values()] == [4]
    fast = known(hands.lane(wanted=1), short=0)
    fast.backlog.extend(jobs(1000))
    fast.hand_out(NOW)
    assert [len(child.runs) for child in fast.children.values()] == [pytest.approx(AHEAD / OVERHEAD, abs=1)]
    wide = known(hands.lane(THREADS, wanted=1, capacity=100), short=0)
    assert wide.room(NOW) == 100 + MAX_AHEAD


def test_work_in_hand_lasts_for_the_rounds_of_a_slow_database(hands):
    """Where a round takes long a child holds what it does in two of them, up to a bound, and less again later."""
    lane = known(hands.lane(wanted=1), short=5)
    for _ in range(50):
        lane.fetched(0.03)
    assert lane.hold == pytest.approx(ROUNDS * 0.03, rel=0.01)
    lane.backlog.extend(jobs(40))
    lane.hand_out(NOW)
    assert [len(child.runs) for child in lane.children.values()] == [pytest.approx(12, abs=1)]
    lane.fetched(60.0)
    assert lane.hold == MOST_AHEAD
    for _ in range(50):
        lane.fetched(0.001)
    assert lane.hold == AHEAD


def test_no_job_waits_behind_or_as_one_that_would_have_all_taken_back(hands):
    """However slow the database is: a child holds nothing behind a job whose run is as long as makes it give back what waits."""
    lane = known(hands.lane(wanted=1), fair=40, long=90)
    lane.fetched(60.0)
    lane.pace.mean = 0.04
    lane.backlog.extend([*jobs(2, "fair"), *jobs(1, "long"), *jobs(1, "fair")])
    lane.hand_out(NOW)
    (child,) = lane.children.values()
    assert [run.job.task for run in child.runs.values()] == ["fair", "fair"]
    lane.backlog.clear()
    assert lane.room(NOW) > 0
    lane.pace.mean = 0.09
    assert lane.room(NOW) == 0
    assert LONGEST_AHEAD < STALE < MOST_AHEAD


def test_the_first_job_of_a_task_says_little_of_the_others(hands):
    """It loads what they find there: from the second on, only what came after it counts."""
    pace = hands.lane().pace
    pace.learn("short", 0.2)
    assert (pace.mean, pace.expected("short")) == (0.2, 0.2)
    pace.learn("short", 0.001)
    assert (pace.mean, pace.expected("short")) == (0.001, 0.001)
    pace.learn("other", 0.2)
    pace.learn("short", 0.002)
    assert pace.expected("short") == pytest.approx(0.0012)
    assert pace.expected("other") == 0.2


def test_nothing_waits_behind_a_job_that_is_known_to_be_long(hands):
    """A long task's job gets a free slot; short ones go to the other child."""
    lane = known(hands.lane(), long=5000, short=0)
    lane.pace.mean = OVERHEAD
    lane.backlog.extend([*jobs(1, "long"), *jobs(30)])
    lane.hand_out(NOW)
    held = sorted([[run.job.task for run in child.runs.values()] for child in lane.children.values()], key=len)
    assert held[0] == ["long"]
    assert set(held[1]) == {"short"}


def test_a_job_that_needs_an_idle_child_gets_one_and_stops_nobody(hands):
    """The least busy child is set aside for it: it gets nothing more until it is idle, while the others go on with what is behind it."""
    lane = known(hands.lane(), short=0)
    lane.backlog.extend(jobs(20))
    lane.hand_out(NOW)
    first, second = lane.children.values()
    for job_id in list(first.runs)[:5]:
        done(lane, first, read(first))
        assert job_id not in first.runs
    limited = jobs(1, limits=CPU)
    lane.backlog.extend([*limited, *jobs(10)])
    lane.hand_out(NOW)
    assert len(first.runs) == 5
    assert len(second.runs) == 20
    assert [job.id for job in lane.backlog] == [limited[0].id]
    while first.runs:
        done(lane, first, read(first))
    lane.hand_out(NOW)
    assert list(first.runs) == [limited[0].id]
    assert hands.prepared == [(first.number, limited[0].id)]
    lane.backlog.extend(jobs(5))
    lane.hand_out(NOW)
    assert len(first.runs) == 1, "something waits behind a job that has the process to itself"


@pytest.mark.parametrize("limits", ['{"memory": 1000}', '{"soft_ms": 1000}'])
def test_limits_that_are_looked_at_meanwhile_travel(hands, limits):
    """Jobs with limits of time or memory wait behind others like any; each is prepared when its turn comes."""
    lane = known(hands.lane(wanted=1), short=0)
    [child] = lane.children.values()
    lane.backlog.extend(jobs(3, limits=limits))
    lane.hand_out(NOW)
    assert len(child.runs) == 3
    assert len(hands.prepared) == 1


def test_a_control_group_is_changed_in_an_idle_child_only(hands):
    """Where groups are used, a job with another memory limit than the one before waits for an idle child."""
    lane = known(hands.lane(wanted=1), short=0)
    [child] = lane.children.values()
    child.group = object()
    lane.backlog.extend([*jobs(2, limits='{"memory": 1000}'), *jobs(1, limits='{"memory": 2000}'), *jobs(2)])
    lane.hand_out(NOW)
    assert len(child.runs) == 2
    assert len(lane.backlog) == 3


def test_what_waits_moves_to_a_free_slot_soon_and_elsewhere_later(hands):
    """Behind a running job: 5 ms while another child is idle, 0.1 s otherwise; then nothing more is put there."""
    lane = known(hands.lane(), short=0)
    first, second = lane.children.values()
    lane.backlog.extend(jobs(1))
    second.retired = True
    lane.hand_out(NOW)
    lane.backlog.extend(jobs(4))
    lane.hand_out(NOW)
    assert len(first.runs) == 5
    read(first)
    second.retired = False
    lane.rebalance(NOW + MOVE_AFTER / 2)
    assert len(first.runs) == 5
    lane.rebalance(NOW + MOVE_AFTER * 2)
    assert (len(first.runs), len(lane.backlog)) == (1, 4)
    lane.hand_out(NOW + MOVE_AFTER * 2)
    assert len(second.runs) == 4
    read(second)
    for run in (*first.runs.values(), next(iter(second.runs.values()))):
        run.since = NOW
    lane.rebalance(NOW + STALE * 2)
    assert (len(first.runs), len(second.runs), len(lane.backlog)) == (1, 1, 0)
    assert [outcome.ending for outcome in lane.outcomes] == [Ending.RELEASE] * 3
    assert lane.room(NOW + STALE * 2) == 0


@pytest.mark.parametrize("kind", [THREADS, ASYNC])
def test_a_shared_child_and_its_successor_keep_to_the_slots(hands, kind):
    """A child that leaves keeps the slots of what it runs; the one after it gets the others."""
    lane = known(hands.lane(kind, wanted=1, capacity=4), long=5000)
    [old] = lane.children.values()
    lane.backlog.extend(jobs(3, "long"))
    lane.hand_out(NOW)
    old.dismiss()
    new = hands.child(lane)
    assert lane.missing(NOW) == 0
    assert lane.room(NOW) == 0, "the slot may stay empty for a moment, so that one claim serves several"
    assert lane.room(NOW + 1) == 1
    lane.backlog.extend(jobs(2, "long"))
    lane.hand_out(NOW)
    assert (len(old.runs), len(new.runs), len(lane.backlog)) == (3, 1, 1)


def test_a_free_slot_does_not_wait_for_others(hands):
    """One of a hundred slots is claimed for when it has been free for a twentieth of what its jobs take, together with those beside it."""
    lane = known(hands.lane(THREADS, wanted=1, capacity=100), steady=100)
    lane.backlog.extend(jobs(99, "steady"))
    lane.hand_out(NOW)
    assert lane.room(NOW) == 0
    [at] = [at for at in lane.next_deadline(NOW) if at > NOW]
    assert at == pytest.approx(NOW + 0.005)
    assert lane.room(at) == 1


def begun(lane, count, task="steady", at=NOW):
    """So many jobs run since then."""
    lane.backlog.extend(jobs(count, task))
    lane.hand_out(at)
    assert not lane.backlog


@pytest.mark.parametrize(("kind", "wanted", "capacity"), [(PROCESS, 20, 1), (THREADS, 1, 20), (ASYNC, 2, 10)])
def test_jobs_are_claimed_for_slots_that_are_about_to_come_free(hands, kind, wanted, capacity):
    """As many as end in the time that a claim takes, by the mean run time; a lane whose slots all started at once wakes up for it."""
    lane = known(hands.lane(kind, wanted, capacity), steady=100)
    begun(lane, 20)
    assert lane.early(NOW) == 0
    due = NOW + 0.1 - AHEAD
    assert min(at for at in lane.next_deadline(NOW) if at > NOW) == pytest.approx(due)
    assert lane.room(due + 0.001) == 0
    assert lane.early(due + 0.001) == 20 * AHEAD / 0.1
    lane.backlog.extend(jobs(2, "steady"))
    assert lane.early(due + 0.001) == 2
    lane.backlog.extend(jobs(1, "steady"))
    assert lane.early(due + 0.001) == 0, "as few as one more are not worth a claim"


def test_jobs_that_were_claimed_early_do_not_wait_for_what_is_late(hands):
    """They stay while the slots should be coming free, and go back to the queue when these did not; then none is claimed early."""
    lane = known(hands.lane(wanted=3), steady=150)
    begun(lane, 3)
    lane.backlog.extend(jobs(1, "steady"))
    for at in (0.14, 0.16, 0.15 + STALE * 0.9):
        lane.rebalance(NOW + at)
        assert len(lane.backlog) == 1
        assert lane.early(NOW + at) == 0
    late = NOW + 0.15 + STALE * 1.1
    lane.rebalance(late)
    assert not lane.backlog
    assert [outcome.ending for outcome in lane.outcomes] == [Ending.RELEASE]
    assert lane.early(late) == 0
    assert not [at for at in lane.next_deadline(late) if at > late]


def test_no_job_is_claimed_early_that_could_wait_in_a_child_or_whose_like_is_unknown(hands):
    """Short jobs are in their child already; of a task that has not ended here nobody knows when it will."""
    short = known(hands.lane(wanted=1), short=5)
    begun(short, 1, "short")
    assert short.early(NOW + 0.004) == 0
    unknown = hands.lane(wanted=1)
    begun(unknown, 1, "unknown")
    assert unknown.early(NOW + 0.99) == 0
    leaving = known(hands.lane(wanted=1), steady=100)
    begun(leaving, 1)
    [child] = leaving.children.values()
    child.retired = True
    assert leaving.early(NOW + 0.09) == 0
    child.retired = False
    assert leaving.early(NOW + 0.09) == 1
    leaving.suspects.extend(jobs(1, suspect=True))
    assert leaving.early(NOW + 0.09) == 0


def test_suspects_of_a_shared_child_get_processes_of_their_own(hands):
    """They leave the backlog to the others; a few run beside the shared child, one job each, and the rest goes back to the queue in time."""
    lane = known(hands.lane(THREADS, wanted=1, capacity=8), long=5000)
    [shared] = lane.children.values()
    lane.backlog.extend([*jobs(MOST_SOLO + 2, suspect=True), *jobs(1, "long")])
    assert lane.hand_out(NOW) == []
    assert [run.job.task for run in shared.runs.values()] == ["long"]
    solo = []
    while lane.wants_solo():
        solo.append(hands.child(lane, solo=True, capacity=1))
    assert len(solo) == MOST_SOLO
    reserved = lane.hand_out(NOW)
    assert [job.suspect for job in reserved] == [True] * MOST_SOLO
    asked = {job.id for job in reserved}
    lane.begin(asked, asked, NOW)
    assert [len(child.runs) for child in solo] == [1] * MOST_SOLO
    assert len(lane.suspects) == 2
    lane.rebalance(NOW + STALE * 2)
    assert not lane.suspects
    assert len(lane.outcomes) == 2
    for child in solo:
        done(lane, child, read(child))
    lane.rebalance(NOW)
    assert all(child.retired for child in solo)


def test_a_child_that_died_young_is_replaced_a_second_after_its_start(hands):
    """One that has lived for longer was killed by somebody, and is replaced at once: no storm of forks, and no wait for nothing."""
    lane = hands.lane(wanted=1)
    old = lane.children.popitem()[1]
    old.forked_at = NOW - 60
    lane.lost(old, NOW)
    assert lane.missing(NOW) == 1
    young = hands.child(lane, forked_at=NOW)
    del lane.children[young.number]
    lane.lost(young, NOW + 0.01)
    assert lane.missing(NOW + 0.01) == 0
    assert NOW + REPLACE_AFTER in lane.next_deadline(NOW)
    assert lane.missing(NOW + REPLACE_AFTER + 0.01) == 1


def test_cancelled_before_anybody_began(hands):
    """Jobs that wait are cancelled where they wait, suspects too."""
    lane = hands.lane(THREADS, wanted=1, capacity=1)
    lane.backlog.extend(jobs(3))
    lane.suspects.extend(jobs(1, suspect=True))
    wanted = {lane.backlog[0].id, lane.suspects[0].id}
    lane.drop_waiting(wanted)
    assert {outcome.id for outcome in lane.outcomes} == wanted
    assert {outcome.ending for outcome in lane.outcomes} == {Ending.ABORT}
    assert len(list(lane.in_flight())) == 2
    assert lanes.MOST_SOLO > 0
