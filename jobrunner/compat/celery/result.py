"""Owns `AsyncResult`, what a caller holds of a task that was sent, and `EagerResult`, that of one that has run here.

It must not read rows by itself: the app's backend does. Results of several tasks together are refused with the workflows.
"""

from __future__ import annotations

import builtins
import contextlib
import time
from types import GenericAlias
from typing import TYPE_CHECKING, Any, NoReturn

from jobrunner.compat.celery import _state, states
from jobrunner.compat.celery.app.absent import AbsentOfResults
from jobrunner.compat.celery.exceptions import TaskRevokedError, TimeoutError, Unsupported  # noqa: A004  Celery's name
from jobrunner.compat.celery.options import NAMES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from jobrunner.compat.celery.app.base import Celery

__all__ = ["AsyncResult", "EagerResult", "ResultBase", "allow_join_result", "denied_join_result", "result_from_tuple"]

_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 0.5  # seconds between two looks for an id that nobody knows yet
_WOULD_BLOCK = """Never call result.get() within a task!
The tasks that give the result may wait for the slot of this one. Send the next task at the end of this one, or link= it."""


def assert_will_not_block() -> None:
    """Raises RuntimeError inside of a task."""
    if _state.task_join_will_block():
        raise RuntimeError(_WOULD_BLOCK)


@contextlib.contextmanager
def allow_join_result() -> Iterator[None]:
    """Let the block wait for results inside of a task; it may wait for ever."""
    with _state.joining(blocks=False):
        yield


@contextlib.contextmanager
def denied_join_result() -> Iterator[None]:
    """Refuse that in the block."""
    with _state.joining(blocks=True):
        yield


class ResultBase:
    """Base of results."""

    parent: Any = None


class AsyncResult(AbsentOfResults, ResultBase):
    """The result of a task by its id; every question reads the job's row, until the task has finished.

    Args:
        id: of the task.
        backend, task_name, parent: taken for compatibility.
        app: the current one by default.

    Raises:
        ValueError: the id is None.
    """

    TimeoutError = TimeoutError

    def __init__(self, id: str, backend: Any = None, task_name: str | None = None, app: Celery | None = None, parent: Any = None) -> None:  # noqa: A002
        if id is None:
            raise ValueError(f"AsyncResult requires valid id, not {type(id)}")
        self.app = app or _state.get_current_app()
        self.id = id
        self.backend = backend or self.app.backend
        self.parent = parent
        self.ignored = False
        self._name = task_name
        self._cache: dict[str, Any] | None = None

    @property
    def task_id(self) -> str:
        """The id."""
        return self.id

    @task_id.setter
    def task_id(self, value: str) -> None:
        self.id = value

    # -- what is known

    def _meta(self) -> dict[str, Any]:
        if self._cache is not None:
            return self._cache
        meta: dict[str, Any] = self.backend.get_task_meta(self.id)
        if meta["status"] in states.READY_STATES:
            self._cache = meta
        return meta

    @property
    def state(self) -> str:
        """PENDING (it waits or runs, or nobody knows it), STARTED (with `track_started`), RETRY, SUCCESS, FAILURE, REVOKED, or its own."""
        return str(self._meta()["status"])

    status = state

    @property
    def result(self) -> Any:
        """What it returned; the exception that it raised; what it said with `update_state`."""
        return self._meta()["result"]

    info = result

    @property
    def traceback(self) -> str | None:
        """The traceback of its error, as text."""
        return self._meta()["traceback"]  # type: ignore[no-any-return]

    @property
    def date_done(self) -> datetime | None:
        """When it has finished, in UTC."""
        return self._meta().get("date_done")

    @property
    def name(self) -> str | None:
        """The task's name."""
        return self._meta().get("name") or self._name

    args = property(lambda self: self._meta().get("args"))
    kwargs = property(lambda self: self._meta().get("kwargs"))
    worker = property(lambda self: self._meta().get("worker"))
    retries = property(lambda self: self._meta().get("retries"))
    queue = property(lambda self: self._meta().get("queue"))
    children = property(lambda self: self._meta().get("children"))

    def ready(self) -> bool:
        """Whether it has finished."""
        return self.state in states.READY_STATES

    def successful(self) -> bool:
        """Whether it has returned."""
        return self.state == states.SUCCESS

    def failed(self) -> bool:
        """Whether it has raised."""
        return self.state == states.FAILURE

    def exists(self) -> bool:
        """Whether a state is stored for the id."""
        return bool(self.backend.task_result_exists(self.id))

    # -- waiting

    def get(
        self,
        timeout: float | None = None,
        propagate: bool = True,  # noqa: FBT001, FBT002  the signature that is called
        interval: float = 0.5,  # noqa: ARG002
        no_ack: bool = True,  # noqa: ARG002, FBT001, FBT002
        follow_parents: bool = True,  # noqa: ARG002, FBT001, FBT002
        callback: Any = None,
        on_message: Any = None,  # noqa: ARG002
        on_interval: Any = None,
        disable_sync_subtasks: bool = True,  # noqa: FBT001, FBT002
        **_: Any,
    ) -> Any:
        """Wait until the task has finished, and give what it returned.

        Args:
            timeout: seconds; None is for ever. The task goes on when it is over.
            propagate: raise what the task has raised; else give that back.
            callback: called with the id and the result.
            on_interval: called once before the wait.
            disable_sync_subtasks: refuse to wait inside of a task.
            interval, no_ack, follow_parents, on_message: taken for compatibility.

        Raises:
            celery.exceptions.TimeoutError: it has not finished in time, or ended without a state (Ignore, `ignore_result`).
            RuntimeError: this is a task, which could wait for ever.
            Exception: what the task has raised; TaskRevokedError when it was revoked.
        """
        if self.ignored:
            return None
        if disable_sync_subtasks:
            assert_will_not_block()
        if on_interval is not None:
            on_interval()
        if self._cache is None:
            self._wait(timeout)
        return self.maybe_throw(propagate=propagate, callback=callback)

    wait = get

    def _wait(self, timeout: float | None) -> None:
        from jobrunner.handle import Job

        if self.backend.is_eager(self.id):
            return
        ends = None if timeout is None else time.monotonic() + timeout
        pause = _FIRST_PAUSE
        while (where := self.backend.find(self.id)) is None:  # whoever sends it may not have committed yet
            left = None if ends is None else ends - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError("The operation timed out.")
            time.sleep(pause if left is None else min(pause, left))
            pause = min(pause * 2, _LONGEST_PAUSE)
        home, job_id = where
        try:
            Job[Any](home, job_id, "queued", seen=True).wait(None if ends is None else max(0.0, ends - time.monotonic()))
        except builtins.TimeoutError as error:
            raise TimeoutError("The operation timed out.") from error
        if not self.ready():
            raise TimeoutError(f"The task has ended in the state {self.state}: it was ignored, so there is no result to wait for.")

    def maybe_throw(self, propagate: bool = True, callback: Any = None) -> Any:  # noqa: FBT001, FBT002
        """Raise what the task has raised, if it has; else give its result."""
        meta = self._meta()
        value = meta["result"]
        if propagate and meta["status"] in states.PROPAGATE_STATES:
            raise value if isinstance(value, BaseException) else Exception(value)
        if callback is not None:
            callback(self.id, value)
        return value

    maybe_reraise = maybe_throw

    def then(self, callback: Any, on_error: Any = None, weak: bool = False) -> AsyncResult:  # noqa: ARG002, FBT001, FBT002
        """Wait, and call `callback` with this result when the task has succeeded, else `on_error`. Returns the result itself."""
        self.get(propagate=False)
        chosen = callback if self.successful() else on_error
        if chosen is not None:
            chosen(self)
        return self

    # -- ending it

    def revoke(self, connection: Any = None, terminate: bool = False, signal: Any = None, wait: bool = False, timeout: Any = None) -> None:  # noqa: ARG002, FBT001, FBT002
        """Cancel the task; see `app.control.revoke`."""
        self.app.control.revoke(self.id, terminate=terminate, signal=signal)

    def forget(self) -> None:
        """Let the id be unknown from now on; the job's row stays."""
        self._cache = None
        self.backend.forget(self.id)

    # -- as a value

    def as_tuple(self) -> tuple[Any, ...]:
        """The id and that of the parent, for `result_from_tuple`."""
        return (self.id, self.parent and self.parent.as_tuple()), None

    def as_list(self) -> list[str]:
        """The ids of this one and its parents."""
        return [self.id, *(self.parent.as_list() if self.parent is not None else [])]

    def __str__(self) -> str:
        return str(self.id)

    def __hash__(self) -> int:
        return hash(self.id)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, AsyncResult):
            return bool(other.id == self.id)
        return other == self.id if isinstance(other, str) else NotImplemented

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.id}>"

    def __copy__(self) -> Any:
        return type(self)(self.id, app=self.app, parent=self.parent)

    def __reduce__(self) -> Any:
        return type(self), (self.id, None, self._name)

    __class_getitem__: Any = classmethod(GenericAlias)


class EagerResult(AsyncResult):
    """The result of a task that has run where it was called."""

    def __init__(self, id: str, ret_value: Any, state: str, traceback: str | None = None, name: str | None = None) -> None:  # noqa: A002
        self.id, self._name = id, name
        self.parent, self.ignored = None, False
        self._cache = {"status": state, "result": ret_value, "traceback": traceback, "children": [], "name": name}

    @property
    def app(self) -> Any:  # type: ignore[override]
        """The current app."""
        return _state.get_current_app()

    def ready(self) -> bool:
        """It has finished."""
        return True

    def get(self, timeout: Any = None, propagate: bool = True, disable_sync_subtasks: bool = True, **_: Any) -> Any:  # type: ignore[override]  # noqa: ARG002, FBT001, FBT002
        """What the task returned. Raises what it raised, with `propagate`; RuntimeError inside of a task."""
        if disable_sync_subtasks:
            assert_will_not_block()
        if self.state == states.SUCCESS:
            return self.result
        if self.state in states.PROPAGATE_STATES:
            return self.maybe_throw(propagate=propagate)
        return None

    wait = get  # type: ignore[assignment]

    def forget(self) -> None:
        """Nothing: there is no row."""

    def revoke(self, *_args: Any, **_kwargs: Any) -> None:
        """Make it read REVOKED; it has run."""
        self._cache = {**(self._cache or {}), "status": states.REVOKED, "result": TaskRevokedError("revoked"), "traceback": None}

    def exists(self) -> bool:
        """It is there."""
        return True

    def __reduce__(self) -> Any:
        return EagerResult, (self.id, self.result, self.state, self.traceback, self._name)

    def __copy__(self) -> Any:
        return EagerResult(self.id, self.result, self.state, self.traceback, self._name)

    def __repr__(self) -> str:
        return f"<EagerResult: {self.id}>"


class GroupResult(ResultBase):
    """Refused: groups are not there yet."""

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        raise Unsupported("GroupResult", NAMES["group"].note)

    @classmethod
    def restore(cls, *_args: Any, **_kwargs: Any) -> NoReturn:
        """Raises Unsupported."""
        raise Unsupported("GroupResult", NAMES["group"].note)


class ResultSet(ResultBase):
    """Refused: sets of results come with groups."""

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        raise Unsupported("ResultSet", NAMES["group"].note)


def result_from_tuple(r: Any, app: Celery | None = None) -> AsyncResult:
    """The result that `as_tuple` was made of."""
    if isinstance(r, AsyncResult):
        return r
    (task_id, parent), nodes = r
    if nodes is not None:
        raise Unsupported("GroupResult", NAMES["group"].note)
    return AsyncResult(task_id, app=app, parent=result_from_tuple(parent, app) if parent else None)
