"""Owns the run of a task where it is called: `apply`, and every call with `task_always_eager`.

It must not write a row: with `task_store_eager_result` the backend keeps the result in this process.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from jobrunner.compat.celery import _state, states
from jobrunner.compat.celery.app.context import Context
from jobrunner.compat.celery.app.trace import trace
from jobrunner.compat.celery.canvas import maybe_list
from jobrunner.compat.celery.result import EagerResult

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jobrunner.compat.celery.app.task import Task
    from jobrunner.compat.celery.einfo import ExceptionInfo
    from jobrunner.compat.celery.exceptions import Retry


def apply(
    task: Task, args: tuple[Any, ...], kwargs: dict[str, Any], given: Mapping[str, Any], options: Mapping[str, Any], *, throw: bool | None
) -> EagerResult:
    """Run a task here, and again at once for each retry that it asks for. Returns its result; raises with `throw`."""
    app = task.app
    throws = bool(app.conf.task_eager_propagates if throw is None else throw)
    request = _request(task, args, kwargs, given, options)
    sink = _EagerSink(task, request)
    outcome = trace(task, request, sink, propagates=throws)
    if outcome.state == states.RETRY and outcome.value.sig is not None:
        result: EagerResult = outcome.value.sig.apply(retries=request.retries + 1, throw=throw)
        return result
    traceback = str(outcome.einfo) if outcome.einfo is not None else None
    value = outcome.value
    if outcome.state in {states.IGNORED, states.REJECTED}:
        value = None
    if app.conf.task_store_eager_result and not request.ignore_result and outcome.state in states.READY_STATES:
        app.backend.store_eager(str(request.id), value, outcome.state, traceback, name=task.name)
    return EagerResult(str(request.id), value, outcome.state, traceback, task.name)


def _request(task: Task, args: tuple[Any, ...], kwargs: dict[str, Any], given: Mapping[str, Any], options: Mapping[str, Any]) -> Context:
    parent = _state.get_current_task()
    inherited = parent.request if parent is not None else None
    limits = [options.get("time_limit", task.time_limit), options.get("soft_time_limit", task.soft_time_limit)]
    headers = dict(given.get("headers") or options.get("headers") or {})
    return Context(
        {
            **headers, **given, "headers": headers or None, "task": task.name, "args": args, "kwargs": kwargs, "called_directly": False,
            "is_eager": True, "hostname": socket.gethostname(), "parent_id": inherited.id if inherited is not None else None,
            "root_id": (inherited.root_id or given["id"]) if inherited is not None else given["id"], "shadow": options.get("shadow"),
            "callbacks": maybe_list(given.get("callbacks")), "errbacks": maybe_list(given.get("errbacks")),
            "timelimit": None if limits == [None, None] else limits,
            "delivery_info": {
                "is_eager": True, **{name: options.get(name) for name in ("exchange", "routing_key", "priority")},
            },
        }
    )  # fmt: skip


class _EagerSink:
    """Keeps nothing but what `task_store_eager_result` wants."""

    def __init__(self, task: Task, request: Context) -> None:
        self.task, self.request = task, request

    def started(self) -> None:
        """Nobody can see it."""

    def succeeded(self, value: Any) -> None:
        """It is given back as it is."""

    def failed(self, error: BaseException, einfo: ExceptionInfo) -> None:
        """It is given back."""

    def retried(self, reason: Retry, einfo: ExceptionInfo) -> None:
        """It follows at once."""
