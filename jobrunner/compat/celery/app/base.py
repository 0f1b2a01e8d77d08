"""Owns `Celery`, the application object: its configuration, its tasks, and the sending of them.

It must not run tasks (`app.trace`) nor talk to the database (`app.sending` and the backend do).
"""

from __future__ import annotations

import functools
import inspect
import os
import threading
import warnings
from collections import deque
from datetime import UTC, datetime, tzinfo
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self, overload

from jobrunner.compat.celery import _state, coding
from jobrunner.compat.celery.app import retrying
from jobrunner.compat.celery.app.absent import Absent
from jobrunner.compat.celery.app.companion import CeleryCompanion, autodiscover, import_modules
from jobrunner.compat.celery.app.registry import TaskRegistry, gen_task_name, header_of, make_task, positional_names, warn_of_duplicate
from jobrunner.compat.celery.app.routes import Router
from jobrunner.compat.celery.app.runner import CeleryRunner, register
from jobrunner.compat.celery.app.task import Task
from jobrunner.compat.celery.exceptions import AlwaysEagerIgnored, ImproperlyConfigured, Unsupported
from jobrunner.compat.celery.local import PromiseProxy, maybe_evaluate
from jobrunner.compat.celery.options import NAMES
from jobrunner.compat.celery.settings import Settings, read_object, symbol_by_name, zone_of
from jobrunner.compat.celery.utils.dispatch import Signal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from jobrunner.app import JobRunner
    from jobrunner.compat.celery.app.control import Control
    from jobrunner.compat.celery.app.typed import BoundDecorator, Decorator, P, R, TaskOf
    from jobrunner.compat.celery.backend import Backend
    from jobrunner.compat.celery.result import AsyncResult

_CONFIG_VARIABLE = "CELERY_CONFIG_MODULE"
_PARTS = {"loader", "amqp", "events", "log", "control", "tasks"}  # of Celery's own, which an application may replace there


class Celery(Absent):
    """A Celery application whose tasks are jobs.

    Args:
        main: the name of the module, for tasks of `__main__`; the name under which it shows.
        broker: a `postgresql://` address is the database; any other is kept, and not used.
        backend: kept, and not used: results are in the jobs' rows.
        include: modules that workers import.
        task_cls: the base class of tasks.
        config_source: a mapping, object or module's name with the settings.
        set_as_current: whether it becomes the current app; autofinalize: whether the first look at its tasks finalises it.
        namespace, strict_typing, changes: as Celery's.
        jobs: a JobRunner to put the tasks into, so that one worker runs native ones beside them; one of its own by default.
        session: what `apply_async_on_commit` writes in: a Session, `db.session`, or a function that gives one.
        **kwargs: settings. What replaces parts of Celery's own (`loader`, `amqp`, `events`, `log`, `control`, `tasks`) is refused.

    Attributes:
        jobs: the JobRunner.
    """

    task_cls: Any = Task

    def __init__(
        self,
        main: str | None = None,
        *,
        broker: Any = None,
        backend: Any = None,
        include: Any = None,
        changes: Any = None,
        config_source: Any = None,
        set_as_current: bool = True,
        task_cls: Any = None,
        autofinalize: bool = True,
        namespace: str | None = None,
        strict_typing: bool = True,
        jobs: JobRunner | None = None,
        session: Any = None,
        **kwargs: Any,
    ) -> None:
        for name in _PARTS & {name for name, value in kwargs.items() if value is not None}:
            raise Unsupported(f"Celery({name}=…)", "there is no such part here to be replaced")
        settings = {name: value for name, value in kwargs.items() if name not in _PARTS | {"fixups"}}
        self.main = main
        self.task_cls = task_cls or self.task_cls
        self.set_as_current, self.autofinalize, self.strict_typing = set_as_current, autofinalize, strict_typing
        vars(self).pop("Task", None)  # of a first call: subclasses with an `init_app` call the constructor again there
        self.finalized = False
        self.refused_periodic = 0
        self._lock = threading.RLock()
        self._pending: deque[PromiseProxy] = deque()
        self._tasks = TaskRegistry(self.register_task)
        self._session = session
        self._warned: set[str] = set()
        self.conf = Settings(namespace=namespace, lock=self._lock)
        if config_source is not None:
            self.config_from_object(config_source, namespace=namespace)
        for name, value in {**(changes or {}), "broker_url": broker, "result_backend": backend, "include": include, **settings}.items():
            if value is not None:
                self.conf[name] = value
        self.conf.when_loaded(self._configured)
        self.jobs: JobRunner = jobs if jobs is not None else CeleryRunner(self, name=main)
        self.jobs.lifecycle.join(CeleryCompanion(self))
        self.router = Router(self.conf)
        names = ("on_configure", "on_after_configure", "on_after_finalize", "on_after_fork")
        self.on_configure, self.on_after_configure, self.on_after_finalize, self.on_after_fork = (Signal(name=name) for name in names)
        if set_as_current:
            self.set_current()
        self.on_init()
        _state.register_app(self)

    def on_init(self) -> None:
        """Called at the end of the constructor; for subclasses."""

    @property
    def __jobrunner__(self) -> JobRunner:
        """How `jobrunner --app` finds the JobRunner."""
        return self.jobs

    def set_current(self) -> None:
        """Make this the current app here."""
        _state.set_current_app(self)

    def set_default(self) -> None:
        """Make this the app of all threads that have none of their own."""
        _state.set_default_app(self)

    def close(self) -> None:
        """Close its connections and forget it."""
        self.jobs.close()
        _state.deregister_app(self)

    # -- configuration

    def config_from_object(self, obj: Any, silent: bool = False, force: bool = False, namespace: str | None = None) -> None:  # noqa: FBT001, FBT002
        """Take the settings of a mapping, an object, or a module by its name; they are read when one is needed, or now with `force`."""
        namespace = namespace or vars(self.conf)["_namespace"]
        self.conf.source(functools.partial(read_object, obj, silent=silent), namespace)
        self.conf.when_loaded(self._configured)
        if force:
            self.conf.load()

    def config_from_envvar(self, variable_name: str = _CONFIG_VARIABLE, silent: bool = False, force: bool = False) -> Any:  # noqa: FBT001, FBT002
        """The same for the module that an environment variable names."""
        name = os.environ.get(variable_name)
        if not name:
            if silent:
                return False
            raise ImproperlyConfigured(f"The environment variable {variable_name!r} is not set, so there is no configuration to load")
        return self.config_from_object(name, silent=silent, force=force)

    def add_defaults(self, fun: Any) -> None:
        """Take settings for what nobody sets otherwise."""
        self.conf.add_defaults(fun)

    def _configured(self) -> None:
        self.on_configure.send(sender=self)
        self.conf.check()
        self.on_after_configure.send(sender=self, source=self.conf)
        self.conf.check()  # again: a receiver may have set something, or named another source

    # -- tasks

    @overload
    def task(self, function: Callable[P, R], /) -> TaskOf[P, R]: ...
    @overload
    def task(self, *, bind: Literal[True], **opts: Any) -> BoundDecorator: ...
    @overload
    def task(self, *, bind: Literal[False] = False, **opts: Any) -> Decorator: ...
    @overload
    def task(self, *args: Any, **opts: Any) -> Any: ...
    def task(self, *args: Any, **opts: Any) -> Any:
        """Make a function a task; with or without parentheses. Options are those of `options.TASK_OPTIONS`.

        The task is made when it is first needed, so that the app may be configured after its modules were imported.
        """
        if len(args) > 1 or (args and not callable(args[0])):
            problem = "argument 1 to @task() must be a callable"
            raise TypeError(problem if len(args) == 1 else f"@task() takes exactly 1 argument ({len(args)} given)")

        def create(shared: bool = True, filter: Any = None, lazy: bool = True, **options: Any) -> Any:  # noqa: A002, FBT001, FBT002
            def decorate(function: Any) -> Any:
                if shared:
                    _state.connect_on_app_finalize(lambda app: app._task_from_fun(function, **options))  # noqa: SLF001
                if lazy and not self.finalized:
                    made: Any = PromiseProxy(self._task_from_fun, (function,), options, doc=function.__doc__)
                    self._pending.append(made)
                else:
                    made = self._task_from_fun(function, **options)
                return filter(made) if filter is not None else made

            return decorate

        return create(**opts)(*args) if args else create(**opts)

    def _task_from_fun(
        self, fun: Any, name: str | None = None, base: Any = None, *, bind: bool = False, pydantic: bool = False, **options: Any
    ) -> Task:
        if not self.finalized and not self.autofinalize:
            raise RuntimeError("Contract breach: app not finalized")
        if pydantic:
            raise Unsupported("pydantic=True", "annotate the parameters of a native task: models travel by their type")
        name = name or self.gen_task_name(fun.__name__, fun.__module__)
        chosen = symbol_by_name(base) or self.Task
        self.conf.load()  # before the lock: it may import a module, and whoever imports that may be waiting for the lock
        with self._lock:  # requests in two threads may need a task at once: both would make it, and workers would run the other one
            known = self._tasks.get(name)
            if known is not None:
                self._warn_of_duplicate(known, fun, name)
                return known  # type: ignore[no-any-return]
            return self._add(make_task(self, chosen, fun, name, options, bound=bind), options)

    def register_task(self, task: Any, **options: Any) -> Task:
        """Register a task that is written as a class."""
        made: Any = task() if inspect.isclass(task) else task
        if not made.name:
            made.name = type(made).name = self.gen_task_name(type(made).__name__, type(made).__module__)
        made._app = type(made)._app = self  # noqa: SLF001
        if not hasattr(made, "__header__"):
            type(made).__header__ = staticmethod(header_of(made.run))
        if (known := self._tasks.get(made.name)) is not None:
            self._warn_of_duplicate(known, made, made.name, replaces=True)
        return self._add(made, options)

    def _add(self, task: Task, options: Mapping[str, Any]) -> Task:
        self._tasks[task.name] = task
        type(task).bind(self)
        retrying.add_autoretry(task, options)
        register(self.jobs, task, self._run)
        return task

    def _run(self, name: str, stored: dict[str, Any]) -> Any:
        from jobrunner.compat.celery.app.jobs import run_job

        return run_job(self, self._tasks[name], stored)

    def _warn_of_duplicate(self, known: Any, new: Any, name: str, *, replaces: bool = False) -> None:
        if name not in self._warned and warn_of_duplicate(known, new, name, replaces=replaces):
            self._warned.add(name)

    def gen_task_name(self, name: str, module: str) -> str:
        """The name of a task that is given none; for subclasses."""
        return gen_task_name(self.main, name, module)

    @functools.cached_property
    def Task(self) -> Any:  # noqa: N802  the name that is used
        """The base class of this app's tasks."""
        base = symbol_by_name(self.task_cls)
        made = type("Task", (base,), {"_app": self, "_bound": False, "__module__": base.__module__, "__doc__": base.__doc__})
        return vars(self).setdefault("Task", made)  # there is one, though two threads may come at once

    @property
    def tasks(self) -> TaskRegistry:
        """The tasks by name; the first look makes those whose decorators have run."""
        self.finalize(auto=True)
        return self._tasks

    def finalize(self, auto: bool = False) -> None:  # noqa: FBT001, FBT002
        """Make all tasks whose decorators have run, shared ones too."""
        if not self.finalized:
            self.conf.load()  # before the lock, as for one task
        with self._lock:
            if self.finalized:
                return
            if auto and not self.autofinalize:
                raise RuntimeError("Contract breach: app not finalized")
            self.finalized = True
            _state.announce_app_finalized(self)
            while self._pending:
                maybe_evaluate(self._pending.popleft())
            self.on_after_finalize.send(sender=self)

    def import_modules(self) -> None:
        """Import what `imports`, `include` and `autodiscover_tasks` name, and make all tasks: what a worker does first."""
        import_modules(self)

    def autodiscover_tasks(self, packages: Any = None, related_name: str | None = "tasks", force: bool = False) -> None:  # noqa: FBT001, FBT002
        """Import `package.tasks` of each package when a worker starts, or now with `force`; packages without one are passed over."""
        autodiscover(self, packages, related_name, force=force)

    def add_periodic_task(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        """Raises Unsupported; the worker's table counts them, because an error of a signal's receiver is only logged."""
        self.refused_periodic += 1
        raise Unsupported("add_periodic_task", NAMES["add_periodic_task"].note)

    # -- sending

    def send_task(
        self,
        name: str,
        args: Any = None,
        kwargs: Any = None,
        countdown: float | None = None,
        eta: Any = None,
        task_id: str | None = None,
        result_cls: Any = None,
        add_to_parent: bool = True,  # noqa: FBT001, FBT002
        task_type: Any = None,
        **options: Any,
    ) -> AsyncResult:
        """Send a task by its name, which this process need not know; the options are those of `Task.apply_async`."""
        from jobrunner.compat.celery.app import sending

        if self.conf.task_always_eager and task_type is None:
            warnings.warn(AlwaysEagerIgnored("task_always_eager has no effect on send_task"), stacklevel=2)
        task = task_type if task_type is not None else self._tasks.get(name)
        given = {**options, "countdown": countdown, "eta": eta, "task_id": task_id}
        given = sending.options_of(self, task, given, checked=task_type is not None)
        sent_id = sending.send(self, name, args, kwargs, given, task)
        result: AsyncResult = (result_cls or self.AsyncResult)(sent_id)
        result.ignored = bool(given.get("ignore_result"))
        parent = _state.get_current_worker_task()
        if add_to_parent and parent is not None:
            parent.add_trail(result)
        return result

    def parameters_of(self, task: Any) -> tuple[str, ...]:
        """The names of the parameters that positional arguments of a task fill; none for a task of another code base."""
        return () if task is None else positional_names(task)

    def round_trip(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """The arguments as a worker would get them."""
        stored, names = coding.encode_call((), tuple(args or ()), dict(kwargs or {}))
        return coding.decode_call(stored, names)

    def session_of(self, given: Any) -> Any:
        """The session of `apply_async_on_commit`: the one given, that of the app, or Flask-SQLAlchemy's of the active Flask app."""
        chosen = given if given is not None else self._session if self._session is not None else self.jobs.session
        if chosen is None:
            from jobrunner.flask import active_session

            chosen = active_session()
        if chosen is None:
            raise ImproperlyConfigured("apply_async_on_commit: there is no session; pass session=db.session, or Celery(session=db.session)")
        return chosen

    @property
    def AsyncResult(self) -> Any:  # noqa: N802  the name that is called
        """`AsyncResult` for this app."""
        from jobrunner.compat.celery.result import AsyncResult

        return functools.partial(AsyncResult, app=self)

    @functools.cached_property
    def backend(self) -> Backend:
        """What reads and writes results."""
        from jobrunner.compat.celery.backend import Backend

        return Backend(self)

    @functools.cached_property
    def control(self) -> Control:
        """Asks and commands that concern workers and waiting tasks."""
        from jobrunner.compat.celery.app.control import Control

        return Control(self)

    def signature(self, *args: Any, **kwargs: Any) -> Any:
        """A signature of a task of this app."""
        from jobrunner.compat.celery.canvas import signature

        kwargs["app"] = self
        return signature(*args, **kwargs)

    @property
    def current_task(self) -> Any:
        """The task that runs here."""
        return _state.get_current_task()

    @property
    def current_worker_task(self) -> Any:
        """The task that a worker runs here; not one that it calls directly."""
        return _state.get_current_worker_task()

    # -- time

    @property
    def timezone(self) -> tzinfo:
        """The zone of the setting `timezone`, UTC by default."""
        return zone_of(self.conf)

    def now(self) -> datetime:
        """This host's clock."""
        return datetime.now(UTC).astimezone(self.timezone)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.main or '__main__'} at {id(self):#x}>"
