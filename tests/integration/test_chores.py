"""The rare steps beside the work: whatever a step waits for or meets, jobs are claimed and finished meanwhile."""

from __future__ import annotations

import threading
from datetime import timedelta
from functools import partial

import psycopg
import pytest

from jobrunner import clock, jitter
from jobrunner.claimer import Claimer, Room
from jobrunner.jobs import Succeeded
from jobrunner.maintenance.history import Removed
from jobrunner.settings import parse_dsn
from jobrunner.store import Store
from jobrunner.worker import chores as thread
from jobrunner.worker import upkeep
from jobrunner.worker.link import MAINTENANCE, Link
from tests.support.rows import Scene
from tests.support.sessions import sessions_on
from tests.support.waiting import wait_until
from tests.support.workers import insert

TASK, POLL, SLOTS = "send", 0.02, 5
PATIENCE = 30  # seconds
TABLE = "jobrunner.retention"  # what the steps of these tests want to lock
OF_UPKEEP = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = %s"
END_UPKEEP = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name = %s"
BLOCKED = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = %s::regclass"


class Locking:
    """A step that locks a table, and takes its time over it if told to."""

    def __init__(self):
        self.taken = 0
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()

    def __call__(self, store):
        self.begun.set()
        assert self.go_on.wait(PATIENCE)
        with store.connection.transaction():
            store.connection.execute(f"LOCK TABLE {TABLE} IN ACCESS EXCLUSIVE MODE")
        self.taken += 1
        return Removed()


class Failing:
    """A step that the server refuses."""

    def __init__(self):
        self.taken = 0

    def __call__(self, store):
        self.taken += 1
        store.connection.execute("SELECT 1 / 0")


class Bench:
    """Links that run nothing: what they claim is said to have succeeded at once."""

    def __init__(self, dsn, connection):
        self.dsn, self.scene = dsn, Scene(connection)
        self.links: list[Link] = []

    def link(self, *chores) -> Link:
        """One that claims and whose steps are due at once."""
        link = Link(parse_dsn(self.dsn, "test"), [Claimer(["default"], [TASK], POLL)], lambda: None, chores)
        link.join_as(self.scene.worker())
        link.exchange([], [], [Room(SLOTS)], 0)
        link.start()
        self.links.append(link)
        return link

    def finish_jobs(self, link: Link, number: int) -> None:
        """Enqueue some jobs, and wait until they are claimed and finished."""
        before = self.scene.one("SELECT count(*) FROM jobrunner.job_history")
        insert(self.dsn, TASK, number)
        seen = 0

        def all_finished() -> bool:
            nonlocal seen
            assert link.fatal is None
            while link.events:
                event, value = link.events.popleft()
                if event == "claimed":
                    seen += 1
                    jobs = value[1][0]
                    link.exchange([Succeeded(job.id, job.lease, None, 1, 1, clock.monotonic()) for job in jobs], [], [Room(SLOTS)], seen)
            return bool(self.scene.one("SELECT count(*) FROM jobrunner.job_history") == before + number)

        wait_until(all_finished, timeout=PATIENCE, what=f"{number} jobs to be finished")

    def sessions(self) -> int:
        """Connections that are there for upkeep."""
        return int(self.scene.one(OF_UPKEEP, (thread.SESSION,)))

    def end(self, link: Link, *, tidy: bool = False) -> None:
        """As the supervisor does."""
        link.close(tidy=tidy)
        link.join(PATIENCE)
        assert not link.is_alive()


@pytest.fixture
def at_once(monkeypatch):
    """Steps are due as soon as a worker has begun, and again at every look."""
    for name in ("CHORES", "CHORES_AGAIN", "FAILED_AGAIN"):
        monkeypatch.setattr(upkeep, name, 0.0)
    monkeypatch.setattr(thread, "FAILED_AGAIN", 0.0)
    monkeypatch.setattr(thread, "TURN_AGAIN", 0.0)


@pytest.fixture
def bench(dsn, connection, at_once):
    made = Bench(dsn, connection)
    yield made
    for link in made.links:
        if link.is_alive():
            made.end(link)


def test_jobs_are_finished_while_a_step_waits_for_a_lock(bench):
    """A step that somebody's lock holds up holds up no job, and is through when the lock is gone."""
    step = Locking()
    with sessions_on(bench.dsn) as sessions:
        holder = sessions()
        holder.execute("BEGIN")
        holder.execute(f"LOCK TABLE {TABLE} IN ACCESS EXCLUSIVE MODE")
        link = bench.link(step)
        wait_until(lambda: bench.scene.one(BLOCKED, (TABLE,)), timeout=PATIENCE, what="the step to wait for the lock")
        bench.finish_jobs(link, 3 * SLOTS)
        assert step.taken == 0
        holder.execute("ROLLBACK")
        wait_until(lambda: step.taken, timeout=PATIENCE, what="the step to be taken")


def test_jobs_are_finished_while_a_step_is_slow(bench):
    """A step that takes long, such as files that are being removed, holds up no job."""
    step = Locking()
    step.go_on.clear()
    link = bench.link(step)
    assert step.begun.wait(PATIENCE)
    bench.finish_jobs(link, 3 * SLOTS)
    step.go_on.set()
    wait_until(lambda: step.taken, timeout=PATIENCE, what="the step to be taken")


def test_the_connection_is_there_for_the_steps_only(bench, monkeypatch):
    """Between its steps a worker holds no connection for them."""
    monkeypatch.setattr(upkeep, "CHORES", 3600.0)
    monkeypatch.setattr(jitter, "between", lambda *_: 0.0)
    step = Locking()
    step.go_on.clear()
    bench.link(step)
    assert step.begun.wait(PATIENCE)
    assert bench.sessions() == 1
    step.go_on.set()
    wait_until(lambda: step.taken and not bench.sessions(), timeout=PATIENCE, what="the connection to be closed")


def test_one_worker_at_a_time_takes_steps(bench):
    """While one worker is at it no other opens a connection for its own steps; afterwards they do."""
    first, second = Locking(), Locking()
    first.go_on.clear()
    bench.link(first)
    assert first.begun.wait(PATIENCE)
    other = bench.link(second)
    looks = []
    take_turn, asked = Store.take_turn, threading.Event()

    def counted(store, worker_id, turn):
        taken = take_turn(store, worker_id, turn)
        if worker_id == other.worker_id:
            looks.append(taken)
            asked.set()
        return taken

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "take_turn", counted)
        assert asked.wait(PATIENCE)
        assert (looks[0], bench.sessions(), second.begun.is_set()) == (False, 1, False)
        first.go_on.set()
        wait_until(lambda: second.taken, timeout=PATIENCE, what="the other worker to have its turn")


def test_a_step_that_fails_ends_neither_the_worker_nor_the_other_steps(bench, caplog):
    """What the server refuses is logged and tried again; jobs and the other steps go on."""
    broken, sound = Failing(), Locking()
    link = bench.link(broken, sound)
    wait_until(lambda: broken.taken > 1 and sound.taken > 1, timeout=PATIENCE + 2 * MAINTENANCE, what="both to be taken twice")
    bench.finish_jobs(link, SLOTS)
    said = [(record.message, record.step, record.error) for record in caplog.records if hasattr(record, "step")]
    assert ("upkeep failed; will try again", "Failing", "DivisionByZero") in said


def test_a_lost_connection_is_no_end_of_upkeep(bench):
    """A server that ends the connection in the middle of a step ends that step; it is taken later, and jobs go on."""
    step = Locking()
    with sessions_on(bench.dsn) as sessions:
        holder = sessions()
        holder.execute("BEGIN")
        holder.execute(f"LOCK TABLE {TABLE} IN ACCESS EXCLUSIVE MODE")
        link = bench.link(step)
        wait_until(lambda: bench.scene.one(BLOCKED, (TABLE,)), timeout=PATIENCE, what="the step to wait for the lock")
        bench.scene.execute(END_UPKEEP, (thread.SESSION,))
        wait_until(lambda: not bench.scene.one(BLOCKED, (TABLE,)) or step.begun.is_set(), timeout=PATIENCE, what="its end")
        bench.finish_jobs(link, SLOTS)
        holder.execute("ROLLBACK")
        bench.scene.execute("UPDATE jobrunner.upkeep_turn SET until = now()")  # else the dead session's turn lasts two minutes
        wait_until(lambda: step.taken, timeout=PATIENCE, what="the step to be taken after all")


def test_a_worker_leaves_although_a_step_is_held_up(bench, monkeypatch):
    """The end breaks off a step that waits, after a bounded time; nothing of it stays."""
    monkeypatch.setattr(thread, "LAST_STEP", 0.05)
    step = Locking()
    with sessions_on(bench.dsn) as sessions:
        holder = sessions()
        holder.execute("BEGIN")
        holder.execute(f"LOCK TABLE {TABLE} IN ACCESS EXCLUSIVE MODE")
        link = bench.link(step)
        wait_until(lambda: bench.scene.one(BLOCKED, (TABLE,)), timeout=PATIENCE, what="the step to wait for the lock")
        link.close(tidy=False)
        link.join(PATIENCE)
        assert not link.is_alive()
        wait_until(lambda: not bench.sessions(), timeout=PATIENCE, what="the connection to be closed")
        holder.execute("ROLLBACK")
    assert step.taken == 0


def test_who_leaves_tidily_takes_the_steps(bench, monkeypatch):
    """A worker that does not stay takes its steps when it leaves, on the connection that it has."""
    monkeypatch.setattr(upkeep, "CHORES", 3600.0)
    step = Locking()
    link = bench.link(step)
    bench.finish_jobs(link, SLOTS)
    assert step.taken == 0
    bench.end(link, tidy=True)
    assert step.taken == 1


class TestTurns:
    """`take_turn`: one worker at a time, for a bounded time."""

    @pytest.fixture
    def own(self, dsn):
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("DELETE FROM jobrunner.upkeep_turn")
            yield Scene(connection)

    def test_a_turn_is_one_workers_until_it_ends(self, own):
        """Who has it keeps it and may take it again; the next has it as soon as it is given back."""
        minute = timedelta(minutes=1)
        assert [own.store.take_turn(worker, minute) for worker in (1, 2, 1, 2)] == [True, False, True, False]
        assert own.store.take_turn(1, timedelta(0))
        assert [own.store.take_turn(worker, minute) for worker in (2, 1)] == [True, False]

    def test_a_turn_ends_by_itself(self, own):
        """Whose time is over, because it died at it, keeps nobody from its turn."""
        assert own.store.take_turn(1, timedelta(minutes=1))
        own.execute("UPDATE jobrunner.upkeep_turn SET until = now() - interval '1 ms'")
        assert own.store.take_turn(2, timedelta(minutes=1))

    @pytest.mark.parametrize("empty", [True, False])
    def test_of_many_at_once_one_has_it_and_none_waits(self, own, dsn, empty):
        """However many ask at once, one gets the turn; the others hear so at once, also while its transaction is open."""
        if not empty:
            own.store.take_turn(9, timedelta(0))
        with sessions_on(dsn) as sessions:
            asking = [sessions() for _ in range(8)]
            answers = [each.call(partial(each.store.take_turn, number, timedelta(minutes=1))) for number, each in enumerate(asking)]
            assert sorted(answer.result(PATIENCE) for answer in answers) == [False] * 7 + [True]
            own.execute("BEGIN")
            own.execute("UPDATE jobrunner.upkeep_turn SET until = now() - interval '1 ms'")
            impatient = sessions.impatient()
            assert not impatient.store.take_turn(99, timedelta(minutes=1))
            own.execute("ROLLBACK")
