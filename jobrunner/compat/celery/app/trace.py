"""Owns one run of a task's body: hooks, signals and log lines around it in Celery's order, and what is said of its end.

It must not know where states are kept nor what becomes of the job: a `Sink` does.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from jobrunner.compat.celery import _state, canvas, signals, states
from jobrunner.compat.celery.app.registry import takes_the_error
from jobrunner.compat.celery.app.task import Task
from jobrunner.compat.celery.einfo import ExceptionInfo
from jobrunner.compat.celery.exceptions import Ignore, NotRegistered, Reject, Retry

if TYPE_CHECKING:
    from jobrunner.compat.celery.app.context import Context

logger = logging.getLogger("celery.app.trace")  # by this name applications set its level and their filters

_HOOKS_RUN = frozenset({states.SUCCESS, states.FAILURE})


class Sink(Protocol):
    """Where a run says its states."""

    def started(self) -> None:
        """The body is about to run."""

    def succeeded(self, value: Any) -> None:
        """It has returned. Raises EncodeError for what cannot be kept: then it has failed."""

    def failed(self, error: BaseException, einfo: ExceptionInfo) -> None:
        """It has raised."""

    def retried(self, reason: Retry, einfo: ExceptionInfo) -> None:
        """It is to run again."""


class Outcome(NamedTuple):
    """How a run ended: the state, and what was returned or raised."""

    state: str
    value: Any
    einfo: ExceptionInfo | None = None


def trace(task: Task, request: Context, sink: Sink, *, propagates: bool = False) -> Outcome:
    """Run the body of a task for a request.

    Args:
        propagates: raise what the body raises; for eager calls that are to.

    Returns:
        The outcome; of IGNORED, REJECTED and RETRY the value is the exception that said so.
    """
    args, kwargs, task_id = request.args, request.kwargs, str(request.id)
    outcome = Outcome(states.FAILURE, None)
    with _state.running(task, request):
        try:
            signals.task_prerun.send(sender=task, task_id=task_id, task=task, args=args, kwargs=kwargs)
            try:
                outcome = _run(task, request, sink, propagates=propagates)
                if outcome.state in _HOOKS_RUN:
                    _hook(task, request, "after_return", outcome.state, outcome.value, task_id, args, kwargs, None)
            except Exception as error:
                if request.is_eager:
                    raise
                outcome = _internal(task, request, sink, error)
        finally:
            signals.task_postrun.send(
                sender=task, task_id=task_id, task=task, args=args, kwargs=kwargs, retval=outcome.value, state=outcome.state
            )
    return outcome


def _run(task: Task, request: Context, sink: Sink, *, propagates: bool) -> Outcome:
    began = time.monotonic()
    call = task if type(task).__call__ is not Task.__call__ else task.run
    try:
        sink.started()
        if type(task).before_start is not Task.before_start:
            task.before_start(str(request.id), request.args, request.kwargs)
        value = call(*request.args, **request.kwargs)
        if request._retry is not None:  # noqa: SLF001  asked for with throw=False
            raise request._retry  # noqa: SLF001, TRY301  as if the body had raised it
        _send_callbacks(task, request, value)
        sink.succeeded(value)
    except Reject as reject:
        return _rejected(task, request, sink, reject)
    except Ignore as ignore:
        logger.info("Task %s[%s] ignored", _name(task, request), request.id)
        return Outcome(states.IGNORED, ignore)
    except Retry as reason:
        if propagates:
            raise
        return _retried(task, request, sink, reason)
    except Exception as error:
        if propagates:
            raise
        return _failed(task, request, sink, error)
    runtime = time.monotonic() - began
    if type(task).on_success is not Task.on_success:
        _hook(task, request, "on_success", value, str(request.id), request.args, request.kwargs)
    signals.task_success.send(sender=task, result=value, runtime=runtime)
    logger.info("Task %s[%s] succeeded in %ss", _name(task, request), request.id, runtime)  # not what it returned: logs are read by many
    return Outcome(states.SUCCESS, value)


def _rejected(task: Task, request: Context, sink: Sink, reject: Reject) -> Outcome:
    """One that is not to run again has failed with that; no hook of the task is called. Source: Celery 5.7's `Request.on_failure`."""
    logger.warning("Task %s[%s] %r", _name(task, request), request.id, reject)
    if reject.requeue or request.is_eager:
        return Outcome(states.REJECTED, reject)
    einfo = ExceptionInfo(reject)
    sink.failed(reject, einfo)
    try:
        _call_errbacks(task, request, reject, einfo)
    except Exception as another:  # noqa: BLE001  as in _failed
        _report(task, request, another)
    _send_failure(task, request, reject, einfo)
    return Outcome(states.REJECTED, reject)


def _retried(task: Task, request: Context, sink: Sink, reason: Retry) -> Outcome:
    einfo = ExceptionInfo(reason)
    sink.retried(reason, einfo)
    task.on_retry(reason.exc, str(request.id), request.args, request.kwargs, einfo)
    signals.task_retry.send(sender=task, request=request, reason=reason, einfo=einfo)
    logger.info("Task %s[%s] retry: %s", _name(task, request), request.id, reason)
    return Outcome(states.RETRY, reason, einfo)


def _failed(task: Task, request: Context, sink: Sink, error: Exception, *, internal: bool = False) -> Outcome:
    einfo = ExceptionInfo(error, internal=internal)
    sink.failed(error, einfo)
    try:
        _call_errbacks(task, request, error, einfo)
        task.on_failure(error, str(request.id), request.args, request.kwargs, einfo)
    except Exception as another:
        if request.is_eager:
            raise
        _report(task, request, another)  # what the task itself has failed with is its result all the same
    _send_failure(task, request, error, einfo)
    if task.throws and isinstance(error, tuple(task.throws) if isinstance(task.throws, (list, tuple)) else task.throws):
        logger.info("Task %s[%s] raised expected: %r", _name(task, request), request.id, error)
    else:
        logger.error("Task %s[%s] raised unexpected: %r", _name(task, request), request.id, error, exc_info=einfo.exc_info)
    return Outcome(states.FAILURE, error, einfo)


def _send_failure(task: Task, request: Context, error: Exception, einfo: ExceptionInfo) -> None:
    signals.task_failure.send(
        sender=task, task_id=request.id, exception=error, args=request.args, kwargs=request.kwargs, traceback=einfo.tb, einfo=einfo
    )


def _internal(task: Task, request: Context, sink: Sink, error: Exception) -> Outcome:
    """Something around the body has raised: a hook, or what keeps the states. The task has failed with that."""
    einfo = _report(task, request, error)
    sink.failed(error, einfo)
    return Outcome(states.FAILURE, error, einfo)


def _report(task: Task, request: Context, error: Exception) -> ExceptionInfo:
    """Log what was raised around the body, and send the signal."""
    einfo = ExceptionInfo(error, internal=True)
    facts = {"task_id": request.id, "args": request.args, "kwargs": request.kwargs, "request": request}
    signals.task_internal_error.send(sender=task, **facts, exception=error, traceback=einfo.tb, einfo=einfo)
    logger.critical("Task %s[%s] INTERNAL ERROR: %r", _name(task, request), request.id, error, exc_info=einfo.exc_info)
    return einfo


def _hook(task: Task, request: Context, name: str, *arguments: Any) -> None:
    """A hook that comes after the outcome is known: what it raises is logged, and changes nothing; in an eager call it is raised."""
    try:
        getattr(task, name)(*arguments)
    except Exception as error:
        if request.is_eager or isinstance(error, (Reject, MemoryError)):
            raise
        logger.exception("Task %s[%s] %s handler raised: %r", _name(task, request), request.id, name, error)  # noqa: TRY401


def _send_callbacks(task: Task, request: Context, value: Any) -> None:
    """Send what is linked, before the end of this task is written: whoever sees that finds them."""
    family = {"parent_id": request.id, "root_id": request.root_id or request.id}
    for callback in canvas.maybe_list(request.callbacks) or []:
        signature = canvas.signature(callback, app=task.app)
        if request.is_eager:
            signature.apply((value,), **family)
        else:
            signature.apply_async((value,), **family)


def _call_errbacks(task: Task, request: Context, error: Exception, einfo: ExceptionInfo) -> None:
    """One that takes (request, exc, traceback) is called here; another, and one that is bound, is sent the id of this task."""
    family = {"parent_id": request.id, "root_id": request.root_id or request.id}
    for errback in canvas.maybe_list(request.errbacks) or []:
        signature = canvas.signature(errback, app=task.app)
        try:
            is_called = takes_the_error(signature.type)
        except NotRegistered:
            is_called = False
        if is_called:
            signature(request, error, einfo.traceback)
        elif request.is_eager:
            signature.apply((request.id,), **family)
        else:
            signature.apply_async((request.id,), **family)


def _name(task: Task, request: Context) -> str:
    return request.shadow or task.name
