"""Owns `Jobs`, what a test holds: the verbs that run jobs and ask about them, and the redirection of one JobRunner while it is in use.

It must not leave anything behind: at the end of its block the JobRunner is what it was.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar

from jobrunner import payload
from jobrunner.errors import ConfigurationError
from jobrunner.jobs import ClaimedJob
from jobrunner.policies import DEFAULT_SESSION
from jobrunner.testing import criteria, differences, waiting
from jobrunner.testing.clock import Clock
from jobrunner.testing.draining import Drainer, Which, event_loop
from jobrunner.testing.executing import perform
from jobrunner.testing.ground import Committed, Ground, Joined
from jobrunner.testing.redirection import Redirection

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime
    from typing import Unpack

    import sqlalchemy as sa

    from jobrunner.app import JobRunner
    from jobrunner.tasks import BoundTask, Task
    from jobrunner.testing.criteria import Criteria
    from jobrunner.testing.drained import Drained
    from jobrunner.testing.waiting import Waiting

P = ParamSpec("P")
R = TypeVar("R")

LIMIT = 1000  # attempts of one drain; a test has a handful, one that goes on for ever has more


class Jobs:
    """Jobs of one JobRunner in a test: `with testing.Jobs(jobs, session=db.session) as helper: …`.

    With a session or connection everything happens in the test's own transaction: jobs are written, claimed, run and finished there, and
    a rollback leaves no trace of any of it. Nothing is ever committed or rolled back but savepoints. Without, jobs are those of the app's
    database, and stay there. Inside the block no wake-ups are sent, and `job.state`, `job.result()` and the views tell what the test did.

    Limits (`time_limit`, memory, …) are a worker's business: they are not enforced here.

    Args:
        jobs: the JobRunner.
        session: a Session, a scoped_session such as `db.session`, or a function that gives one. Left out: the JobRunner's own default
            session when it has one, else the app's database. None: the app's database.
        connection: or a SQLAlchemy Connection in a transaction, such as `testing.rolled_back(app)` gives.

    Attributes:
        clock: when `drain()` thinks it is.
    """

    def __init__(self, jobs: JobRunner, *, session: Any = DEFAULT_SESSION, connection: sa.Connection | None = None) -> None:
        if session is DEFAULT_SESSION:
            session = jobs.session if connection is None else None
        if session is not None and connection is not None:
            raise ConfigurationError("testing.Jobs(session=…, connection=…): give one of the two")
        self._jobs = jobs
        self._place = (session, connection)
        self._active: tuple[Ground, Drainer, Redirection] | None = None
        self._first_id = 0
        self.clock = Clock(self._database_time)

    def __enter__(self) -> Self:
        """Redirect the JobRunner.

        Raises:
            ConfigurationError: no database, no usable transaction, or a helper is in use for this JobRunner already.
            SchemaError: the schema `jobrunner` is missing or of another version.
            DatabaseUnreachable: the app's database does not answer.
        """
        session, connection = self._place
        Redirection.refuse_second(self._jobs)
        ground: Ground = Committed(self._jobs) if session is None and connection is None else Joined(self._jobs, session, connection)
        ground.check()
        drainer = Drainer(self._jobs, ground, self.clock)
        redirection = Redirection(self._jobs, ground, drainer, self.clock)
        self._first_id = waiting.last_id(ground.database)
        redirection.begin()
        self._active = (ground, drainer, redirection)
        return self

    def __exit__(self, *_exception: object) -> None:
        """Give the JobRunner back."""
        _, _, redirection = self._in_use()
        self._active = None
        redirection.end()

    # -- running

    def drain(
        self,
        *,
        queue: str | Sequence[str] | None = None,
        tasks: Any = None,
        with_scheduled: bool = False,
        limit: int = LIMIT,
        raise_errors: bool = True,
    ) -> Drained:
        """Run the jobs that are due on the clock, in this process, until none is: also those that they enqueue.

        Each is claimed, run and finished by the code and the statements of a worker: in the order of priority and time, in an app context
        of its own, with `current_job()`, arguments from JSON, result to JSON. `Retry`, `Snooze`, `Cancel` and `Fail` do what they do
        there. Flushes the test's session before and lets it read again afterwards. Jobs of tasks that are not registered stay.

        Args:
            queue: only this queue, or these.
            tasks: only this task, or these; or their names.
            with_scheduled: also what is due later, soonest first; the clock goes along to the time of each.
            limit: attempts at most.
            raise_errors: raise what a task raised, after its outcome is written; the job is named in a note on the exception. False
                writes it as a worker would and goes on.

        Raises:
            NotDrained: `limit` is reached, or another process takes the jobs.
            ConfigurationError: a worker serves this database; an async task is due and this thread runs an event loop.
            UnknownTask: `tasks` names one that is not registered.
        """
        __tracebackhide__ = True
        _, drainer, _ = self._in_use()
        given = tasks if tasks is None or isinstance(tasks, (list, tuple, set)) else [tasks]
        names = self._jobs.task_names() if given is None else [criteria.task_of(self._jobs, task).name for task in given]
        which = Which(names, [queue] if isinstance(queue, str) else queue, with_scheduled=with_scheduled)
        return drainer.drain(which, limit, raise_errors=raise_errors)

    def perform(self, task: Task[P, R] | BoundTask[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run one call as a worker would, without a job: through JSON and back, in an app context, with `current_job()` (its id is 0).

        Returns:
            What `job.result()` would give: the return value, after JSON, by the function's return annotation.

        Raises:
            InvalidPayload: an argument or the return value would not survive.
            BaseException: whatever the task raises, `Retry`, `Snooze`, `Cancel` and `Fail` too.
        """
        __tracebackhide__ = True
        ground, drainer, _ = self._in_use()
        policy = task._options.policy  # noqa: SLF001  one package
        registered = criteria.task_of(self._jobs, task)
        text = payload.encode_args(registered, args, kwargs, self._jobs.max_payload_bytes)
        drainer.refuse_running_loop(registered.name)
        job = ClaimedJob(0, 0, 1, policy.max_attempts, registered.name, policy.queue, text, self.clock.now(), None, suspect=False)
        ground.before()
        try:
            with event_loop() as runner:
                result = perform(self._jobs, job, runner)
        finally:
            ground.after()
        data = payload.parse_object(f'{{"value": {result or "null"}}}')["value"]
        decoded: R = registered.decode_result(data)
        return decoded

    @contextmanager
    def immediate(self, *, raise_errors: bool = True) -> Iterator[Self]:
        """Inside the block `enqueue()` runs the job at once, after the INSERT, and returns it finished; jobs that are due later wait.

        It hides what a transaction would show: the job runs before the code that enqueued it has committed or gone on. `drain()` is closer
        to a worker; this is for suites that were written for such a mode.

        Args:
            raise_errors: as for `drain`; the exception comes out of `enqueue()`.
        """
        _, _, redirection = self._in_use()
        before, redirection.immediate = redirection.immediate, "raise" if raise_errors else "record"
        try:
            yield self
        finally:
            redirection.immediate = before

    # -- asking

    def enqueued(self, task: Any = None, args: Any = None, **given: Unpack[Criteria]) -> list[Waiting]:
        """The jobs that wait (queued, scheduled, retrying) and fit, in the order in which they were enqueued.

        Args:
            task: a task or its name.
            args: a tuple: the positional arguments of the whole call; a dict: some arguments by name. They are compared as the JSON that a
                job would hold; objects made for comparing (`mock.ANY`, `pytest.approx`, …) may stand in for values.
            **given: `queue`, `priority`, `tags` (all of these), `meta` (a dict: these members), `state` (`queued`, `scheduled`,
                `retrying`), `at` (a datetime) or `delay` (since its enqueue, or from now), and how far off these two may be: `within`,
                2 s by default. Durations are seconds, a timedelta, or text such as '90s'.

        Raises:
            UnknownTask, InvalidPayload, ConfigurationError: no job could ever be like that.
        """
        return self._fitting(criteria.wanted(self._jobs, self.clock, task, args, given))[0]

    def assert_enqueued(self, task: Any = None, args: Any = None, *, count: int | None = None, **given: Unpack[Criteria]) -> list[Waiting]:
        """Fail unless at least one job waits that fits, or exactly `count`; see `enqueued`. Returns them.

        Raises:
            AssertionError: with the jobs that come closest, and what differs, line by line.
        """
        __tracebackhide__ = True
        question = criteria.wanted(self._jobs, self.clock, task, args, given)
        found, others = self._fitting(question)
        if not found and count != 0:
            ground, _, _ = self._in_use()
            gone = waiting.gone(ground.database, self._first_id, question)
            raise AssertionError(differences.missing(question, others, gone, self.clock.now()))
        if count is not None and len(found) != count:
            raise AssertionError(differences.miscounted(question, found, count, self.clock.now()))
        return found

    def assert_not_enqueued(self, task: Any = None, args: Any = None, **given: Unpack[Criteria]) -> None:
        """Fail if a job waits that fits; see `enqueued`. Without arguments: if any job waits.

        Raises:
            AssertionError: with those jobs.
        """
        __tracebackhide__ = True
        self.assert_enqueued(task, args, count=0, **given)

    def _fitting(self, question: criteria.Wanted) -> tuple[list[Waiting], list[Waiting]]:
        ground, _, _ = self._in_use()
        found: tuple[list[Waiting], list[Waiting]] = ([], [])
        for job in waiting.read(self._jobs, ground, self.clock):
            found[0 if question.fits(job) else 1].append(job)
        return found

    def _database_time(self) -> datetime:
        ground, _, _ = self._in_use()
        with ground.database.store() as store:
            now: datetime = store.connection.execute("SELECT now()").fetchone()[0]  # type: ignore[index]
            return now

    def _in_use(self) -> tuple[Ground, Drainer, Redirection]:
        if self._active is None:
            raise ConfigurationError("testing.Jobs is not in use here", hint="with testing.Jobs(jobs, …) as helper: … ends its use, too")
        return self._active

    def __repr__(self) -> str:
        return f"<testing.Jobs of {self._jobs!r}{'' if self._active else ', not in use'}>"


@contextmanager
def immediate(
    jobs: JobRunner, *, session: Any = DEFAULT_SESSION, connection: sa.Connection | None = None, raise_errors: bool = True
) -> Iterator[Jobs]:
    """Inside the block `enqueue()` runs the job at once; see `Jobs.immediate`, and `Jobs` for the arguments."""
    with Jobs(jobs, session=session, connection=connection) as helper, helper.immediate(raise_errors=raise_errors):
        yield helper
