"""Owns what a task is: a registered function, its policy, and the two ways to call it (here and now, or by a worker).

It must not talk to the database: it hands bound calls to the submitter it was registered with.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Protocol, TypeVar, overload

from jobrunner import payload
from jobrunner.checks import check_name
from jobrunner.errors import ConfigurationError, UnknownTask
from jobrunner.payload import Parameters
from jobrunner.policies import DEFAULT_SESSION, Options, Running
from jobrunner.settings import MESSAGE_TASK

if TYPE_CHECKING:
    from typing import Unpack

    from jobrunner.handle import Job
    from jobrunner.policies import EnqueueOptions, Policy

P = ParamSpec("P")
R = TypeVar("R")

DEFAULT_RUNNING = Running()
SESSION = "session"  # the parameter of a transactional task that the worker fills


class Submitter(Protocol):
    """What writes jobs on behalf of a task."""

    def submit(self, task: Task[..., Any], options: Options, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Job[Any]:
        """Write one job."""

    def submit_many(self, task: Task[..., Any], options: Options, calls: Iterable[Any]) -> Sequence[int]:
        """Write one job per call."""


class Task(Generic[P, R]):
    """A function that workers may run, by a name that is stored in its jobs.

    Calling it runs the function here and now and writes nothing; `enqueue` writes a job.

    Attributes:
        name: stored in the row; renaming a task orphans its waiting jobs.
        fn: what the worker calls.
        policy: queue, attempts, backoff and limits.
        running: transactional or not, and what goes into the job's log.
        is_async: whether the function is an `async def`.
    """

    def __init__(
        self, function: Callable[..., Any], name: str, policy: Policy, submitter: Submitter, running: Running = DEFAULT_RUNNING
    ) -> None:
        functools.update_wrapper(self, function)
        self.fn = function
        self.name = name
        self.policy = policy
        self.running = running
        self.is_async = inspect.iscoroutinefunction(function)
        self._submitter = submitter
        self._options = Options(policy, MappingProxyType(policy.columns()), session=DEFAULT_SESSION)

    @functools.cached_property
    def parameters(self) -> Parameters:
        """The compiled parameters; made at the first enqueue, when every name the annotations use exists."""
        return Parameters(self.fn, self.name, filled_by_worker=(SESSION,) if self.running.transactional else ())

    @property
    def result_annotation(self) -> Any:
        """What the function says it returns; Any when it says nothing."""
        return self.parameters.returns

    def decode_result(self, data: Any) -> Any:
        """A stored result as the function returned it. Raises InvalidPayload when it does not fit the return annotation."""
        return payload.decode_result(self.result_annotation, data)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function here and now: no row, no retries, no limits."""
        return self.fn(*args, **kwargs)  # type: ignore[no-any-return]

    def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> Job[R]:
        """Write one job; a worker runs the function with these arguments.

        One INSERT in its own short transaction, or in the transaction of the app's default session when it has one: then the job
        exists from that commit on. Takes no lock that others wait for, but for `unique` tasks: a second transaction that enqueues
        the same key waits for the first.

        Returns:
            The job; with `unique`, perhaps one that was there already (`job.created` is False).

        Raises:
            InvalidPayload: an argument is missing, unexpected, too large, or JSON could not bring it back.
        """
        return self._submitter.submit(self, self._options, args, kwargs)

    def enqueue_many(self, calls: Iterable[Any]) -> Sequence[int]:
        """Write one job per call, all or none, in one transaction (COPY for large batches).

        Args:
            calls: a tuple holds positional arguments, a dict holds keyword arguments, anything else is the only argument.

        Returns:
            The ids, in the order of the calls.

        Raises:
            InvalidPayload: naming the call by its index, such as `[3].user_id`; nothing is written.
        """
        return self._submitter.submit_many(self, self._options, calls)

    def options(self, **given: Unpack[EnqueueOptions]) -> BoundTask[P, R]:
        """The task with other values for one enqueue; durations are seconds, a timedelta, or text such as '90s'.

        Args:
            **given: `delay` or `run_at`; the task's own `queue`, `priority`, `max_attempts`, backoff, `max_crashes`, limits, `tags` and
                `unique` by their names; `ordering_key` (jobs of a queue with the same one run one after the other, in the order of
                their ids); `expires_at` or `ttl` (not begun any more after that); `meta` (a dict kept in the row), `parent_id` (the
                running job, when there is one); `reference=(space, key)`, by which other processes find the job
                (`jobrunner.references`; a taken one is refused: DuplicateReference); `session` or `connection` to write in the
                caller's transaction (`session=None`: in its own).

        Raises:
            ConfigurationError: a value is out of range; the message names the parameter.
        """
        return BoundTask(self, self._options.with_values(given))

    def __repr__(self) -> str:
        return f"<Task {self.name!r} queue={self.policy.queue!r}>"


class AsyncTask(Task[P, R]):
    """A task whose function is an `async def`: calling it gives the coroutine, its jobs return what the coroutine returns."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:  # type: ignore[override]
        """The coroutine, to be awaited here and now: no row, no retries, no limits."""
        return self.fn(*args, **kwargs)  # type: ignore[no-any-return]


class BoundTask(Generic[P, R]):
    """A task with the options of one enqueue; made by `task.options(...)`."""

    __slots__ = ("_options", "task")

    def __init__(self, task: Task[P, R], options: Options) -> None:
        self.task = task
        self._options = options

    def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> Job[R]:
        """Write one job; see `Task.enqueue`."""
        return self.task._submitter.submit(self.task, self._options, args, kwargs)  # noqa: SLF001  one class in two halves

    def enqueue_many(self, calls: Iterable[Any]) -> Sequence[int]:
        """Write one job per call; see `Task.enqueue_many`."""
        return self.task._submitter.submit_many(self.task, self._options, calls)  # noqa: SLF001

    def options(self, **given: Unpack[EnqueueOptions]) -> BoundTask[P, R]:
        """The same with further values; see `Task.options`."""
        return BoundTask(self.task, self._options.with_values(given))


class TransactionalTask(Task[..., R]):
    """A task that gets a `session` from the worker: its callers pass the other arguments, which types cannot say."""


class TransactionalDecorator(Protocol):
    """What `@jobs.task(transactional=True, ...)` gives."""

    def __call__(self, function: Callable[..., R], /) -> TransactionalTask[R]:
        """The task; its function must take `session` by keyword."""


class TaskDecorator(Protocol):
    """What `@jobs.task(...)` gives: it turns a function into a Task of the same signature."""

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncTask[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Task[P, R]: ...


class Registry(Mapping[str, Task[..., Any]]):
    """The tasks of one JobRunner by name: the only functions its workers will run.

    Tasks of Jobrunner's own are found by their names, and stand in no list.
    """

    def __init__(self) -> None:
        self._tasks: dict[str, Task[..., Any]] = {}
        self._own: dict[str, Callable[[], Task[..., Any]]] = {}

    def provide(self, name: str, make: Callable[[], Task[..., Any]]) -> None:
        """Add a task of Jobrunner's own; `make` gives it when it is looked for."""
        self._own[name] = make

    def get(self, name: str) -> Task[..., Any]:  # type: ignore[override]  # a missing task is an error, never None
        """The task of that name. Raises UnknownTask with the closest names."""
        try:
            return self._tasks[name]
        except KeyError:
            if name in self._own:
                return self._own[name]()
            raise UnknownTask(name, self._tasks) from None

    __getitem__ = get

    def find(self, name: str) -> Task[..., Any] | None:
        """The task of that name, or None."""
        found = self._tasks.get(name)
        return self._own[name]() if found is None and name in self._own else found

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._tasks)

    def __contains__(self, name: object) -> bool:
        return name in self._tasks

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self._tasks)

    def register(
        self,
        function: Callable[..., Any],
        name: str | None,
        policy: Policy,
        submitter: Submitter,
        running: Running = DEFAULT_RUNNING,
    ) -> Task[..., Any]:
        """Make a function a task.

        Raises:
            ConfigurationError: it cannot be one, or another function has that name.
        """
        chosen = _name_of(function, name)
        if chosen in self._own:
            raise ConfigurationError(f"{chosen!r} is the name of a task of Jobrunner's own", hint="give yours another: @jobs.task(name=…)")
        if running.transactional:
            _check_takes_session(function)
        task_class = TransactionalTask if running.transactional else AsyncTask if inspect.iscoroutinefunction(function) else Task
        task: Task[..., Any] = task_class(function, chosen, policy, submitter, running)
        known = self._tasks.get(chosen)
        # The same function again is an app factory called twice, or a reloaded module: the newest one counts.
        if known is not None and _identity(known.fn) != _identity(function):
            raise ConfigurationError(
                f"two tasks are named {chosen!r}: {_where(known.fn)} and {_where(function)}",
                hint=f"give one of them another name: @jobs.task(name={function.__module__.rpartition('.')[2] + '.' + chosen!r})",
            )
        self._tasks[chosen] = task
        return task


def _name_of(function: Any, name: str | None) -> str:
    if isinstance(function, Task):
        raise ConfigurationError(f"{function.name!r} is a task already", hint="use @jobs.task once per function")
    if not callable(function) or isinstance(function, (type, staticmethod, classmethod)):
        raise ConfigurationError(f"@jobs.task is for functions, not for {function!r}")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigurationError(
            f"{_where(function)} is a generator: calling it would run nothing",
            hint="make it a function that loops over its work, or enqueue one job per item",
        )
    chosen = name if name is not None else getattr(function, "__name__", None)
    if chosen is None or chosen == "<lambda>":
        raise ConfigurationError(
            "@jobs.task: a lambda or partial has no name of its own", hint="give one: jobs.task(name='resize')(function)"
        )
    if chosen == MESSAGE_TASK:
        raise ConfigurationError(f"@jobs.task(name={chosen!r}): this name belongs to the messages of jobs.queue(…)", hint="choose another")
    try:
        return check_name(chosen, "a task's name")
    except ValueError as error:
        raise ConfigurationError(f"@jobs.task(name={chosen!r}): {error}") from None


def _check_takes_session(function: Any) -> None:
    """A transactional task must be able to take the worker's Session by keyword, and must not await while its transaction is open."""
    parameters = inspect.signature(function).parameters
    found = parameters.get(SESSION)
    variable = any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in parameters.values())
    by_keyword = inspect.Parameter.KEYWORD_ONLY if variable else inspect.Parameter.POSITIONAL_OR_KEYWORD
    if found is None or found.kind not in {by_keyword, inspect.Parameter.KEYWORD_ONLY}:
        raise ConfigurationError(
            f"@jobs.task(transactional=True): {_where(function)} cannot be given the session",
            hint=f"add a keyword parameter: def {function.__name__}(…, *, {SESSION}: Session)",
        )
    if inspect.iscoroutinefunction(function):
        raise ConfigurationError(
            f"@jobs.task(transactional=True): {_where(function)} is an async def, and the session that it would get is not",
            hint="make it a plain def; its database work blocks anyway until it commits",
        )


def _identity(function: Any) -> tuple[str, str]:
    return getattr(function, "__module__", ""), getattr(function, "__qualname__", repr(function))


def _where(function: Any) -> str:
    module, qualified = _identity(function)
    return f"{module}.{qualified}"
