"""Owns `Task`, the class of every task: its options, the ways to call it, the hooks that subclasses override.

It must not write rows (`app.base` sends) nor run as a worker does (`app.trace`).
"""

from __future__ import annotations

from types import GenericAlias
from typing import TYPE_CHECKING, Any

from jobrunner.compat.celery import _state
from jobrunner.compat.celery.app import retrying
from jobrunner.compat.celery.app.binding import BoundOptions
from jobrunner.compat.celery.app.context import Context
from jobrunner.compat.celery.exceptions import Unsupported
from jobrunner.compat.celery.options import NAMES
from jobrunner.compat.celery.utils import uuid

if TYPE_CHECKING:
    from jobrunner.compat.celery.canvas import Signature
    from jobrunner.compat.celery.result import AsyncResult, EagerResult

__all__ = ["BaseTask", "Context", "Task"]

_EXECUTION_OPTIONS = (
    "queue", "routing_key", "exchange", "priority", "expires", "serializer", "delivery_mode", "compression", "time_limit",
    "soft_time_limit",
)  # fmt: skip


class Task(BoundOptions):
    """A task. What `@app.task` makes is one object of a subclass, whose `run` is the function.

    Attributes are Celery's; what becomes of each is in `jobrunner.compat.celery.options.TASK_OPTIONS`.
    """

    _own_request: Context | None = None

    # -- ways to call it

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """The body of the task."""
        raise NotImplementedError("Tasks must define the run method.")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the body here and now: no job, no retries, no limits."""
        request = _state.request_of(self)
        if request is not None and not request.called_directly and not request._protected and _state.depth_of(self) == 1:  # noqa: SLF001
            # A subclass whose __call__ ends in super().__call__(): this still is the worker's call, so its request stays.
            request._protected = 1  # noqa: SLF001
            return self.run(*args, **kwargs)
        with _state.running(self, Context(args=args, kwargs=kwargs)):
            return self.run(*args, **kwargs)

    def delay(self, *args: Any, **kwargs: Any) -> AsyncResult:
        """Send the task with these arguments; see `apply_async`."""
        return self.apply_async(args, kwargs)

    def apply_async(
        self,
        args: Any = None,
        kwargs: Any = None,
        task_id: str | None = None,
        producer: Any = None,
        link: Any = None,
        link_error: Any = None,
        shadow: str | None = None,
        **options: Any,
    ) -> AsyncResult:
        """Send the task: one job, committed on a connection of its own before this returns.

        It never joins the transaction of the application's session; `delay_on_commit` and `session=` do.

        Args:
            args, kwargs: the arguments.
            task_id: a UUID by default.
            producer: taken for compatibility.
            link, link_error: signatures to be sent when it has succeeded, or failed.
            shadow: a name for logs.
            **options: see `jobrunner.compat.celery.options.CALL_OPTIONS`; seconds for countdown, expires and limits.

        Raises:
            TypeError: the arguments do not fit the signature (`typing`).
            ValueError: soft_time_limit is above time_limit.
            EncodeError: an argument cannot be stored as typed JSON.
            OperationalError: the database did not answer; whether the job exists is not known when it broke off amid the sending.
        """
        if self.soft_time_limit and self.time_limit and self.soft_time_limit > self.time_limit:
            raise ValueError("soft_time_limit must be less than or equal to time_limit")
        if self.typing and (check := getattr(self, "__header__", None)) is not None:
            check(*(args or ()), **(kwargs or {}))
        shadow = shadow or self.shadow_name(args, kwargs, options)
        options = {**self._execution_options(), **options}
        options.setdefault("ignore_result", self.ignore_result)
        app = self._get_app()
        if app.conf.task_always_eager:
            args, kwargs = app.round_trip(args, kwargs)
            with _state.joining(blocks=True):
                return self.apply(args, kwargs, task_id=task_id or uuid(), link=link, link_error=link_error, shadow=shadow, **options)
        return app.send_task(
            self.name, args, kwargs, task_id=task_id, producer=producer, link=link, link_error=link_error, result_cls=self.AsyncResult,
            shadow=shadow, task_type=self, **options,
        )  # fmt: skip

    def delay_on_commit(self, *args: Any, **kwargs: Any) -> AsyncResult:
        """Send the task in the transaction of the application's session; see `apply_async_on_commit`."""
        return self.apply_async_on_commit(args, kwargs)

    def apply_async_on_commit(self, args: Any = None, kwargs: Any = None, *, session: Any = None, **options: Any) -> AsyncResult:
        """Send the task so that the job exists from the commit of a transaction on, and never if that is rolled back.

        Args:
            args, kwargs: the arguments.
            session: a SQLAlchemy Session, `db.session` or a function that gives one; the session of `Celery(session=…)` by default.
            **options: as of `apply_async`.

        Returns:
            The result, whose id is final: it may be stored in the same transaction.

        Raises:
            ImproperlyConfigured: there is no session.
            And what `apply_async` raises.
        """
        return self.apply_async(args, kwargs, session=self._get_app().session_of(session), **options)

    def apply(
        self,
        args: Any = None,
        kwargs: Any = None,
        link: Any = None,
        link_error: Any = None,
        task_id: str | None = None,
        retries: int | None = None,
        throw: bool | None = None,  # noqa: FBT001  the signature that is called
        logfile: Any = None,
        loglevel: Any = None,
        headers: Any = None,
        **options: Any,
    ) -> EagerResult:
        """Run the task here, as a worker would, retries at once included. Returns its result; raises when `throw`."""
        from jobrunner.compat.celery.app import eager

        app = self._get_app()
        task = app.tasks[self.name]
        request = {
            "callbacks": link, "errbacks": link_error, "retries": retries or 0, "logfile": logfile, "loglevel": loglevel or 0,
            "headers": headers, "id": task_id or uuid(), "ignore_result": options.get("ignore_result", self.ignore_result),
        }  # fmt: skip
        return eager.apply(task, tuple(args or ()), dict(kwargs or {}), request, options, throw=throw)

    def retry(
        self,
        args: Any = None,
        kwargs: Any = None,
        exc: BaseException | None = None,
        throw: bool = True,  # noqa: FBT001, FBT002  the signature that is called
        eta: Any = None,
        countdown: float | None = None,
        max_retries: int | None = None,
        **options: Any,
    ) -> Any:
        """End this attempt and run the task again later, under the same id.

        Args:
            args, kwargs: other arguments for it.
            exc: why; raised when no retry is left. Without it `MaxRetriesExceededError` is.
            throw: False: give the Retry back instead of raising it; the retry follows however this attempt ends.
            eta, countdown: when; after `default_retry_delay` seconds by default.
            max_retries: instead of the task's own, for this call.
            **options: of the call, such as `queue`.

        Raises:
            Retry: always, unless `throw` is False.
        """
        return retrying.retry(self, args, kwargs, exc, throw=throw, eta=eta, countdown=countdown, max_retries=max_retries, options=options)

    # -- results and signatures

    def AsyncResult(self, task_id: str, **kwargs: Any) -> AsyncResult:  # noqa: N802  the name that is called
        """The result of a call of this task."""
        found: AsyncResult = self._get_app().AsyncResult(task_id, task_name=self.name, **kwargs)
        return found

    def signature(self, args: Any = None, *starargs: Any, **starkwargs: Any) -> Signature:
        """A call that can be kept, changed, passed on and sent."""
        from jobrunner.compat.celery.canvas import signature

        starkwargs.setdefault("app", self.app)
        return signature(self, args, *starargs, **starkwargs)

    subtask = signature

    def s(self, *args: Any, **kwargs: Any) -> Signature:
        """A signature with these arguments; a result that is passed on comes before them."""
        return self.signature(args, kwargs)

    def si(self, *args: Any, **kwargs: Any) -> Signature:
        """The same for one that takes no result."""
        return self.signature(args, kwargs, immutable=True)

    def signature_from_request(
        self, request: Context | None = None, args: Any = None, kwargs: Any = None, queue: Any = None, **extra: Any
    ) -> Signature:
        """The signature of the call that runs, with other values for some."""
        request = self.request if request is None else request
        options = {**request.as_execution_options(), **extra}
        delivery = request.delivery_info or {}
        for name, value in (("priority", delivery.get("priority")), ("queue", queue or delivery.get("routing_key"))):
            if value is not None:
                options.setdefault(name, value)
        return self.signature(
            request.args if args is None else args, request.kwargs if kwargs is None else kwargs, options=options, type=self
        )

    subtask_from_request = signature_from_request

    # -- what is not there

    def chunks(self, *_args: Any, **_kwargs: Any) -> Any:
        """Raises Unsupported."""
        raise Unsupported("Task.chunks", NAMES["Task.chunks"].note)

    def map(self, *_args: Any, **_kwargs: Any) -> Any:
        """Raises Unsupported."""
        raise Unsupported("Task.map", NAMES["Task.map"].note)

    def starmap(self, *_args: Any, **_kwargs: Any) -> Any:
        """Raises Unsupported."""
        raise Unsupported("Task.starmap", NAMES["Task.starmap"].note)

    def replace(self, *_args: Any, **_kwargs: Any) -> Any:
        """Raises Unsupported."""
        raise Unsupported("Task.replace", NAMES["Task.replace"].note)

    def add_to_chord(self, *_args: Any, **_kwargs: Any) -> Any:
        """Raises Unsupported."""
        raise Unsupported("Task.add_to_chord", NAMES["Task.add_to_chord"].note)

    def send_event(self, type_: str, retry: Any = None, retry_policy: Any = None, **fields: Any) -> None:
        """Nothing: there are no event messages; what `update_state` says can be read by everybody."""

    # -- the call that runs

    @property
    def request(self) -> Context:
        """The call that runs; an empty one outside of any."""
        found = _state.request_of(self)
        if found is not None:
            return found
        if self._own_request is None:
            self._own_request = Context()
        return self._own_request

    def push_request(self, *args: Any, **kwargs: Any) -> None:
        """Make a request the current one, for tests; `pop_request` ends it."""
        _state.push_request(self, Context(*args, **{**vars(self.request), **kwargs}))

    def pop_request(self) -> None:
        """Take that back."""
        _state.pop_request(self)

    def update_state(self, task_id: str | None = None, state: str | None = None, meta: Any = None, **kwargs: Any) -> None:  # noqa: ARG002
        """Say which state the task is in, and something beside it; `AsyncResult.state` and `.info` give them at once.

        Written to the job's row, refused once this attempt is superseded. `{"current": 4, "total": 10, "status": "…"}` shows as progress.
        """
        request = self.request
        self._get_app().backend.store_result(task_id or request.id, meta, state, request=request)

    def add_trail(self, result: Any) -> Any:
        """Note a result among the children of the call that runs."""
        if self.trail:
            self.request.children.append(result)
        return result

    @property
    def backend(self) -> Any:
        """What reads and writes results."""
        return self._get_app().backend

    # -- for subclasses

    def shadow_name(self, args: Any, kwargs: Any, options: dict[str, Any]) -> str | None:
        """Another name for logs; for subclasses."""

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        """Called before the body; for subclasses, as are the following."""

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        """Called when the body has returned."""

    def on_retry(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        """Called when the task is to be retried."""

    def on_failure(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        """Called when the task has failed."""

    def after_return(self, status: str, retval: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        """Called after success or failure."""

    def _execution_options(self) -> dict[str, Any]:
        return {name: value for name in _EXECUTION_OPTIONS if (value := getattr(self, name, None)) is not None}

    _get_exec_options = _execution_options

    @property
    def __name__(self) -> Any:
        return type(self).__name__

    __class_getitem__: Any = classmethod(GenericAlias)

    def __reduce__(self) -> Any:
        return _by_name, (self.name,)

    def __repr__(self) -> str:
        return f"<@task: {self.name}>"


BaseTask = Task


def _by_name(name: str) -> Task:
    found: Task = _state.get_current_app().tasks[name]
    return found
