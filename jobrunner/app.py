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

from jobrunner import settings
from jobrunner.checks import RUN_CHECKS, checked
from jobrunner.handle import Job
from jobrunner.hosting.setting import find_setting
from jobrunner.keeping import ALL, Rule, from_environ, keep_by_state
from jobrunner.lifecycle import Lifecycle
from jobrunner.loading import find_jobrunner
from jobrunner.payload import decode_args
from jobrunner.policies import Policy, Running
from jobrunner.routing import DEFAULT_DATABASE, Routing, no_default
from jobrunner.settings import CALL, EMBEDDED, MAX_PAYLOAD_BYTES, MAX_RESULT_BYTES, Dsn, find_dsn, find_read_dsn, find_size, parse_dsn
from jobrunner.several import Databases
from jobrunner.tasks import AsyncTask, Registry, Task, TaskDecorator, TransactionalDecorator

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
    from typing import Unpack

    from flask import Flask

    from jobrunner.branches import Branch
    from jobrunner.calls import Calls
    from jobrunner.consuming import Consumer
    from jobrunner.database import Database
    from jobrunner.hosting.setting import Setting
    from jobrunner.messages import MessageQueue, QueueOptions
    from jobrunner.policies import EnqueueOptions, Keep, Options, TaskOptions
    from jobrunner.subscriptions import Subscription
    from jobrunner.topics.declaring import SubscribeOptions
    from jobrunner.topics.publishing import Topic

__all__ = ["JobRunner", "find_jobrunner"]

P = ParamSpec("P")
R = TypeVar("R")

POOL_SIZE = 5  # connections that stay open; as many again may be opened under load
_NOTHING = nullcontext()  # one for all: it is entered for every job


class JobRunner(Databases):
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
        embedded_worker: `"threads:2"`, `"processes:2"` or a number of threads: the web server that serves the app has a worker beside
            it, one on each host; `False` or `"off"` for none. Without it `JOBRUNNER_EMBEDDED_WORKER` of the environment, then of the
            Flask config. Nothing is started before a server serves: see docs/how-to/embedded-worker.md.
        allowed_modules: whose functions executors and `background` may run as jobs, beside the modules that have tasks and those of
            `JOBRUNNER_ALLOWED_MODULES`; see `jobrunner.allowing`.
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
        embedded_worker: str | int | None = None,
        allowed_modules: Iterable[str] = (),
    ) -> None:
        self.name = name
        self._keep = dict(checked("keep", keep_by_state, keep, "JobRunner"))
        self.session = session
        self._sizes = max_payload_bytes, max_result_bytes
        self.find_sizes({})
        self.pool_size = POOL_SIZE
        self.registry = Registry()
        self.lifecycle = Lifecycle()
        self.registry.provide(CALL, lambda: self.calls.task)
        self._allowed_modules = tuple(allowed_modules)
        self._calls: Calls | None = None
        self.wakeups = wakeups and os.environ.get("JOBRUNNER_WAKEUPS", "").strip().lower() not in settings.OFF_WORDS
        self.app: Flask | None = None
        self._dsn = parse_dsn(dsn, "JobRunner(dsn=…)") if dsn is not None else None
        self._lock = threading.Lock()
        self._database: Database | None = None
        self._found: Dsn | None = None
        self._routing: Routing | None = None
        self._embedded_worker = embedded_worker
        self.find_embedded_worker()
        self._one = False  # whether everything goes to one database, whatever is configured
        self._branches: dict[str, Branch] = {}
        self.consumers: dict[str, Consumer] = {}  # of message queues that this process takes from, by name
        self.subscriptions: dict[tuple[str, str], Subscription] = {}  # what the code declares, by topic and group
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

    def find_embedded_worker(self) -> Setting | None:
        """What kind of worker goes with the web server, from the argument, the environment and the Flask config; None for none.

        Raises:
            ConfigurationError: the first that is set says nothing of the kind; the message names its source.
        """
        return find_setting(self._embedded_worker, self.app.config if self.app is not None else None)

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

    @property
    def calls(self) -> Calls:
        """The functions that are no tasks and run as jobs all the same."""
        with self._lock:
            if self._calls is None:
                from jobrunner.calls import Calls  # only who uses it pays

                self._calls = Calls(self, self._allowed_modules)
            return self._calls

    def task_names(self) -> list[str]:
        """What a worker of this application runs: its tasks, and calls of functions unless `JOBRUNNER_ALLOWED_MODULES` says `none`."""
        return sorted([*self.registry.names(), *([CALL] if self.calls.are_allowed else [])])

    def queue_names(self) -> list[str]:
        """The queues of its tasks and of the executors that were made for it: those that a worker of the whole application serves."""
        executors = self._calls.queues if self._calls is not None else ()
        return sorted({self.registry[name].policy.queue for name in self.registry.names()}.union(executors))

    def topic(self, name: str) -> Topic:
        """A topic, to publish events to its groups. Raises ConfigurationError for what is no name."""
        from jobrunner.topics.publishing import Topic

        return Topic(self, name)

    def subscribe(
        self, topic: str, pattern: str | Sequence[str] = "#", **options: Unpack[SubscribeOptions]
    ) -> Callable[[Callable[..., Any]], Any]:
        """Have a function get the events of a topic; see `jobrunner.topics.declaring.subscribe`."""
        from jobrunner.topics.declaring import subscribe

        return subscribe(self, topic, pattern, **options)

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
            from jobrunner.database import Database  # SQLAlchemy takes a quarter of a second to import

            dsn = self.dsn
            with self._lock:
                if self._database is None:
                    self._database = Database(dsn, pool_size=self.pool_size)
                    weakref.finalize(self, self._database.close)
                database = self._database
        return database

    def close(self) -> None:
        """Give messages back that are held, and close pooled connections; the next use finds the database anew.

        Who waits for a message gets none, at once; who waits for a job goes on waiting, on a connection that is not of the pool.
        """
        consumers, self.consumers = self.consumers, {}  # first: who takes from now on has another one
        for consumer in list(consumers.values()):  # a thread that looked there just before may still put one in
            consumer.close()
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

    def queue(self, name: str, **options: Unpack[QueueOptions]) -> MessageQueue:
        """The message queue of that name, to put messages into and to take them out; see `jobrunner.messages.MessageQueue`.

        Raises:
            ConfigurationError: the name or an option is out of range.
        """
        from jobrunner.messages import MessageQueue  # only who has messages pays for it

        return MessageQueue(self, name, **options)

    @overload
    def background(self, function: Callable[P, Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs) -> Job[R]: ...
    @overload
    def background(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Job[R]: ...
    def background(self, function: Any, /, *args: Any, **kwargs: Any) -> Job[Any]:
        """Have a worker call a function that is no task, as `threading.Thread(target=function, args=args).start()` has a thread call it.

        Written as `task.enqueue` writes, for the queue `default`; up to 5 attempts, in an app context. What needs other values is a task.

        Args:
            function: at the top of a module that has a task, of the app's own module, or of one in `JOBRUNNER_ALLOWED_MODULES`.
            *args, **kwargs: plain data, tuples, sets, bytes, times, Decimal, UUID, enums, paths; the id in place of an object.

        Raises:
            FunctionRefused: no worker could find the function, or it may not run.
            InvalidPayload: an argument cannot travel; the message says which, and what to pass instead.
        """
        return self.calls.submit(function, args, kwargs)

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
    return parse_dsn(dsn, EMBEDDED)


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
