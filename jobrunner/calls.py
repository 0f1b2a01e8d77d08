"""Owns calls of functions that are no tasks: how a call is written as a job of one task of our own, and how a worker runs it.

It must not decide which functions may run (`allowing` does) nor what becomes of the job: executors and `background` are its users.
"""

from __future__ import annotations

import inspect
import json
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from jobrunner.allowing import Allowed, FunctionRefused
from jobrunner.control import JobControl
from jobrunner.current import current_or_none
from jobrunner.errors import ConfigurationError, InvalidPayload, RemoteTraceback, UnstorableResult
from jobrunner.jsonvalues import Refusal
from jobrunner.payload import RETURN_VALUE
from jobrunner.policies import Policy
from jobrunner.scalars import MARK
from jobrunner.settings import CALL
from jobrunner.tasks import Task
from jobrunner.values import RemoteError, UnreadableValue, Values

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Unpack

    from jobrunner.handle import Job
    from jobrunner.looking import Row
    from jobrunner.policies import EnqueueOptions, Options
    from jobrunner.tasks import Registry

__all__ = ["Calls", "FunctionRefused"]

_EXCEPTION = MARK + "exception"
_RAISED = "exception"  # the exit cause of an attempt that an exception has ended
_NOTHING: Mapping[str, Any] = {}


class Application(Protocol):
    """What calls need of the JobRunner."""

    @property
    def registry(self) -> Registry:
        """The modules of its tasks are allowed."""

    @property
    def app(self) -> Any:
        """The Flask app, or None."""

    def submit(self, task: Task[..., Any], options: Options, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Job[Any]:
        """Write one job."""

    def submit_many(self, task: Task[..., Any], options: Options, calls: Iterable[Any]) -> Sequence[int]:
        """Write one job per call."""


class CallTask(Task[..., Any]):
    """The task that runs functions: its results are typed JSON."""

    values: Values

    def decode_result(self, data: Any) -> Any:
        """What the function returned. Raises UnreadableValue."""
        return self.values.decode(data)


class Calls:
    """The calls of one application.

    Attributes:
        allowed: which functions and classes.
        values: the typed JSON of arguments, results and exceptions.
        queues: of the executors that were made, which no task names.
        restore: is given what `context` of `submit` was, in the worker, before the function runs; set by whoever passes such a thing.
    """

    def __init__(self, application: Application, modules: Iterable[str] = ()) -> None:
        self.allowed = Allowed(application, modules)
        self.values = Values(self.allowed)
        self.queues: set[str] = set()
        self.restore: Callable[[Mapping[str, Any]], None] | None = None
        self.task = CallTask(self._run, CALL, Policy(), application)
        self.task.values = self.values

    @property
    def are_allowed(self) -> bool:
        """Whether workers run any call at all."""
        return not self.allowed.nothing

    def submit(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] = _NOTHING,
        *,
        context: Mapping[str, Any] | None = None,
        **options: Unpack[EnqueueOptions],
    ) -> Job[Any]:
        """Write one job that calls `function(*args, **kwargs)`; as `Task.enqueue` in all else.

        Args:
            function: a function of an allowed module, a task (its function is called, its policy does not count), or a partial of one.
            args: what typed JSON can hold; see `jobrunner.values`.
            kwargs: the same.
            context: for `restore`.
            **options: as for `task.options`.

        Returns:
            The job; its `result()` is what the function returned.

        Raises:
            FunctionRefused: the function has no name by which a worker could find it, or may not run.
            InvalidPayload: an argument cannot travel; the message names it.
        """
        return self.task.options(**options).enqueue(**self.written(function, args, kwargs, context))

    def written(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], context: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """The arguments of the task for one call. Raises FunctionRefused, InvalidPayload."""
        function, args, kwargs = _whole(function, args, kwargs)
        data: dict[str, Any] = {"function": self.allowed.path_of(function)}
        if args:
            data["args"] = [self._argument(f"args[{place}]", value) for place, value in enumerate(args)]
        if kwargs:
            data["kwargs"] = self._named(kwargs)
        if context:
            data["context"] = self._named(context)
        return data

    def written_chunk(
        self, function: Callable[..., Any], calls: Iterable[tuple[Any, ...]], context: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """The arguments of the task for several calls of one function, run one after the other by one job that returns a list."""
        data = self.written(function, (), _NOTHING, context)
        first, named = data.pop("args", []), data.pop("kwargs", {})  # of a partial
        data["calls"] = [
            {"args": [*first, *(self._argument(f"[{number}].args[{place}]", value) for place, value in enumerate(call))], "kwargs": named}
            for number, call in enumerate(calls)
        ]
        return data

    def error_of(self, row: Row) -> BaseException:
        """The exception for a call that has failed: what the function raised, when its class may be rebuilt, else a RemoteError.

        Its `__cause__` shows the traceback from the worker.
        """
        error = self._kept(row)
        if error is None:  # an exception may have a length of 0, or be false otherwise
            error = self._rebuilt(row)
        if row.traceback:
            error.__cause__ = RemoteTraceback(row.traceback)
        return error

    # -- in the worker

    def _run(
        self,
        function: str,
        args: list[Any] | None = None,
        kwargs: dict[str, Any] | None = None,
        calls: list[Any] | None = None,
        context: dict[str, Any] | None = None,
    ) -> Any:
        """What the task does; the arguments are those of a row, which anybody may have written who may insert one."""
        self._forget_kept()
        target = self.allowed.function_at(function)
        decode = self.values.decode
        if context is not None:
            self._restore(context)
        wanted = [{"args": args, "kwargs": kwargs}] if calls is None else calls
        ready = [(decode(call.get("args") or []), decode(call.get("kwargs") or {})) for call in wanted]
        try:
            values = [target(*positional, **named) for positional, named in ready]
        except JobControl:
            raise
        except BaseException as error:
            self._keep(error)
            raise
        if any(inspect.isawaitable(value) for value in values):
            return self._awaited(values, single=calls is None)
        return self._returned(values[0] if calls is None else values)

    async def _awaited(self, values: list[Any], *, single: bool) -> Any:
        try:
            done = [await value if inspect.isawaitable(value) else value for value in values]
        except JobControl:
            raise
        except BaseException as error:
            self._keep(error)
            raise
        return self._returned(done[0] if single else done)

    def _returned(self, value: Any) -> Any:
        try:
            return self.values.encode(value)
        except Refusal as refusal:
            advice = refusal.instead.replace("pass ", "return ")
            raise UnstorableResult(refusal.path(RETURN_VALUE), f"{refusal.problem}{': ' * bool(advice)}{advice}") from None

    def _restore(self, context: Mapping[str, Any]) -> None:
        if self.restore is None:
            raise ConfigurationError(
                "this call was submitted with a context, and nothing in this process restores it",
                hint="make the Executor where the application is made, so that workers have it too",
            )
        self.restore(self.values.decode(context))

    def _keep(self, error: BaseException) -> None:
        """Keep what the exception carries beside its text, in the place of a checkpoint that no further attempt will read."""
        job = current_or_none()
        if job is None or job.attempt < job.max_attempts or job.last_checkpoint is not None:
            return
        data = self.values.encode_error(error)
        if data is not None:
            with suppress(InvalidPayload, OSError):
                job.checkpoint(data)

    def _forget_kept(self) -> None:
        """After a retry by hand: the function must not take for its own checkpoint what is ours."""
        job = current_or_none()
        if job is not None and _is_kept(job.last_checkpoint):
            job.checkpoint(None)

    # -- in the process that waits

    def _kept(self, row: Row) -> BaseException | None:
        if row.exit_cause != _RAISED or not row.checkpoint:
            return None
        with suppress(UnreadableValue, ValueError, RecursionError):
            data = json.loads(row.checkpoint)
            if _is_kept(data) and _dotted(data[_EXCEPTION].get("type")) == row.error_type:
                error = self.values.decode(data)
                return error if isinstance(error, BaseException) else None
        return None

    def _rebuilt(self, row: Row) -> BaseException:
        name, text = row.error_type or "unknown error", row.error or ""
        module, _, qualified = name.rpartition(".")
        data = {_EXCEPTION: {"type": f"{module or 'builtins'}:{qualified}", "args": [text], "state": {}}}
        try:
            error = self.values.decode(data)
        except UnreadableValue:
            return RemoteError(name, text)
        return error if isinstance(error, (Exception, SystemExit, KeyboardInterrupt)) else RemoteError(name, text)

    def _named(self, given: Mapping[str, Any]) -> Any:
        """Named values, as one dict: a name that looks like a tag is written as in any other."""
        try:
            return self.values.encode(dict(given), 1)
        except Refusal:
            for name, value in given.items():
                self._argument(name, value)  # refused under its own name
            raise

    def _argument(self, name: str, value: Any) -> Any:
        try:
            return self.values.encode(value, 2)
        except Refusal as refusal:
            raise InvalidPayload(refusal.path(name), refusal.problem, instead=refusal.instead) from None


def _whole(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Callable[..., Any], tuple[Any, ...], Mapping[str, Any]]:
    """A partial is its function with more arguments."""
    called: Any = function
    while isinstance(called, partial):
        called, args, kwargs = called.func, (*called.args, *args), {**called.keywords, **kwargs}
    return called, args, kwargs


def _is_kept(data: Any) -> bool:
    return isinstance(data, dict) and data.keys() == {_EXCEPTION} and isinstance(data[_EXCEPTION], dict)


def _dotted(name: Any) -> str:
    """`module:Class` as failures are recorded."""
    return str(name).replace(":", ".").removeprefix("builtins.").removeprefix("__main__.")
