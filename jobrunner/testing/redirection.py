"""Owns what changes on a JobRunner while a test uses it, and that it is changed back: where it writes, and what happens after.

It must not change the class nor another JobRunner: everything is an attribute of the one instance.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from jobrunner.errors import ConfigurationError
from jobrunner.routing import ONE_DATABASE
from jobrunner.testing import waiting
from jobrunner.testing.handles import JobInTest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from jobrunner.app import JobRunner
    from jobrunner.handle import Job
    from jobrunner.policies import Options
    from jobrunner.tasks import Task
    from jobrunner.testing.clock import Clock
    from jobrunner.testing.draining import Drainer
    from jobrunner.testing.ground import Ground

_MARK = "_testing"
_VERBS = ("submit", "submit_many", "job", "execution_context")
_SEEN = "SELECT count(*) FROM jobrunner.jobs WHERE id = ANY (%s)"
_STAMP = "UPDATE jobrunner.jobs SET created_at = %s, run_at = %s WHERE id = ANY (%s)"


class Redirection:
    """One JobRunner in the hands of a test.

    Attributes:
        immediate: whether jobs run at their enqueue, and what happens with the errors of their tasks.
    """

    def __init__(self, jobs: JobRunner, ground: Ground, drainer: Drainer, clock: Clock) -> None:
        self._jobs = jobs
        self._ground = ground
        self._drainer = drainer
        self._clock = clock
        self._before: dict[str, Any] = {}
        self._plain = {name: getattr(jobs, name) for name in _VERBS}
        self.immediate: Literal["raise", "record"] | None = None

    @staticmethod
    def refuse_second(jobs: JobRunner) -> None:
        """One helper at a time. Raises ConfigurationError."""
        if _MARK in vars(jobs):
            hint = "use that helper; with the pytest plugin it is the fixture jobs_testing"
            raise ConfigurationError(f"testing.Jobs is in use for {jobs!r} already", hint=hint)

    def begin(self) -> None:
        """Put ours in place of what the JobRunner has."""
        verbs = {name: getattr(self, name) for name in _VERBS}
        # All queues are in the test's database, wherever the application keeps them.
        ours = {_MARK: self, "wakeups": False, "_database": self._ground.database, "_routing": ONE_DATABASE, **verbs}
        self._before = {name: vars(self._jobs)[name] for name in ours if name in vars(self._jobs)}
        vars(self._jobs).update(ours)

    def end(self) -> None:
        """Put back what was there."""
        for name in (_MARK, *_VERBS):
            del vars(self._jobs)[name]
        vars(self._jobs).update(self._before)

    def submit(self, task: Task[..., Any], options: Options, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Job[Any]:
        """In place of `JobRunner.submit`."""
        written: Job[Any] = self._plain["submit"](task, self._ground.redirect(options), args, kwargs)
        job: Job[Any] = JobInTest(self._jobs, self._ground, written.id, written.state, created=written.created)
        if job.created:
            self._written([job.id], task, options)
            if self.immediate is not None:
                job.refresh()
        return job

    def submit_many(self, task: Task[..., Any], options: Options, calls: Iterable[Any]) -> Sequence[int]:
        """In place of `JobRunner.submit_many`."""
        before = waiting.last_id(self._ground.database)
        ids: Sequence[int] = self._plain["submit_many"](task, self._ground.redirect(options), calls)
        self._written([job_id for job_id in ids if job_id > before], task, options)  # others were there: `unique` found them
        return ids

    def job(self, job_id: int, _database: str = "") -> Job[Any]:
        """In place of `JobRunner.job`: there is one database."""
        return JobInTest[Any](self._jobs, self._ground, job_id, "").refresh()

    @contextmanager
    def execution_context(self) -> Iterator[Any]:
        """In place of `JobRunner.execution_context`: sees what the attempt raises, of which a worker keeps only a description."""
        try:
            with self._ground.attempt(self._plain["execution_context"]) as value:
                yield value
        except BaseException as error:
            self._drainer.raised = error
            raise

    def _written(self, ids: list[int], task: Task[..., Any], options: Options) -> None:
        if self._ground.shared or self.immediate is not None:
            self._check_seen(ids, task)
        if self._clock.moved:
            now = self._clock.now()
            run_at = options.run_at or (now if options.delay is None else now + options.delay)
            with self._ground.database.store() as store:
                store.connection.execute(_STAMP, (now, run_at, ids))
        if self.immediate is not None and task.name in self._jobs.registry:  # a message waits for who gets it
            for job_id in ids:
                self._drainer.run_once(task.name, job_id, raise_errors=self.immediate == "raise")

    def _check_seen(self, ids: list[int], task: Task[..., Any]) -> None:
        with self._ground.database.store() as store:
            count = store.connection.execute(_SEEN, (ids,)).fetchone()[0]  # type: ignore[index]
        if count < len(ids):
            raise ConfigurationError(
                f"a job of task {task.name!r} was enqueued in a transaction that testing.Jobs does not see",
                hint="give the helper that session: testing.Jobs(jobs, session=…); or let all sessions share one: testing.rolled_back(app)",
            )
