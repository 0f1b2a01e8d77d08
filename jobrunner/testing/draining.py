"""Owns the loop that runs due jobs one after the other, each claimed and finished by a worker's statements, and what it reports.

It must not know where the jobs are (`ground` does) nor how one is run (`executing` does).
"""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg
import sqlalchemy as sa

from jobrunner.control import JobControl
from jobrunner.errors import ConfigurationError, JobrunnerError, NotDrained
from jobrunner.jobs import Floor, Leaving, Walk, WorkerCounts
from jobrunner.payload import parse_object
from jobrunner.places import OwnTransaction
from jobrunner.subscriptions import LOG
from jobrunner.testing.drained import Attempt, Drained
from jobrunner.testing.executing import execute
from jobrunner.testing.handles import SERVED, JobInTest
from jobrunner.topics.publishing import tell
from jobrunner.worker.deliveries import start
from jobrunner.worker.finisher import Finisher
from jobrunner.worker.notebook import write

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from jobrunner.app import JobRunner
    from jobrunner.handle import Job
    from jobrunner.jobs import ClaimedJob
    from jobrunner.testing.clock import Clock
    from jobrunner.testing.ground import Ground

LEASE = timedelta(hours=1)  # of the row that stands for the test among the workers: longer than a stop in a debugger
EXPIRED_AT_ONCE = 10_000  # jobs: more than a test has
SHOWN_ARGS = 200  # characters of the arguments in a note on an exception
_OURS = str(Path(__file__).resolve().parents[1]) + os.sep

# Due on the test's clock; and what was never tried is due as well when its time has come on the real one: in a long transaction
# now() lags, and a run_at that the app took from its own clock would be in the future of it.
_DUE = "(run_at <= coalesce(%(now)s::timestamptz, now()) OR (lease = 0 AND run_at <= clock_timestamp()))"
_ONE = "LIMIT 1 FOR UPDATE SKIP LOCKED"  # as a worker does: a row that another session holds is not waited for
# Of an ordering key only the next one, as in `claim_ordered.sql`.
_IN_TURN = (
    "(j.ordering_key IS NULL OR NOT EXISTS (SELECT FROM jobrunner.jobs o WHERE o.queue = j.queue AND o.ordering_key = j.ordering_key "
    "AND (o.id < j.id OR o.state = 'running')))"
)
_NEXT = (
    "SELECT id, task, queue, priority, run_at, ordering_key FROM jobrunner.jobs j "  # noqa: S608  texts of this file only
    f"WHERE state = 'queued' AND {_IN_TURN} AND task = ANY (%(tasks)s) "
    "AND (%(queues)s::text[] IS NULL OR queue = ANY (%(queues)s::text[])) "
    "AND (%(id)s::bigint IS NULL OR id = %(id)s::bigint) "
)
_NEXT_DUE = f"{_NEXT} AND {_DUE} ORDER BY priority, run_at, id {_ONE}"
_NEXT_EVER = f"{_NEXT} ORDER BY run_at, priority, id {_ONE}"
_MAKE_DUE = "UPDATE jobrunner.jobs SET run_at = least(run_at, now()) WHERE id = %s AND state = 'queued' RETURNING run_at"
_EXPIRED = "UPDATE jobrunner.jobs SET expires_at = least(expires_at, now()) WHERE state = 'queued' AND expires_at <= %s"
_GIVE_BACK_RUN_AT = "UPDATE jobrunner.jobs SET run_at = %s WHERE id = %s"
_COUNT_FROM_CLOCK = "UPDATE jobrunner.jobs SET run_at = run_at + (%s - now()) WHERE id = %s AND state = 'queued'"
_OUTCOME = "SELECT outcome FROM jobrunner.v_attempts WHERE job_id = %s AND lease = %s"


@dataclass(frozen=True, slots=True)
class Which:
    """Which jobs to run: names of tasks, queues (None: all), one job (None: all), and whether those that are not due yet are meant too."""

    tasks: Sequence[str]
    queues: Sequence[str] | None = None
    job_id: int | None = None
    with_scheduled: bool = False


class _Next(NamedTuple):
    id: int
    task: str
    queue: str
    priority: int
    run_at: datetime
    ordering_key: str | None


def event_loop() -> closing[asyncio.Runner]:
    """The loop for coroutines; made when the first one runs, since a thread that runs a loop may hold no other."""
    return closing(asyncio.Runner())


class Drainer:
    """Runs jobs of one JobRunner in this thread.

    Attributes:
        raised: what the code of the attempt that runs has raised; set by whoever enters `jobs.execution_context`.
    """

    def __init__(self, jobs: JobRunner, ground: Ground, clock: Clock) -> None:
        self._jobs = jobs
        self._ground = ground
        self._clock = clock
        self.raised: BaseException | None = None

    def drain(self, which: Which, limit: int, *, raise_errors: bool) -> Drained:
        """Run what is due, and what becomes due by that; see `testing.Jobs.drain`."""
        __tracebackhide__ = True
        attempts: list[Attempt] = []
        self._ground.before()
        try:
            with self._worker(which) as worker_id, event_loop() as runner:
                while (found := self._next(which) or self._delivering(which)) is not None:
                    if len(attempts) >= limit:
                        problem = f"next is job {found.id}, task {found.task!r}"
                        hint = "does a job enqueue or snooze itself for ever? else raise the limit: drain(limit=…)"
                        raise NotDrained(len(attempts), problem, hint=hint)
                    self.refuse_running_loop(found.task)
                    attempts.append(self._run(self._claimed(found, worker_id, len(attempts)), runner, raise_errors=raise_errors))
        finally:
            self._ground.after()
        return Drained(tuple(attempts))

    def run_once(self, task: str, job_id: int, *, raise_errors: bool) -> None:
        """Run one attempt of one job, if it is due."""
        __tracebackhide__ = True
        which = Which([task], job_id=job_id)
        self._ground.before()
        try:
            found = self._next(which)
            if found is not None:
                self.refuse_running_loop(found.task)
                with self._worker(which) as worker_id, event_loop() as runner:
                    self._run(self._claimed(found, worker_id, 0), runner, raise_errors=raise_errors)
        finally:
            self._ground.after()

    def _next(self, which: Which) -> _Next | None:
        parameters = {"tasks": list(which.tasks), "queues": which.queues and list(which.queues), "id": which.job_id}
        with self._ground.database.store() as store:
            if self._clock.moved:
                store.connection.execute(_EXPIRED, (self._clock.now(),))
            store.expire(EXPIRED_AT_ONCE)
            row = store.connection.execute(_NEXT_DUE, {**parameters, "now": self._clock.now() if self._clock.moved else None}).fetchone()
            if row is None and which.with_scheduled:
                row = store.connection.execute(_NEXT_EVER, parameters).fetchone()
        if row is None:
            return None
        found = _Next(*row)
        if which.with_scheduled and found.run_at > self._clock.now():
            self._clock.travel_to(found.run_at)
        return found

    def _delivering(self, which: Which) -> _Next | None:
        """The next job once groups that read the log have been looked at, as workers do."""
        tasks = [each.task for each in self._jobs.subscriptions.values() if each.mode == LOG and each.task in which.tasks]
        if not tasks:
            return None
        tell(self._jobs, OwnTransaction(self._ground.database))
        queues = which.queues or [self._jobs.registry.get(task).policy.queue for task in tasks]
        with self._ground.database.store() as store:
            started, _ = start(store.connection, queues, tasks)
        return self._next(which) if started else None

    def _claimed(self, found: _Next, worker_id: int, done: int) -> ClaimedJob:
        """Claim exactly this job. A claim looks at the database's clock, so a job that is due on the test's is made due for it."""
        with self._ground.database.store() as store, store.connection.transaction():
            row = store.connection.execute(_MAKE_DUE, (found.id,)).fetchone()
            claimed: list[ClaimedJob] = []
            if row is not None and found.ordering_key is not None:
                walk = Walk(given=(found.ordering_key,))
                claimed = store.claim_ordered(worker_id, [found.task], found.queue, found.priority, 1, walk).jobs
            elif row is not None:
                claimed = store.claim(worker_id, [found.task], found.queue, found.priority, 1, Floor(row[0], found.id - 1))
            store.connection.execute(_GIVE_BACK_RUN_AT, (found.run_at, found.id))
        if [job.id for job in claimed] != [found.id]:
            hint = "a worker or another test uses this database; each test process needs one of its own"
            raise NotDrained(done, f"job {found.id}, task {found.task!r}, was taken by somebody else", hint=hint)
        return claimed[0]

    def _run(self, job: ClaimedJob, runner: asyncio.Runner, *, raise_errors: bool) -> Attempt:
        __tracebackhide__ = True
        self.raised = None
        ended, notes = execute(self._jobs, job, runner)
        error = self._raised_now()
        handle: Job[Any] = JobInTest(self._jobs, self._ground, job.id, "running")
        try:
            with self._ground.database.store() as store:
                write(store, notes, [])
                with store.connection.transaction() if self._clock.moved else nullcontext():  # both see the same now()
                    Finisher().write(store, [ended])
                    if self._clock.moved:
                        store.connection.execute(_COUNT_FROM_CLOCK, (self._clock.now(), job.id))
                row = store.connection.execute(_OUTCOME, (job.id, job.lease)).fetchone()
        except (psycopg.Error, sa.exc.SQLAlchemyError) as failure:
            raise self._lost(job, error) from (error or failure)
        if row is None:
            raise self._lost(job, error) from error
        if error is not None and (_goes_up(error) or (raise_errors and not isinstance(error, JobControl))):
            raise _noted(error, job)
        return Attempt(handle.refresh(), job.task, parse_object(job.args), job.attempt, row[0], error)

    def _raised_now(self) -> BaseException | None:
        raised, self.raised = self.raised, None
        return raised

    @contextmanager
    def _worker(self, which: Which) -> Iterator[int]:
        """A row among the workers, for the claims. Refuses a database that others serve: they would take each other's jobs."""
        database = self._ground.database
        with database.store() as store:
            served = store.connection.execute(SERVED).fetchone()
            if served is not None:
                raise ConfigurationError(
                    f"testing.Jobs: the worker {served[0]} on {served[1]} serves this database ({database.dsn.target})",
                    hint="tests need a database that no worker serves: stop it, or give the tests one of their own",
                )
            facts = {
                "name": f"test-{os.getpid()}", "host": socket.gethostname(), "pid": os.getpid(), "kind": "test",
                "version": version("jobrunner-pg"), "queues": list(which.queues or []), "tasks": list(which.tasks), "slots": 1,
            }  # fmt: skip
            worker_id = store.register_worker(facts, LEASE)
        try:
            yield worker_id
        finally:
            # Inside a failed transaction the row goes with it.
            with suppress(psycopg.Error, sa.exc.SQLAlchemyError), database.store() as store:
                store.stop_worker(worker_id, Leaving("done"), WorkerCounts())

    def refuse_running_loop(self, task: str) -> None:
        """Refuse an async task where no event loop of its own can run. Raises ConfigurationError."""
        if not self._jobs.registry.get(task).is_async:
            return
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return
        raise ConfigurationError(
            f"task {task!r} is an async def, and this thread runs an event loop already: a job needs one of its own",
            hint="make the test a plain def, or: await asyncio.to_thread(helper.drain)",
        )

    def _lost(self, job: ClaimedJob, error: BaseException | None) -> JobrunnerError:
        raised = f"; it had raised {type(error).__name__}" if error is not None else ""
        return JobrunnerError(
            f"job {job.id}, task {job.task!r}, ended or broke the test's transaction: its outcome could not be written{raised}",
            hint="give jobs sessions of their own in that transaction, see testing.rolled_back; or roll back the session where it fails",
        )


def _goes_up(error: BaseException) -> bool:
    """Whether an exception is not the job's: Ctrl-C, or what test runners use to end a test (they derive from BaseException too)."""
    return not isinstance(error, (Exception, JobControl, SystemExit, GeneratorExit, asyncio.CancelledError))


def _noted(error: BaseException, job: ClaimedJob) -> BaseException:
    """The task's exception with the job in a note, and a traceback that begins in the task's own code."""
    args = job.args if len(job.args) <= SHOWN_ARGS else job.args[:SHOWN_ARGS] + "…"
    error.add_note(f"raised by job {job.id}: task {job.task!r}, attempt {job.attempt} of {job.max_attempts}, args {args}")
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename.startswith(_OURS):
        frames = frames.tb_next
    return error.with_traceback(frames or error.__traceback__)
