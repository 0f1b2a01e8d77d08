"""Owns `Executor`, Flask-Executor's interface: the same code over jobs, threads or processes, by one value of the configuration.

It must not run anything itself: `EXECUTOR_TYPE` names who does.
"""

from __future__ import annotations

import functools
import re
from concurrent.futures import Executor as _Executor
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from flask import current_app, has_app_context

from jobrunner.app import JobRunner, find_jobrunner
from jobrunner.compat.flask_executor import contexts
from jobrunner.compat.flask_executor.contexts import get_current_app_context, push_app_context
from jobrunner.compat.flask_executor.futures import FutureCollection, FutureProxy
from jobrunner.compat.flask_executor.helpers import InstanceProxy, str2bool
from jobrunner.compat.flask_executor.jobs import FlaskJobExecutor
from jobrunner.compat.flask_executor.stored import StoredFutures
from jobrunner.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from flask import Flask

__all__ = [
    "Executor", "ExecutorJob", "FutureCollection", "FutureProxy", "InstanceProxy", "get_current_app_context",
    "propagate_exceptions_callback", "push_app_context", "str2bool",
]  # fmt: skip  # as people import them from there

_NAME = re.compile(r"^(\w+)?$")
_POOLS: dict[str, Callable[..., Any]] = {"thread": ThreadPoolExecutor, "process": ProcessPoolExecutor}
_NO = {"false", "no", "f", "0", "off"}
JOBS = "jobs"
_OPTIONS = ("TYPE", "MAX_WORKERS", "FUTURES_MAX_LENGTH", "PROPAGATE_EXCEPTIONS", "PUSH_APP_CONTEXT", "CAPTURE", "OPTIONS")


def propagate_exceptions_callback(future: Future[Any]) -> None:
    """Raise what a call raised: `concurrent.futures` logs it then."""
    error = future.exception()
    if error is not None:
        raise error


class ExecutorJob:
    """A function that can be submitted by itself. A plain call runs it here and now."""

    def __init__(self, executor: Executor, fn: Callable[..., Any]) -> None:
        functools.update_wrapper(self, fn)
        self.executor = executor
        self.fn = fn

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the function here and now."""
        return self.fn(*args, **kwargs)

    def submit(self, *args: Any, **kwargs: Any) -> Future[Any]:
        """As `Executor.submit`."""
        return self.executor.submit(self.fn, *args, **kwargs)

    def submit_stored(self, future_key: Any, *args: Any, **kwargs: Any) -> Future[Any]:
        """As `Executor.submit_stored`."""
        return self.executor.submit_stored(future_key, self.fn, *args, **kwargs)

    def map(self, *iterables: Iterable[Any], **kwargs: Any) -> Iterator[Any]:
        """As `Executor.map`."""
        return self.executor.map(self.fn, *iterables, **kwargs)


class Executor(InstanceProxy, _Executor):
    """Runs functions of a Flask application elsewhere.

    Each value of the configuration has `NAME_` in front of it when the executor has a name:

    - `EXECUTOR_TYPE`: `jobs`, `thread` (the default) or `process`;
    - `EXECUTOR_MAX_WORKERS`: of the pool; jobs run in as many slots as their workers have;
    - `EXECUTOR_FUTURES_MAX_LENGTH`: stored futures that are kept: 50 by default, and all of them with jobs;
    - `EXECUTOR_PROPAGATE_EXCEPTIONS`: log what calls raise;
    - `EXECUTOR_PUSH_APP_CONTEXT`: calls get an app context of their own, with a copy of `g`; on by default, and always with jobs;
    - `EXECUTOR_CAPTURE`: with jobs, what of `g`, the request, the session and the user goes along, such as `g.tenant_id` or `request.path`;
    - `EXECUTOR_OPTIONS`: with jobs, their options, as for `task.options`.

    Jobs are in the queue of the executor's name, or the default queue. The functions of the application's module may be called, those
    of its package when it is one, and what `JobExecutor` allows beside them.

    Args:
        app: or call `init_app` later.
        name: letters, digits and underscores; several executors of one app need one.
    """

    def __init__(self, app: Flask | None = None, name: str = "") -> None:
        if _NAME.match(name) is None:
            raise ValueError("Executor names may only contain letters, numbers or underscores")
        super().__init__(None)
        self.app = app
        self.name = name
        self.futures = FutureCollection()
        self._default_done_callbacks: list[Callable[[Future[Any]], Any]] = []
        self._decorated: dict[tuple[str, str], Callable[..., Any]] = {}
        prefix = f"{name.upper()}_" if name else ""
        for option in _OPTIONS:
            setattr(self, f"EXECUTOR_{option}", f"{prefix}EXECUTOR_{option}")
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Connect an app: read its configuration and make the pool; with jobs, touch nothing until the first call.

        With jobs an app that has no JobRunner yet is given one: call `JobRunner(app)` before, to configure it.

        Raises:
            ValueError: `EXECUTOR_TYPE` is none of the three.
            ConfigurationError: a value cannot be meant.
        """
        config = app.config
        kind = config.setdefault(self._option("TYPE"), "thread")
        workers = config.setdefault(self._option("MAX_WORKERS"), None)
        length = config.setdefault(self._option("FUTURES_MAX_LENGTH"), None)
        config.setdefault(self._option("PUSH_APP_CONTEXT"), True)
        propagates = str2bool(config.setdefault(self._option("PROPAGATE_EXCEPTIONS"), False))
        if propagates and propagate_exceptions_callback not in self._default_done_callbacks:  # of an `init_app` before
            self.add_default_done_callback(propagate_exceptions_callback)
        self._app = app
        size = None if workers is None else int(workers)
        most = None if length is None else int(length)
        if kind == JOBS:
            self._self = self._over_jobs(app, size, most)
        elif kind in _POOLS:
            self._self = _POOLS[kind](max_workers=size)
            if isinstance(self.futures, StoredFutures):  # of another app before, or of this one before a flip
                self.futures = FutureCollection()
            if most is not None:
                self.futures.max_length = most
        else:
            raise ValueError(f"{kind} is not a valid executor type.")
        app.extensions[f"{self.name}executor"] = self

    def submit(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Future[Any]:  # type: ignore[override]
        """Run `fn(*args, **kwargs)` elsewhere; inside and outside of requests.

        Returns:
            Its future, a `FutureProxy`.

        Raises:
            FunctionRefused, InvalidPayload: with jobs, when the function may not be called or an argument cannot travel.
        """
        return self._given(self._self.submit(self._prepare_fn(fn), *args, **kwargs))

    def submit_stored(self, future_key: Any, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Future[Any]:
        """As `submit`, and the future is found in `futures` by its key; with jobs in every process of the application.

        Raises:
            ValueError: there is one with that key; nothing was submitted.
        """
        if isinstance(self.futures, StoredFutures):
            stored = self.futures
            future = stored.taking(future_key, lambda text: self._self.submit_stored((stored.space, text), fn, args, kwargs))
            stored.keep(future)
            stored.trim()
            return self._given(future)
        self.futures.check_free(future_key)
        given = self.submit(fn, *args, **kwargs)
        self.futures.add(future_key, given)
        return given

    def map(self, fn: Callable[..., Any], *iterables: Iterable[Any], **kwargs: Any) -> Iterator[Any]:
        """As the `map` of `concurrent.futures`, with its `timeout` and `chunksize`; jobs are written in one transaction."""
        found: Iterator[Any] = self._self.map(self._prepare_fn(fn), *iterables, **kwargs)
        return found

    def job(self, fn: Callable[..., Any]) -> ExecutorJob:
        """Decorate a function, so that it can be submitted by itself.

        Raises:
            TypeError: the calls run in processes of a pool, which cannot find what a decorator has replaced.
        """
        if isinstance(self._self, ProcessPoolExecutor):
            raise TypeError(f"Can't decorate {fn}: Executors that use multiprocessing don't support decorators")
        self._decorated[fn.__module__, fn.__qualname__] = fn
        if isinstance(self._self, FlaskJobExecutor):
            self._self.register(fn)
        return ExecutorJob(executor=self, fn=fn)

    def add_default_done_callback(self, fn: Callable[[Future[Any]], Any]) -> None:
        """Call `fn` with each future that is submitted from now on once it is done; in this process."""
        self._default_done_callbacks.append(fn)

    def _prepare_fn(self, fn: Callable[..., Any], force_copy: bool = False) -> Callable[..., Any]:  # noqa: FBT001, FBT002  as there
        """`fn` with copies of the contexts, for a thread of this process."""
        if not (isinstance(self._self, ThreadPoolExecutor) or force_copy):
            return fn
        fn = contexts.with_request(fn)
        config = current_app.config if has_app_context() else self._app.config
        pushes = config.get(self._option("PUSH_APP_CONTEXT"), True)
        # Any true value, as there, but for words that mean no: from the environment all values are text.
        return fn if not pushes or str(pushes).lower() in _NO else push_app_context(fn, self._app)

    def _given(self, future: Future[Any]) -> FutureProxy:
        for callback in self._default_done_callbacks:
            future.add_done_callback(push_app_context(callback, self._app) if isinstance(self._self, FlaskJobExecutor) else callback)
        return FutureProxy(future, self)

    def _over_jobs(self, app: Flask, workers: int | None, most: int | None) -> FlaskJobExecutor:
        names = contexts.checked_names(app.config.get(self._option("CAPTURE")), self._option("CAPTURE"))
        try:
            jobs = find_jobrunner(app)  # also that of a Celery app, which workers find as well
        except ConfigurationError:
            if "jobrunner" in app.extensions:  # it has one, and the error says what is wrong with it
                raise
            jobs = JobRunner(app)
        executor = FlaskJobExecutor(jobs, workers, self.name, names, app.config.get(self._option("OPTIONS")) or {})
        for fn in self._decorated.values():
            executor.register(fn)
        self.futures = StoredFutures(
            f"executor:{self.name}", executor.database, jobs.calls.values, executor.future, lambda future: FutureProxy(future, self), most
        )
        return executor

    def _option(self, name: str) -> str:
        found: str = getattr(self, f"EXECUTOR_{name}")
        return found
