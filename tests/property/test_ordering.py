"""Whatever applications, workers and operators do in whatever order: of an ordering key one job runs at a time, in the order of ids."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from jobrunner.jobs import Ending, Succeeded, Unsuccessful, Walk
from jobrunner.states import State
from tests.support.rows import TASK, Scene

if TYPE_CHECKING:
    import psycopg

EXAMPLES, STEPS = 120, 40  # about 15 s
LEASE = timedelta(hours=1)  # nothing expires by itself while a sequence runs
LATER_MS = 3_600_000  # a pause that only time travel ends
KEYS = (None, "a", "b", "c")
PRIORITIES = (0, 1)
FACTS = {"name": "w", "host": "h", "pid": 1, "kind": "test", "version": "0", "queues": ["default"], "tasks": [TASK], "slots": 1}


@dataclass
class Job:
    """The model of a job."""

    key: str | None
    priority: int
    due: bool
    state: State = State.QUEUED
    lease: int = 0
    worker: int = 0


class Machine(RuleBasedStateMachine):
    """Two workers and a few keys; each claim is compared with what the model says is next."""

    def __init__(self, scene: Scene) -> None:
        super().__init__()
        self.scene, self.store = scene, scene.store
        for table in ("jobs", "job_history", "job_attempts", "workers"):
            scene.execute(f"DELETE FROM jobrunner.{table}")
        self.jobs: dict[int, Job] = {}
        self.workers = [self.store.register_worker(FACTS, LEASE) for _ in range(2)]

    def live(self, key: str) -> dict[int, Job]:
        """The jobs of a key that are not finished, the oldest first."""
        return {job_id: job for job_id, job in sorted(self.jobs.items()) if job.key == key and job.state in (State.QUEUED, State.RUNNING)}

    def heads(self, priority: int) -> dict[str, int]:
        """Of each key that has one: the job which may begin now."""
        found = {}
        for key in KEYS[1:]:
            live = self.live(str(key))
            if live and not any(job.state is State.RUNNING for job in live.values()):
                job_id, job = next(iter(live.items()))
                if job.due and job.priority == priority:
                    found[str(key)] = job_id
        return found

    def behind(self) -> list[int]:
        """Those that wait behind others of their key, of which none runs."""
        lives = [self.live(str(key)) for key in KEYS[1:]]
        return [job_id for live in lives if all(job.state is State.QUEUED for job in live.values()) for job_id in list(live)[1:]]

    def running(self) -> list[int]:
        """What runs."""
        return sorted(job_id for job_id, job in self.jobs.items() if job.state is State.RUNNING)

    @rule(key=st.sampled_from(KEYS), priority=st.sampled_from(PRIORITIES), due=st.booleans(), count=st.integers(1, 3))
    def enqueue(self, key: str | None, priority: int, due: bool, count: int) -> None:
        for _ in range(count):
            run_at = "=now()" if due else "=now() + interval '2 hours'"
            job_id = self.scene.job(ordering_key=key, priority=priority, run_at=run_at, lease=0, max_crashes=9, max_attempts=3)
            self.jobs[job_id] = Job(key, priority, due)

    @rule(who=st.integers(0, 1), priority=st.sampled_from(PRIORITIES), take=st.integers(1, 4), given=st.sampled_from(["", "a", "b"]))
    def claim_ordered(self, who: int, priority: int, take: int, given: str) -> None:
        heads = self.heads(priority)
        walk = Walk(keys=9, given=(given,) if given else ())
        found = self.store.claim_ordered(self.workers[who], [TASK], "default", priority, take, walk)
        claimed = [job.id for job in found.jobs]
        assert set(claimed) <= set(heads.values()), "a job that is not the next of its key, or whose key runs"
        assert len(claimed) == min(take, len(heads))
        self.began(who, found.jobs)

    @rule(who=st.integers(0, 1), key=st.sampled_from(KEYS[1:]), priority=st.sampled_from(PRIORITIES))
    def claim_one_key(self, who: int, key: str, priority: int) -> None:
        self.claim_of(who, key, priority)

    def claim_of(self, who: int, key: str, priority: int) -> None:
        found = self.store.claim_ordered(self.workers[who], [TASK], "default", priority, 4, Walk(given=(key,)))
        assert [job.id for job in found.jobs] == ([self.heads(priority)[key]] if key in self.heads(priority) else [])
        self.began(who, found.jobs)

    @rule(who=st.integers(0, 1), priority=st.sampled_from(PRIORITIES))
    def claim_plain(self, who: int, priority: int) -> None:
        claimed = self.store.claim(self.workers[who], [TASK], "default", priority, 9)
        assert all(self.jobs[job.id].key is None for job in claimed)
        self.began(who, claimed)

    def began(self, who: int, claimed: list[Any]) -> None:
        for found in claimed:
            job = self.jobs[found.id]
            job.state, job.lease, job.worker = State.RUNNING, found.lease, self.workers[who]
            assert found.ordering_key == job.key

    @precondition(lambda self: self.running())
    @rule(data=st.data(), ending=st.sampled_from([None, *Ending]), delayed=st.booleans())
    def finish(self, data: st.DataObject, ending: Ending | None, delayed: bool) -> None:
        job_id = data.draw(st.sampled_from(self.running()), label="job")
        job = self.jobs[job_id]
        pause = LATER_MS if delayed else 0
        outcome = Succeeded(job_id, job.lease, None, 1, 1, 1.0)
        refused = self.store.finish([outcome if ending is None else Unsuccessful(ending, job_id, job.lease, run_ms=1, delay_ms=pause)])
        assert refused == []
        row = self.scene.row(job_id)
        job.state = State(row["state"])
        job.due = job.state is not State.QUEUED or bool(self.scene.one("SELECT run_at <= now() FROM jobrunner.jobs WHERE id = %s", (job_id,)))

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        waiting = sorted(job_id for job_id, job in self.jobs.items() if job.state is State.QUEUED)
        if waiting:
            job_id = data.draw(st.sampled_from(waiting), label="job")
            assert self.store.cancel(job_id) == "cancelled"
            self.jobs[job_id].state = State.CANCELLED

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def bring_back(self, data: st.DataObject) -> None:
        gone = sorted(job_id for job_id, job in self.jobs.items() if job.state in (State.FAILED, State.CANCELLED, State.QUARANTINED))
        if gone:
            job_id = data.draw(st.sampled_from(gone), label="job")
            self.store.requeue(job_id)
            self.jobs[job_id].state, self.jobs[job_id].due = State.QUEUED, True

    @precondition(lambda self: self.jobs)
    @rule()
    def redrive_all(self) -> None:
        dead = sorted(job_id for job_id, job in self.jobs.items() if job.state in (State.FAILED, State.QUARANTINED))
        assert sorted(self.scene.run("redrive", {"queue": "default", "task": TASK, "ids": dead})) == dead
        for job_id in dead:
            self.jobs[job_id].state, self.jobs[job_id].due = State.QUEUED, True

    @precondition(lambda self: self.behind())
    @rule(data=st.data(), who=st.integers(0, 1), failed=st.booleans())
    def come_back_before_one_that_runs(self, data: st.DataObject, who: int, failed: bool) -> None:
        """Those before a job fail, or are cancelled; it begins, and one of them comes back: the other rules hardly ever meet in this order."""
        job_id = data.draw(st.sampled_from(self.behind()), label="job")
        key = str(self.jobs[job_id].key)
        before = [each for each in self.live(key) if each < job_id]
        for each in before:
            if failed:
                self.begin(who, each)
                assert self.store.finish([Unsuccessful(Ending.FAIL, each, self.jobs[each].lease, run_ms=1)]) == []
            else:
                assert self.store.cancel(each) == "cancelled"
            self.jobs[each].state = State.FAILED if failed else State.CANCELLED
        self.begin(who, job_id)
        old = data.draw(st.sampled_from(before), label="comes back")
        if failed:
            assert self.scene.run("redrive", {"queue": "default", "task": TASK, "ids": [old]}) == [old]
        else:
            self.store.requeue(old)
        self.jobs[old].state, self.jobs[old].due = State.QUEUED, True
        self.claim_of(1 - who, key, self.jobs[old].priority)
        assert (self.jobs[old].state, self.jobs[job_id].state) == (State.QUEUED, State.RUNNING)

    def begin(self, who: int, job_id: int) -> None:
        """Have a worker begin the next job of a key, due or not."""
        job = self.jobs[job_id]
        if not job.due:
            self.store.requeue(job_id)
            job.due = True
        self.claim_of(who, str(job.key), job.priority)
        assert job.state is State.RUNNING

    @rule(who=st.integers(0, 1))
    def worker_is_lost(self, who: int) -> None:
        worker = self.workers[who]
        self.scene.age_worker(worker)
        held = [job_id for job_id, job in self.jobs.items() if job.state is State.RUNNING and job.worker == worker]
        assert self.store.rescue()[1] == len(held)
        for job_id in held:
            row = self.scene.row(job_id)
            self.jobs[job_id].state = State(row["state"])
            self.jobs[job_id].due = bool(self.scene.one("SELECT bool_and(run_at <= now()) FROM jobrunner.jobs WHERE id = %s", (job_id,)))
        self.workers[who] = self.store.register_worker(FACTS, LEASE)

    @rule()
    def time_passes(self) -> None:
        self.scene.execute("UPDATE jobrunner.jobs SET run_at = run_at - interval '3 hours' WHERE state = 'queued'")
        for job in self.jobs.values():
            job.due |= job.state is State.QUEUED

    @invariant()
    def one_of_a_key_runs(self) -> None:
        rows = self.scene.execute("SELECT ordering_key, count(*) FROM jobrunner.jobs WHERE state = 'running' AND ordering_key IS NOT NULL GROUP BY 1")
        assert all(count == 1 for _, count in rows.fetchall())

    @invariant()
    def the_database_is_where_the_model_is(self) -> None:
        rows = self.scene.execute("SELECT id, state FROM jobrunner.jobs UNION ALL SELECT id, state FROM jobrunner.job_history").fetchall()
        assert dict(rows) == {job_id: job.state.value for job_id, job in self.jobs.items()}


def test_of_a_key_one_job_runs_at_a_time_and_the_oldest_first(connection):
    """A claim takes exactly the oldest unfinished jobs of keys of which none runs, whatever failed, was given back, lost, cancelled or returned."""
    scene = Scene(cast("psycopg.Connection[Any]", connection))
    limits = settings(settings(), max_examples=EXAMPLES, stateful_step_count=STEPS)
    run_state_machine_as_test(lambda: Machine(scene), settings=limits)  # type: ignore[arg-type]  # it calls what it is given
