"""Any sequence of what applications, workers and operators may do leaves the database exactly where a small model says."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import psycopg
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from jobrunner.errors import DuplicateJob, IllegalTransition, JobNotFound
from jobrunner.jobs import Ending, Floor, Leaving, Outcome, Succeeded, Unsuccessful, WorkerCounts, WorkerSight
from jobrunner.states import FINISHED, LIVE, State
from tests.support.rows import TASK, Scene

if TYPE_CHECKING:
    from collections.abc import Iterator

EXAMPLES, STEPS = 150, 50  # about 15 s
LEASE = timedelta(hours=1)  # nothing expires by itself while a sequence runs
LATER_MS = 3_600_000  # a pause that only time travel ends
PRIORITIES = (-1, 0, 1)
COUNTS = WorkerCounts()
FACTS = {"name": "w", "host": "h", "pid": 1, "kind": "test", "version": "0", "queues": ["default"], "tasks": [TASK], "slots": 1}


class Seen(NamedTuple):
    """What model and database must agree on for one job."""

    state: State
    attempt: int
    max_attempts: int
    crash_count: int
    lease: int
    worker: int | None
    started: bool
    cancel_requested: bool
    due: bool


@dataclass
class Job:
    """The model of a job."""

    priority: int
    max_attempts: int
    max_crashes: int
    unique_key: str | None
    due: bool
    state: State = State.QUEUED
    attempt: int = 0
    crash_count: int = 0
    lease: int = 0
    worker: int | None = None
    started: bool = False
    cancel_requested: bool = False

    def seen(self) -> Seen:
        running = self.state is State.RUNNING
        return Seen(
            self.state, self.attempt, self.max_attempts, self.crash_count, self.lease, self.worker if running else None,
            self.started and running, self.cancel_requested and running, self.due or self.state is not State.QUEUED,
        )  # fmt: skip

    def queue_again(self, *, due: bool, give_back: bool) -> None:
        self.state, self.due, self.cancel_requested, self.started = State.QUEUED, due, False, False
        self.attempt = max(0, self.attempt - give_back)

    def crash(self, *, counted: bool = True) -> None:
        """The process of the attempt died; `counted` when the job is charged."""
        if counted and self.crash_count + 1 >= self.max_crashes:
            self.state, self.crash_count = State.QUARANTINED, self.crash_count + 1
            return
        self.queue_again(due=not counted or self.crash_count == 0, give_back=True)
        self.crash_count += counted

    def end(self, ending: Ending | None, *, delayed: bool) -> None:
        """An accepted outcome; None is success."""
        if ending is None:
            self.state, self.crash_count = State.SUCCEEDED, 0
        elif self.cancel_requested or ending is Ending.ABORT:
            self.state = State.CANCELLED
        elif ending is Ending.FAIL or (ending is Ending.RETRY and self.attempt >= self.max_attempts):
            self.state = State.FAILED
        elif ending is Ending.CRASH:
            self.crash()
        elif ending is Ending.RELEASE:
            self.queue_again(due=True, give_back=True)
        else:
            self.crash_count = 0
            self.queue_again(due=not delayed, give_back=ending is Ending.SNOOZE)

    def rescue(self) -> None:
        """Its worker was lost."""
        if self.cancel_requested:
            self.state = State.CANCELLED
        else:
            self.crash(counted=self.started or (self.crash_count == 0 and self.max_crashes > 1))


@dataclass
class Worker:
    """The model of a worker, and what it remembers."""

    id: int
    expired: bool = False
    stopped: bool = False
    looked_at: bool = False  # by a rescue, less than a minute ago

    @property
    def alive(self) -> bool:
        return not self.expired and not self.stopped


class Machine(RuleBasedStateMachine):
    """Three workers, any number of jobs, leases remembered long after they were superseded."""

    def __init__(self, scene: Scene) -> None:
        super().__init__()
        self.scene, self.store = scene, scene.store
        for table in ("jobs", "job_history", "job_attempts", "workers"):
            scene.execute(f"DELETE FROM jobrunner.{table}")
        self.jobs: dict[int, Job] = {}
        self.leases: list[tuple[int, int]] = []
        self.workers = [self.new_worker() for _ in range(3)]
        self.floors: dict[tuple[int, int], Floor] = {}

    def new_worker(self) -> Worker:
        worker_id = self.store.register_worker(FACTS, LEASE)
        assert worker_id is not None
        return Worker(worker_id)

    def pick(self, data: st.DataObject, label: str) -> int:
        return data.draw(st.sampled_from(sorted(self.jobs)), label=label)

    def live_with(self, key: str | None) -> list[int]:
        return [job_id for job_id, job in self.jobs.items() if key is not None and job.unique_key == key and job.state in LIVE]

    # -- applications

    @rule(
        priority=st.sampled_from(PRIORITIES), delayed=st.booleans(), max_attempts=st.integers(1, 3), max_crashes=st.integers(1, 3),
        unique_key=st.sampled_from([None, None, "a", "b"]),
    )  # fmt: skip
    def enqueue(self, priority: int, delayed: bool, max_attempts: int, max_crashes: int, unique_key: str | None) -> None:
        columns: dict[str, Any] = {"priority": priority, "max_attempts": max_attempts, "max_crashes": max_crashes, "unique_key": unique_key}
        columns |= {"lease": 0, "backoff": "constant", "backoff_base": "2 hours", "backoff_cap": "2 hours", "backoff_jitter": 0}
        columns["run_at"] = "=now() + interval '2 hours'" if delayed else "=now()"
        if self.live_with(unique_key):
            with pytest.raises(psycopg.errors.UniqueViolation):
                self.scene.job(**columns)
            return
        job_id = self.scene.job(**columns)
        self.jobs[job_id] = Job(priority, max_attempts, max_crashes, unique_key, due=not delayed)

    # -- workers

    @rule(who=st.integers(0, 2), priority=st.sampled_from(PRIORITIES), take=st.integers(1, 4), from_floor=st.booleans())
    def claim(self, who: int, priority: int, take: int, from_floor: bool) -> None:
        worker = self.workers[who]
        floor = self.floors.get((worker.id, priority)) if from_floor else None
        keys = dict(self.scene.execute("SELECT id, run_at FROM jobrunner.jobs").fetchall())
        waiting = [job_id for job_id, job in self.jobs.items() if job.state is State.QUEUED and job.due and job.priority == priority]
        behind = sorted((keys[job_id], job_id) for job_id in waiting if floor is None or (keys[job_id], job_id) > tuple(floor))
        expected = [job_id for _, job_id in behind][:take] if worker.alive else []

        claimed = self.store.claim(worker.id, [TASK], "default", priority, take, floor)

        assert [job.id for job in claimed] == expected
        for found in claimed:
            job = self.jobs[found.id]
            job.state, job.worker, job.lease, job.attempt, job.started = State.RUNNING, worker.id, job.lease + 1, job.attempt + 1, False
            assert (found.lease, found.attempt, found.suspect) == (job.lease, job.attempt, job.crash_count > 0 or job.max_crashes == 1)
            self.leases.append((found.id, found.lease))
            self.floors[worker.id, priority] = Floor(found.run_at, found.id)

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def start(self, data: st.DataObject) -> None:
        job_id, lease = data.draw(st.sampled_from(self.leases), label="attempt")
        holds = self.holds(job_id, lease)
        assert self.store.start([(job_id, lease, 1.0)]) == ({job_id} if holds else set())
        self.jobs[job_id].started |= holds

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        attempts = data.draw(st.lists(st.sampled_from(self.leases), min_size=1, max_size=4, unique=True), label="attempts")
        outcomes: list[Outcome] = []
        endings = {attempt: data.draw(st.sampled_from([None, *Ending]), label="ending") for attempt in attempts}
        delayed = data.draw(st.booleans(), label="delayed")
        for (job_id, lease), ending in endings.items():
            pause = LATER_MS if delayed else 0
            success = Succeeded(job_id, lease, None, 1, 1, 1.0)
            outcomes.append(success if ending is None else Unsuccessful(ending, job_id, lease, run_ms=1, delay_ms=pause))
        refused = [outcome for outcome in outcomes if not self.holds(outcome.id, outcome.lease)]
        for (job_id, lease), ending in endings.items():
            if self.holds(job_id, lease):
                self.jobs[job_id].end(ending, delayed=delayed)
        assert sorted(self.store.finish(outcomes), key=str) == sorted(refused, key=str)

    def holds(self, job_id: int, lease: int) -> bool:
        """Whether an attempt has not been superseded."""
        return self.jobs[job_id].state is State.RUNNING and self.jobs[job_id].lease == lease

    @rule(who=st.integers(0, 2))
    def heartbeat(self, who: int) -> None:
        worker = self.workers[who]
        assert self.store.heartbeat(worker.id, LEASE, WorkerSight(), COUNTS) is worker.alive

    @rule(who=st.integers(0, 2))
    def held_jobs(self, who: int) -> None:
        worker = self.workers[who].id
        expected = {(job_id, job.lease, job.cancel_requested) for job_id, job in self.running_under(worker)}
        assert set(self.store.held_jobs(worker)) == expected

    def running_under(self, worker: int) -> Iterator[tuple[int, Job]]:
        """The model's jobs that a worker runs."""
        return ((job_id, job) for job_id, job in self.jobs.items() if job.state is State.RUNNING and job.worker == worker)

    @rule(who=st.integers(0, 2))
    def lease_ends(self, who: int) -> None:
        self.scene.age_worker(self.workers[who].id)
        self.workers[who].expired = True

    @rule(who=st.integers(0, 2))
    def stop_worker(self, who: int) -> None:
        self.store.stop_worker(self.workers[who].id, Leaving("done"), COUNTS)
        self.workers[who].stopped = True

    @rule(who=st.integers(0, 2))
    def replace_worker(self, who: int) -> None:
        if not self.workers[who].alive and self.workers[who].looked_at:
            self.workers[who] = self.new_worker()

    @rule()
    def rescue(self) -> None:
        gone = [worker for worker in self.workers if not worker.alive and not worker.looked_at]
        jobs = [job for worker in gone for _, job in self.running_under(worker.id)]
        found, moved = self.store.rescue()
        assert {worker.id for worker in found} == {worker.id for worker in gone if not worker.stopped}
        assert moved == len(jobs)
        for job in jobs:
            job.rescue()
        for worker in gone:
            worker.stopped = worker.looked_at = True

    # -- operators

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job = self.jobs[job_id := self.pick(data, "job")]
        if job.state in FINISHED:
            with pytest.raises(IllegalTransition):
                self.store.cancel(job_id)
        elif job.state is State.QUEUED:
            assert self.store.cancel(job_id) == "cancelled"
            job.state = State.CANCELLED
        else:
            assert self.store.cancel(job_id) == "requested"
            job.cancel_requested = True

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def requeue(self, data: st.DataObject) -> None:
        job = self.jobs[job_id := self.pick(data, "job")]
        if job.state in {State.RUNNING, State.SUCCEEDED}:
            with pytest.raises(IllegalTransition):
                self.store.requeue(job_id)
        elif job.state in FINISHED and (rivals := self.live_with(job.unique_key)):
            with pytest.raises(DuplicateJob) as refused:
                self.store.requeue(job_id)
            assert [refused.value.job_id] == rivals
        else:
            assert self.store.requeue(job_id) == "default"
            if job.state in FINISHED:
                job.max_attempts, job.crash_count = max(job.max_attempts, job.attempt + 1), 0
            job.queue_again(due=True, give_back=False)

    @rule(data=st.data())
    def unknown_ids(self, data: st.DataObject) -> None:
        unknown = max(self.jobs, default=0) + data.draw(st.integers(1, 2**40), label="distance")
        for verb in (self.store.cancel, self.store.requeue):
            with pytest.raises(JobNotFound):
                verb(unknown)

    @rule()
    def time_passes(self) -> None:
        self.scene.execute("UPDATE jobrunner.jobs SET run_at = run_at - interval '3 hours' WHERE state = 'queued'")
        for job in self.jobs.values():
            job.due |= job.state is State.QUEUED

    # -- what must hold after each of these

    @invariant()
    def the_database_is_where_the_model_is(self) -> None:
        rows = self.scene.execute(
            "SELECT id, state, attempt, max_attempts, crash_count, lease, worker_id,"
            " started_at IS NOT NULL, cancel_requested_at IS NOT NULL, state = 'running' OR run_at <= now() FROM jobrunner.jobs"
            " UNION ALL SELECT id, state, attempt, max_attempts, crash_count, lease, NULL, false, false, true FROM jobrunner.job_history"
        ).fetchall()
        assert len(rows) == len(self.jobs), "a job is in both tables, or in none"
        assert {row[0]: Seen(State(row[1]), *row[2:]) for row in rows} == {job_id: job.seen() for job_id, job in self.jobs.items()}

    @invariant()
    def a_unique_key_is_live_once(self) -> None:
        assert all(len(self.live_with(key)) <= 1 for key in "ab")


def test_any_sequence_of_calls_keeps_database_and_model_together(connection):
    """Every accepted job exists exactly once, with the state, counts and lease that the model has, whatever was done in whatever order."""
    scene = Scene(cast("psycopg.Connection[Any]", connection))
    limits = settings(settings(), max_examples=EXAMPLES, stateful_step_count=STEPS)
    run_state_machine_as_test(lambda: Machine(scene), settings=limits)  # type: ignore[arg-type]  # it calls what it is given
