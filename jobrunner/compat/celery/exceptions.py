"""Owns the exceptions that code imports from `celery.exceptions`, under the same names and bases.

It must not wrap what Jobrunner raises in a task: the two time limits are its own classes, so that `except` finds them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobrunner.errors import SoftTimeLimitExceeded, TimeLimitExceeded

if TYPE_CHECKING:
    from datetime import datetime
    from types import TracebackType

__all__ = [
    "AlreadyRegistered", "AlwaysEagerIgnored", "BackendError", "BackendGetMetaError", "BackendStoreError", "CDeprecationWarning",
    "CPendingDeprecationWarning", "CeleryError", "CeleryWarning", "ChordError", "DuplicateNodenameWarning", "DuplicateTaskNameWarning",
    "EncodeError", "FixupWarning", "Ignore", "ImproperlyConfigured", "IncompleteStream", "InvalidTaskError", "MaxRetriesExceededError",
    "NotConfigured", "NotRegistered", "OperationalError", "QueueNotFound", "Reject", "Retry", "RetryTaskError", "SecurityError",
    "SecurityWarning", "SoftTimeLimitExceeded", "TaskError", "TaskPredicate", "TaskRevokedError", "Terminated", "TimeLimitExceeded",
    "TimeoutError", "Unsupported", "UnsupportedWarning", "WorkerLostError", "WorkerShutdown", "WorkerTerminate", "reraise",
]  # fmt: skip


def reraise(_type: type[BaseException], value: BaseException, traceback: TracebackType | None = None) -> None:
    """Raise `value` with that traceback."""
    raise value.with_traceback(traceback) if value.__traceback__ is not traceback else value


class CeleryWarning(UserWarning):
    """Base of the warnings."""


class AlwaysEagerIgnored(CeleryWarning):
    """`send_task` writes a job whatever `task_always_eager` says."""


class DuplicateNodenameWarning(CeleryWarning):
    """Several workers have one name."""


class DuplicateTaskNameWarning(CeleryWarning):
    """Several functions are registered under one task name; the first one counts."""


class FixupWarning(CeleryWarning):
    """About an integration of Celery's."""


class NotConfigured(CeleryWarning):
    """There is no configuration module."""


class SecurityWarning(CeleryWarning):
    """A possible hole."""


class UnsupportedWarning(CeleryWarning):
    """Something was configured that Jobrunner does not do; the message says what does it until then."""


class CDeprecationWarning(DeprecationWarning):
    """Of something that goes away."""


class CPendingDeprecationWarning(PendingDeprecationWarning):
    """Of something that will go away."""


class CeleryError(Exception):
    """Base of the errors."""


class ImproperlyConfigured(CeleryError):
    """A setting or an option cannot be honoured."""


class Unsupported(ImproperlyConfigured, NotImplementedError):
    """A part of Celery's interface that is not there (yet); the message says what to use meanwhile."""

    def __init__(self, what: str, instead: str) -> None:
        super().__init__(f"jobrunner.compat.celery does not support {what}: {instead}")
        self.what, self.instead = what, instead


class SecurityError(CeleryError):
    """Something was refused for safety."""


class TaskPredicate(CeleryError):
    """Base of what a task raises to steer its own end."""


class Retry(TaskPredicate):
    """The task is to run again later.

    Attributes:
        message: words of the caller's own.
        exc: why, if an exception is why; excs: its representation.
        when: seconds from then, or the moment.
        is_eager: whether it was raised where no worker is.
        sig: the call that is to follow.
    """

    def __init__(
        self,
        message: str | None = None,
        exc: BaseException | str | None = None,
        when: float | datetime | None = None,
        is_eager: bool = False,  # noqa: FBT001, FBT002  the signature that is called
        sig: Any = None,
        **kwargs: Any,
    ) -> None:
        self.message = message
        self.exc: BaseException | None = None if isinstance(exc, str) else exc
        self.excs: str | None = exc if isinstance(exc, str) else repr(exc) if exc is not None else None
        self.when, self.is_eager, self.sig = when, is_eager, sig
        super().__init__(message, exc, when, **kwargs)

    def humanize(self) -> str:
        """When, in words."""
        return f"in {self.when}s" if isinstance(self.when, (int, float)) else f"at {self.when}"

    def __str__(self) -> str:
        if self.message:
            return self.message
        return f"Retry {self.humanize()}: {self.excs}" if self.excs else f"Retry {self.humanize()}"

    def __reduce__(self) -> tuple[Any, ...]:
        return self.__class__, (self.message, self.exc, self.when)


RetryTaskError = Retry


class Ignore(TaskPredicate):
    """The task ends and no state is stored for it: what `update_state` said last stands."""


class Reject(TaskPredicate):
    """The task runs again with `requeue`, and `request.delivery_info["redelivered"]` is True then; else it has failed with this."""

    def __init__(self, reason: Any = None, requeue: bool = False) -> None:  # noqa: FBT001, FBT002  the signature that is called
        self.reason, self.requeue = reason, requeue
        super().__init__(reason, requeue)

    def __repr__(self) -> str:
        return f"reject requeue={self.requeue}: {self.reason}"


class TaskError(CeleryError):
    """Base of errors about tasks."""


class QueueNotFound(KeyError, TaskError):
    """The queue is not in `task_queues`, and `task_create_missing_queues` is off."""


class IncompleteStream(TaskError):
    """The results that were asked for are not all there."""


class NotRegistered(KeyError, TaskError):
    """No task has that name."""

    def __repr__(self) -> str:
        return f"Task of kind {self} never registered, please make sure it's imported."


class AlreadyRegistered(TaskError):
    """Another task has that name."""


class TimeoutError(TaskError):  # noqa: A001  the name that is imported
    """The result did not come in time; the task goes on."""


class MaxRetriesExceededError(TaskError):
    """`retry` was called once more than `max_retries` allows."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.task_args = kwargs.pop("task_args", [])
        self.task_kwargs = kwargs.pop("task_kwargs", {})
        super().__init__(*args, **kwargs)


class TaskRevokedError(TaskError):
    """The task was revoked, so it has no result; the argument is `revoked`, `expired` or `terminated`."""


class InvalidTaskError(TaskError):
    """The call cannot be understood."""


class ChordError(TaskError):
    """A task of a chord failed."""


class WorkerShutdown(SystemExit):
    """The worker should end in order."""


class WorkerTerminate(SystemExit):
    """The worker should end at once."""


class BackendError(Exception):
    """Results could not be read or written."""


class BackendGetMetaError(BackendError):
    """A result could not be read."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.task_id = kwargs.get("task_id", "")
        super().__init__(*args)


class BackendStoreError(BackendError):
    """A result could not be written."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.state, self.task_id = kwargs.get("state", ""), kwargs.get("task_id", "")
        super().__init__(*args)


class WorkerLostError(Exception):
    """The process that ran the task is gone: it crashed, was killed, or its worker was lost. The task is not known to have ended."""


class Terminated(Exception):
    """The process that ran the task was ended on request."""


class OperationalError(Exception):
    """The database did not answer, so the task was not sent; `__cause__` says why."""


class EncodeError(Exception):
    """An argument or a result cannot be stored as typed JSON."""
