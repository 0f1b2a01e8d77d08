"""Owns `JobRunner`, what an application holds: its tasks, its database, and the way to both.

It must not do the work itself, nor import Flask: `jobrunner.flask` knows that side.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
import threading
import weakref
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, overload

from jobrunner.branches import Branch
from jobrunner.checks import RUN_CHECKS, checked
from jobrunner.handle import Job
from jobrunner.keeping import ALL, Rule, from_environ, keep_by_state
from jobrunner.loading import find_jobrunner
from jobrunner.payload import decode_args
from jobrunner.policies import Policy, Running
from jobrunner.routing import DEFAULT_DATABASE, HOME, ONE_DATABASE, Routing, find_routing, no_default
from jobrunner.settings import MAX_PAYLOAD_BYTES, MAX_RESULT_BYTES, OFF_WORDS, Dsn, find_dsn, find_read_dsn, find_size, parse_dsn
from jobrunner.tasks import AsyncTask, Registry, Task, TaskDecorator, TransactionalDecorator

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
    from typing import Unpack

    from flask import Flask

    from jobrunner.policies import EnqueueOptions, Keep, Options, TaskOptions
    from jobrunner.store import Database

__all__ = ["JobRunner", "find_jobrunner"]

P = ParamSpec("P")
R = TypeVar("R")

POOL_SIZE = 5  # connections that stay open; as many again may be opened under load
_NOTHING = nullcontext()  # one for all: it is entered for every job


class JobRunner:
    """The tasks of an application and the database their jobs are in. Thread-safe; a forked child gets connections of its own.

    With `JOBRUNNER_DATABASES` and `JOBRUNNER_ROUTES` there are several databases: each job goes to that of its queue.

    Args:
        app: a Flask app; or call `init_app` later.
        dsn: the database; without it `JOBRUNNER_DSN`, the Flask config, `DATABASE_URL`, then the embedded PostgreSQL.
        session: a Session, scoped_session (`db.session`) or function that gives one: `enqueue` then writes in its transaction.
        max_payload_bytes: of one job's arguments as JSON: bytes or text such as `2MB`, above 0; without it
            `JOBRUNNER_MAX_PAYLOAD_BYTES` of the environment, then of the Flask config, then a million.
        max_result_bytes: of one job's return value as JSON, found in the same way; an attempt that returns more has failed.
        wakeups: whether to send hints to idle workers; without them they find jobs by polling.
        name: shown where several applications share a database, and under it stand the code's rules of retention: without one it is the
            Flask app's import name, and two applications that have the same would replace each other's rules.
        keep: how long finished jobs stay: a duration, `"forever"`, or a mapping by state, such as `{"succeeded": "30d"}`; without it
            `JOBRUNNER_KEEP_SUCCEEDED` and `JOBRUNNER_KEEP_FAILED`, then 30 and 180 days. Workers bring it to the database.
    """

    def __init__(
        self,
        app: Flask | None = None,
        *,
        dsn: str | None = None,
        session: Any = None,
        max_payload_bytes: int | str | None = None,
        max_result_bytes: int | str | None = None,
        wakeups: bool = True,
        name: str | None = None,
        keep: Keep = None,
    ) -> None:
        self.name = name
        self._keep = dict(checked("keep", keep_by_state, keep, "JobRunner"))
        self.session = session
        self._sizes = max_payload_bytes, max_result_bytes
        self.find_sizes({})
        self.pool_size = POOL_SIZE
        self.registry = Registry()
        self.wakeups = wakeups and os.environ.get("JOBRUNNER_WAKEUPS", "").strip().lower() not in OFF_WORDS
        self.app: Flask | None = None
        self._dsn = parse_dsn(dsn, "JobRunner(dsn=…)") if dsn is not None else None
        self._lock = threading.Lock()
        self._database: Database | None = None
        self._found: Dsn | None = None
        self._routing: Routing | None = None
        self._one = False  # whether everything goes to one database, whatever is configured
        self._branches: dict[str, Branch] = {}
        _known.add(self)
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Connect a Flask app: its config, an app context around each job, `flask jobs`.

        Raises:
            ConfigurationError: the app has another JobRunner already, or a JOBRUNNER_* value is malformed.
        """
        from jobrunner import flask  # the only place where Flask is needed; plain use works without it installed

        flask.init(app, self)

    def find_sizes(self, config: Mapping[str, Any]) -> None:
        """Set `max_payload_bytes` and `max_result_bytes` from the arguments, the environment and a Flask config, in this order.

        Raises:
            ConfigurationError: a value is no size; the message names its source.
        """
        payload, result = self._sizes
        self.max_payload_bytes = find_size("max_payload_bytes", MAX_PAYLOAD_BYTES, payload, config)
        self.max_result_bytes = find_size("max_result_bytes", MAX_RESULT_BYTES, result, config)

    @overload
    def task(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncTask[P, R]: ...
    @overload
    def task(self, function: Callable[P, R], /) -> Task[P, R]: ...
    @overload
    def task(
        self, function: None = None, /, *, name: str | None = None, transactional: Literal[True], **options: Unpack[TaskOptions]
    ) -> TransactionalDecorator: ...
    @overload
    def task(
        self, function: None = None, /, *, name: str | None = None, transactional: Literal[False] = False, **options: Unpack[TaskOptions]
    ) -> TaskDecorator: ...
    def task(self, function: Any = None, /, *, name: str | None = None, **options: Any) -> Any:
        """Make a function a task; with or without parentheses, on `def` and `async def`.

        Args:
            function: what workers run.
            name: stored in the rows; `function.__name__` by default.
            **options: see `jobrunner.policies.Policy` and `Running`; durations are seconds, a timedelta, or text such as '90s'; sizes
                are bytes or text such as '256MB'.

        Raises:
            ConfigurationError: a value is out of range (the message names the parameter), the name is taken by another function, or
                the function cannot be a task.
        """
        # Checked here, so that the traceback ends at the decorator's own line.
        running = Running.of({key: options.pop(key) for key in list(options) if key in RUN_CHECKS}, "@jobs.task")
        policy = Policy().with_values(options, "@jobs.task")
        if function is None:
            return lambda decorated: self.registry.register(decorated, name, policy, self, running)
        return self.registry.register(function, name, policy, self, running)

    def retention_rules(self) -> list[Rule]:
        """What the code and the environment say about how long finished jobs are kept, the code first.

        Raises:
            ConfigurationError: a `JOBRUNNER_KEEP_…` is no duration that can be meant.
        """
        general = self._keep if ALL in self._keep else {**from_environ(), **self._keep}
        rules = [Rule(ALL, state, keep) for state, keep in general.items()]
        return rules + [Rule(task.name, state, keep) for task in self.registry.values() for state, keep in task.running.keep]

    @property
    def rules_name(self) -> str:
        """Under which name those rules stand: what another application says is not this one's to change."""
        return self.name or (self.app.import_name if self.app is not None else "")

    database_name = DEFAULT_DATABASE  # among several; the others are branches

    @property
    def routing(self) -> Routing:
        """The other databases of the application and the queues that live there, found at first use.

        Raises:
            ConfigurationError: `JOBRUNNER_DATABASES` or `JOBRUNNER_ROUTES` is malformed, or names a database twice or not at all.
        """
        routing = self._routing
        if routing is None:
            routing = ONE_DATABASE if self._one else find_routing(self.app.config if self.app is not None else None)
            routing.check_apart(self.configured_dsn())
            self._routing = routing
        return routing

    def branch(self, name: str) -> JobRunner | Branch:
        """One of several databases by its name; `default` is this one itself. Raises ConfigurationError for a name that is not there."""
        if name == DEFAULT_DATABASE:
            return self
        dsn = self.routing.dsn_of(name)
        with self._lock:
            return self._branches.setdefault(name, Branch(self, name, dsn))

    def branch_of(self, queue: str) -> JobRunner | Branch:
        """The database in which a queue lives.

        Raises:
            ConfigurationError: several databases are configured, none of them for this queue, and there is no default one.
        """
        routing = self.routing
        if not routing.databases:
            return self
        name = routing.name_of(queue)
        if name == DEFAULT_DATABASE and self.configured_dsn() is None:
            raise no_default(routing, f"queue {queue!r} has no route, and there is no default database")
        return self.branch(name)

    @property
    def home(self) -> JobRunner | Branch:
        """The database whose jobs this process runs, in a worker; the default one elsewhere."""
        return self.branch(os.environ.get(HOME) or DEFAULT_DATABASE) if self.routing.databases else self

    @property
    def dsn(self) -> Dsn:
        """The database, found at first use. With nothing configured this starts the embedded PostgreSQL and says so once.

        Raises:
            ConfigurationError: there are databases with names, and no default one.
        """
        found = self.configured_dsn()
        if found is None:
            if self.routing.databases:
                raise no_default(self.routing)
            found = self._found = _embedded()
        return found

    def configured_dsn(self) -> Dsn | None:
        """The configured database or the one in use; None when there is none yet. Starts nothing."""
        if self._found is None:
            self._found = self._dsn or find_dsn(config=self.app.config if self.app is not None else None)
        return self._found

    def read_dsn(self) -> Dsn | None:
        """The replica that pages read from, if any. None when another database was taken by `use_dsn`."""
        return None if self._one else find_read_dsn(self.app.config if self.app is not None else None)

    def use_dsn(self, dsn: str, origin: str = "--dsn") -> None:
        """Take another database from now on, for the jobs of all queues; for the command line, whose `--dsn` comes first."""
        self._dsn = parse_dsn(dsn, origin)
        self._one = True
        self.close()

    @property
    def database(self) -> Database:
        """The pool of connections; made at first use."""
        database = self._database
        if database is None:
            from jobrunner.store import Database  # SQLAlchemy takes a quarter of a second to import

            dsn = self.dsn
            with self._lock:
                if self._database is None:
                    self._database = Database(dsn, pool_size=self.pool_size)
                    weakref.finalize(self, self._database.close)
                database = self._database
        return database

    def close(self) -> None:
        """Close pooled connections; the next use finds the database anew."""
        with self._lock:
            database, self._database, self._found = self._database, None, None
            branches, self._branches, self._routing = self._branches, {}, None
        if database is not None:
            database.close()
        for branch in branches.values():
            branch.close()

    def enqueue(self, task_name: str, args: Mapping[str, Any] | None = None, **options: Unpack[EnqueueOptions]) -> Job[Any]:
        """Write a job of a task known by name, with its arguments as JSON data (dates as text), as the row would hold them.

        Raises:
            UnknownTask: no such task; the message has the closest names.
            InvalidPayload: an argument is missing, unexpected, or does not fit its annotation.
        """
        task = self.registry[task_name]
        positional, named = decode_args(task, args or {})
        # Not `enqueue(**named)`: an argument of the job may be called "self".
        return self.submit(task, task.options(**options)._options, positional, named)  # noqa: SLF001

    def job(self, job_id: int, database: str = DEFAULT_DATABASE) -> Job[Any]:
        """The job with that id.

        Args:
            job_id: ids count in each database by themselves.
            database: the name of one of several, which `Job.database_name` gives.

        Raises:
            JobNotFound, ConfigurationError: no such job, or no such database.
        """
        return Job[Any](self.branch(database), job_id, "").refresh()

    def execution_context(self) -> AbstractContextManager[Any]:
        """What a worker enters around each job: a fresh Flask app context, or nothing."""
        return self.app.app_context() if self.app is not None else _NOTHING

    def submit(self, task: Task[..., Any], options: Options, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Job[Any]:
        """Write one job; use `task.enqueue`."""
        return _enqueue().submit(self, task, options, args, kwargs)  # type: ignore[no-any-return]

    def submit_many(self, task: Task[..., Any], options: Options, calls: Iterable[Any]) -> Sequence[int]:
        """Write one job per call; use `task.enqueue_many`."""
        return _enqueue().submit_many(self, task, options, calls)  # type: ignore[no-any-return]

    def wake(self, queue: str) -> None:
        """Send a hint that `queue` has work, now; never raises for a database that does not answer."""
        if self.wakeups:
            from jobrunner.wakeups import waker_of

            waker_of(self.database.dsn).wake(queue)

    def __repr__(self) -> str:
        label = self.name or (self.app.import_name if self.app is not None else "")
        return f"<JobRunner{' ' + label if label else ''}, {len(self.registry)} tasks>"


@functools.cache
def _enqueue() -> Any:
    # Not out of `sys.modules`: two threads may enqueue for the first time at once, and there the module stands half imported.
    return importlib.import_module("jobrunner.enqueue")


def _embedded() -> Dsn:
    from jobrunner.embedded import start_project

    dsn = str(start_project().dsn)
    print(f"jobrunner: no database is configured: using this project's own PostgreSQL, {dsn}", file=sys.stderr)  # noqa: T201
    return parse_dsn(dsn, "the embedded PostgreSQL")


def _after_fork() -> None:
    # The pool's sockets belong to the parent; closing them here would end its sessions.
    for jobs in list(_known):
        jobs._lock = threading.Lock()  # noqa: SLF001
        if jobs._database is not None:  # noqa: SLF001
            jobs._database.forget()  # noqa: SLF001
        for branch in jobs._branches.values():  # noqa: SLF001
            branch.forget()


_known: weakref.WeakSet[JobRunner] = weakref.WeakSet()
os.register_at_fork(after_in_child=_after_fork)
