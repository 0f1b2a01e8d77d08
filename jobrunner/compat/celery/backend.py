"""Owns results as Celery sees them: state, result and traceback of a task by its id, read from the job's row, and `update_state`.

It must not wait (`result` does) nor end a job.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from jobrunner.compat.celery import coding, states
from jobrunner.compat.celery.exceptions import TaskRevokedError, TimeLimitExceeded, WorkerLostError
from jobrunner.current import current_or_none
from jobrunner.errors import RemoteTraceback
from jobrunner.states import State
from jobrunner.values import UnreadableValue

if TYPE_CHECKING:
    from jobrunner.app import JobRunner
    from jobrunner.branches import Branch
    from jobrunner.compat.celery.app.base import Celery
    from jobrunner.compat.celery.app.context import Context
    from jobrunner.compat.celery.rows import Found

logger = logging.getLogger(__name__)

MOST_EAGER = 10_000  # results of eager tasks that are kept with task_store_eager_result; the oldest go
_LIVE = {"scheduled", "queued", "running", "retrying"}
_NOTHING: dict[str, Any] = {"status": states.PENDING, "result": None, "traceback": None, "children": [], "date_done": None}


class Backend:
    """What `app.backend` is. Each question is one or two statements on a pooled connection."""

    READY_STATES = states.READY_STATES
    UNREADY_STATES = states.UNREADY_STATES
    EXCEPTION_STATES = states.EXCEPTION_STATES
    PROPAGATE_STATES = states.PROPAGATE_STATES
    persistent = True

    def __init__(self, app: Celery) -> None:
        self.app = app
        self._eager: OrderedDict[str, dict[str, Any]] = OrderedDict()

    # -- reading

    def homes(self) -> Iterator[JobRunner | Branch]:
        """The databases in which a task may be: one, unless `JOBRUNNER_DATABASES` names more."""
        jobs = self.app.jobs
        if not jobs.routing.databases or jobs.configured_dsn() is not None:
            yield jobs
        for name in jobs.routing.databases:
            yield jobs.branch(name)

    def find(self, task_id: str) -> tuple[JobRunner | Branch, int] | None:
        """The job of a task id, and the database it is in."""
        from jobrunner.compat.celery.app.runner import warn_of_addresses
        from jobrunner.compat.celery.rows import SPACE
        from jobrunner.references import References

        warn_of_addresses(self.app)
        for home in self.homes():
            job_id = References(home.database).find(SPACE, str(task_id))
            if job_id is not None:
                return home, job_id
        return None

    def look(self, task_id: str) -> Found | None:
        """The job of a task id as it is now."""
        from jobrunner.compat.celery import rows

        where = self.find(task_id)
        return None if where is None else rows.look(where[0].database, where[1])

    def get_task_meta(self, task_id: str) -> dict[str, Any]:
        """State, result, traceback and what else is known of a task; `PENDING` for an id that nobody knows."""
        if task_id in self._eager:
            return self._eager[task_id]
        found = self.look(task_id)
        return {**_NOTHING, "task_id": task_id} if found is None else {**meta_of(found), "task_id": task_id}

    def get_state(self, task_id: str) -> str:
        """The state alone."""
        return str(self.get_task_meta(task_id)["status"])

    get_status = get_state

    def get_result(self, task_id: str) -> Any:
        """What the task returned, raised, or said with `update_state`."""
        return self.get_task_meta(task_id)["result"]

    def get_traceback(self, task_id: str) -> str | None:
        """The traceback of its last error, as text."""
        found: str | None = self.get_task_meta(task_id)["traceback"]
        return found

    def task_result_exists(self, task_id: str) -> bool:
        """Whether the task is known and has reached a state that is stored."""
        return bool(self.get_state(task_id) != states.PENDING)

    # -- writing

    def store_result(
        self, task_id: str | None, result: Any, state: str | None, traceback: str | None = None, request: Context | None = None, **_: Any
    ) -> Any:
        """Keep a state and something beside it for a task that is not finished; a finished one stays as it is.

        Raises:
            EncodeError: the value cannot be stored.
            LeaseLost: the task runs here, and its attempt has been superseded.
        """
        if task_id is None or state is None:
            return result
        if request is not None and request.is_eager and request.id == task_id:
            if self.app.conf.task_store_eager_result:
                self.store_eager(task_id, result, state, traceback)
            return result
        patch = state_patch(state, result, traceback)
        context = current_or_none()
        if request is not None and request.id == task_id and context is not None and context.lease:
            from jobrunner.compat.celery import rows

            rows.amend(self.app.jobs.home.database, context, {**patch, "lease": context.lease})
            _show_progress(result)
            return result
        self._note(task_id, patch)
        return result

    def _note(self, task_id: str, patch: dict[str, Any]) -> None:
        from jobrunner.compat.celery import rows

        where = self.find(task_id)
        if where is None or rows.note(where[0].database, where[1], patch) is None:
            logger.warning("task %s is not there or has finished: its state stays as it is", task_id)

    def is_eager(self, task_id: str) -> bool:
        """Whether the result of an eager task is kept under that id."""
        return task_id in self._eager

    def store_eager(self, task_id: str, result: Any, state: str, traceback: str | None = None, **more: Any) -> None:
        """Keep the result of an eager task in this process."""
        self._eager[task_id] = {**_NOTHING, "task_id": task_id, "status": state, "result": result, "traceback": traceback, **more}
        while len(self._eager) > MOST_EAGER:
            self._eager.popitem(last=False)

    def forget(self, task_id: str) -> None:
        """Let the id be unknown from now on. The job's row stays, with its history, until retention drops it."""
        from jobrunner.compat.celery.rows import SPACE
        from jobrunner.references import References

        self._eager.pop(task_id, None)
        where = self.find(task_id)
        if where is not None:
            References(where[0].database).drop(SPACE, task_id)

    def process_cleanup(self) -> None:
        """Nothing: connections are pooled."""

    def cleanup(self) -> None:
        """Nothing: retention is the workers' business."""


def state_patch(state: str, result: Any, traceback: str | None = None) -> dict[str, Any]:
    """The members of `meta` that say a state. Raises EncodeError."""
    info = coding.encode_error(result) if isinstance(result, BaseException) else coding.encode(result, "meta")
    return {"state": state, "info": info, "traceback": traceback}


def meta_of(found: Found) -> dict[str, Any]:
    """A job as a result of Celery's."""
    kept = found.celery or {}
    state, result, traceback = _outcome(found, kept)
    done = found.finished_at if state in states.READY_STATES else None
    args, kwargs = _call(found, kept)
    return {
        "status": state, "result": result, "traceback": traceback, "children": [], "date_done": done,
        "name": kept.get("shadow") or found.task, "args": args, "kwargs": kwargs, "worker": found.worker,
        "retries": kept.get("retries", 0), "queue": found.queue,
        "parent_id": kept.get("parent_id"), "root_id": kept.get("root_id"),
    }  # fmt: skip


def _outcome(found: Found, kept: Mapping[str, Any]) -> tuple[str, Any, str | None]:
    """State, result and traceback."""
    if found.state in _LIVE or (kept.get("ignored") and kept.get("lease") == found.lease):  # by this attempt, not by one before it
        state = kept.get("state") or states.PENDING
        if found.state in _LIVE and (state in states.READY_STATES or (state == states.STARTED and found.state != "running")):
            return states.PENDING, None, None  # brought back by an operator, or given back by its worker
        return state, _said(state, coding.decode(kept.get("info"))), kept.get("traceback")
    if found.state == State.CANCELLED:
        return states.REVOKED, TaskRevokedError(_why_revoked(found, kept)), None
    if kept.get("ignore_result") and not (found.state != State.SUCCEEDED and kept.get("store_errors")):
        return states.PENDING, None, None
    if found.state == State.SUCCEEDED:
        return states.SUCCESS, coding.decode(found.result), None
    return states.FAILURE, _error(found, kept), found.traceback


def _said(state: str, info: Any) -> Any:
    """What was said with a state; data of the form in which Celery keeps an exception are one, as tasks say it that fail themselves."""
    if state not in states.EXCEPTION_STATES or not isinstance(info, Mapping) or not isinstance(info.get("exc_type"), str):
        return info
    module, message = info.get("exc_module"), info.get("exc_message", "")
    name = f"{module}.{info['exc_type']}" if isinstance(module, str) else info["exc_type"]
    return coding.exception_named(name, *(message if isinstance(message, (list, tuple)) else (message,)))


def _why_revoked(found: Found, kept: Mapping[str, Any]) -> str:
    """`revoked`, `terminated` or `expired`."""
    expires = kept.get("expires")
    is_late = expires is not None and found.finished_at is not None and found.finished_at >= datetime.fromisoformat(expires)
    return str(kept.get("revoked") or ("expired" if is_late and found.started_at is None else "revoked"))


def _error(found: Found, kept: Mapping[str, Any]) -> BaseException:
    if found.state == State.QUARANTINED or found.error_type == "jobrunner.errors.WorkerProcessDied":
        return WorkerLostError(found.error or "Worker exited prematurely")
    if found.error_type == "jobrunner.errors.TimeLimitExceeded":
        return TimeLimitExceeded(found.error or "")
    is_of_this_attempt = kept.get("state") == states.FAILURE and kept.get("lease") == found.lease
    error = coding.decode(kept.get("info")) if is_of_this_attempt else None
    if not isinstance(error, BaseException):
        error = coding.exception_named(found.error_type or "Exception", found.error or "")
    if found.traceback:
        error.__cause__ = RemoteTraceback(found.traceback)
    return error


def _call(found: Found, kept: Mapping[str, Any]) -> tuple[Any, Any]:
    try:
        return coding.decode_call(found.args, kept.get("args"))
    except UnreadableValue:
        return (), found.args


def _show_progress(meta: Any) -> None:
    """What most say with `update_state` is how far they are: the dashboard and `jobs show` have a place for that."""
    context = current_or_none()
    if context is None or not isinstance(meta, Mapping):
        return
    current, total = meta.get("current"), meta.get("total")
    words = next((str(meta[name]) for name in ("status", "message", "description") if meta.get(name)), None)
    numbers = isinstance(current, (int, float)) and isinstance(total, (int, float))
    fraction = float(current) / float(total) if numbers and current is not None and total else None
    if fraction is not None or words:
        context.progress(fraction, words)
