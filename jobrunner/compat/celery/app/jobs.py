"""Owns the run of a task that a worker was given as a job: its request out of the row, and the end of the run as the engine's outcome.

It must not run the body (`trace` does) nor write a job's state: what it raises and returns tells the engine.
"""

from __future__ import annotations

import signal
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from jobrunner.compat.celery import _state, coding, signals, states
from jobrunner.compat.celery.app import sending
from jobrunner.compat.celery.app.context import Context
from jobrunner.compat.celery.app.runner import hostname_of, native_priority, runs_again
from jobrunner.compat.celery.app.trace import trace
from jobrunner.compat.celery.backend import state_patch
from jobrunner.compat.celery.exceptions import EncodeError, WorkerLostError
from jobrunner.compat.celery.utils.log import flush_proxies
from jobrunner.control import Cancel, Fail, JobStopped, Snooze
from jobrunner.control import Retry as NativeRetry
from jobrunner.current import current_or_none
from jobrunner.errors import UnstorableResult
from jobrunner.payload import encode_result

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jobrunner.compat.celery.app.base import Celery
    from jobrunner.compat.celery.app.task import Task
    from jobrunner.compat.celery.canvas import Signature
    from jobrunner.compat.celery.einfo import ExceptionInfo
    from jobrunner.compat.celery.exceptions import Retry
    from jobrunner.compat.celery.rows import Begun
    from jobrunner.current import JobContext
    from jobrunner.database import Database

_REQUEUE_PAUSE = 1  # second after which a rejected task that is to be requeued runs again: it may reject again at once
MOST_ATTEMPTS = 32_767  # that the engine counts of one job, in a smallint; further retries count as this one
_LONGEST_PAUSE = 10 * 365 * 86_400.0  # seconds; as the engine's own, so that the moment after it is one
_BEFORE_BODY = "the worker was stopped before the task began"
_BY_DEPLOY = "The worker was stopped while the task ran, and a task without acks_late is not begun twice"


def run_job(app: Celery, task: Task, stored: dict[str, Any]) -> Any:
    """What a worker calls for a job of a Celery task.

    Returns:
        The result as JSON data.

    Raises:
        Whatever tells the engine how it ended: the task's own exception when it has failed or is to be retried, Cancel when it was
        revoked or has expired, Fail when it must not be begun again.
    """
    context = current_or_none()
    if context is None or not context.lease:  # `jobrunner run`, or a call of the function: there is no row
        args, kwargs = coding.decode_call(stored, None)
        return coding.encode(task(*args, **kwargs), "return value")
    from jobrunner.compat.celery import rows

    database = app.jobs.home.database
    runs_once = not runs_again(task, app.conf)
    begun: Begun | None = None
    sink: JobSink | None = None
    try:
        begun = rows.begin(database, context)
        runs_once, kept = begun.max_crashes == 1, begun.celery or {}
        args, kwargs = coding.decode_call(stored, kept.get("args"))
        request = request_of(context, begun, args, kwargs, hostname_of(app))
        sink = JobSink(app, task, context, request, database)
        _refuse(sink, begun, kept)
        _pace(sink, begun, kept)
        with _state.joining(blocks=True):
            try:
                outcome = trace(task, request, sink)
            finally:
                flush_proxies()
    except JobStopped as stopped:
        if runs_once and stopped.reason == "deploy" and not (sink is not None and sink.has_begun):
            if begun.was_released if begun is not None else context.lease > context.attempt:
                raise  # given back as it was found: the record of a snooze would hide that the body had begun in an attempt before
            # Given back, it would look like a task that was interrupted, which is not to be begun twice; this one has not been begun.
            raise Snooze(0, _BEFORE_BODY) from stopped
        if sink is not None:
            sink.stopped(stopped, runs_once=runs_once)
        raise
    if outcome.state == states.SUCCESS:
        return None if request.ignore_result else sink.result
    return sink.end(outcome.state, outcome.value)


def request_of(context: JobContext, begun: Begun, args: tuple[Any, ...], kwargs: dict[str, Any], hostname: str) -> Context:
    """`self.request` of an attempt, in the worker of that name."""
    kept = begun.celery or {}
    headers = {name: coding.decode(value) for name, value in (kept.get("headers") or {}).items()}
    task_id = kept.get("id") or str(context.id)
    return Context(
        {
            **headers, "id": task_id, "task": context.task, "root_id": kept.get("root_id") or task_id,
            **{name: kept.get(name) for name in ("parent_id", "eta", "expires", "shadow", "origin", "reply_to")},
            "args": args, "kwargs": kwargs, "retries": kept.get("retries", 0), "ignore_result": kept.get("ignore_result", False),
            "correlation_id": task_id, "hostname": hostname,
            "called_directly": False,
            "is_eager": False, "utc": True, "timelimit": [begun.time_limit, begun.soft_time_limit], "headers": headers or None,
            "callbacks": coding.decode(kept.get("link")), "errbacks": coding.decode(kept.get("link_error")),
            "delivery_info": {
                "exchange": "", "routing_key": begun.queue, "priority": kept.get("priority"),
                "redelivered": begun.crash_count > 0 or begun.was_released or bool(kept.get("requeued")),
            },
        }
    )  # fmt: skip


def _refuse(sink: JobSink, begun: Begun, kept: Mapping[str, Any]) -> None:
    """End a job before its body runs, when it must not run (any more)."""
    # Revoked or expired once, and here again without a crash or a deploy in between: an operator has brought it back, so that it runs.
    is_wanted = bool(kept.get("revoked")) and not begun.crash_count and not begun.was_released
    if kept.get("revoke") and not is_wanted:
        sink.revoked("revoked", expired=False)
        raise Cancel("revoked")
    if not is_wanted and (expires := kept.get("expires")) and datetime.now(UTC) >= datetime.fromisoformat(expires):
        sink.revoked("expired", expired=True)
        raise Cancel(f"expired at {expires}")
    asked, context = kept.get("asked"), sink.context
    # The last attempt that is counted has one such word after the other: only that of the lease before is of the run that was cut off.
    is_last = context.attempt >= MOST_ATTEMPTS
    was_cut_off = begun.crash_count or begun.was_released
    if asked and was_cut_off and asked["attempt"] == context.attempt and (not is_last or asked["lease"] == context.lease - 1):
        # The body has ended, with a retry that stands in the row; only the engine had not heard of it. So that is what follows, after
        # its pause, and not one run of the body more or less than there would have been.
        left = (datetime.fromisoformat(asked["until"]) - datetime.now(UTC)).total_seconds()
        raise _again(context, max(0.0, left), "a retry that was asked for when the process died")
    if begun.was_released and begun.max_crashes == 1:
        sink.failed(WorkerLostError(_BY_DEPLOY), None)
        raise Fail(f"WorkerLostError: {_BY_DEPLOY}")


def _pace(sink: JobSink, begun: Begun, kept: Mapping[str, Any]) -> None:
    """Put a task off whose `rate_limit` does not let it begin yet. It has a turn then, one for each attempt."""
    app, task, attempt = sink.app, sink.task, sink.context.attempt
    has_waited = kept.get("paced") == attempt
    # After a crash it goes on at once: a snooze forgets crashes, so that one which always crashes would never be quarantined. Only tests
    # bring it before its turn; their clock is not that of the rates.
    if not task.rate_limit or app.conf.worker_disable_rate_limits or begun.crash_count or (has_waited and begun.is_early):
        return
    from jobrunner.compat.celery.app import rates

    interval = rates.interval_of(task.rate_limit)
    pause = 0.0 if interval is None else rates.rates_of(app).reserve(task.name, interval, has_waited=has_waited)
    if pause > rates.patience(has_waited=has_waited):
        if not has_waited:
            sink.say({"paced": attempt})
        raise Snooze(pause, f"rate_limit={task.rate_limit}")
    time.sleep(pause)


def _again(context: JobContext, pause: float, why: str) -> NativeRetry | Snooze:
    """What tells the engine of a retry after so many seconds. Of attempts it counts a limited number; Celery's retries go on."""
    return NativeRetry(why, delay=pause) if context.attempt < MOST_ATTEMPTS else Snooze(pause, why)


class JobSink:
    """Keeps the states of one attempt in its job's row.

    Attributes:
        has_begun: the body has, or is about to.
        result: what the task returned, as JSON data.
    """

    def __init__(self, app: Celery, task: Task, context: JobContext, request: Context, database: Database) -> None:
        self.app, self.task, self.context, self.request, self.database = app, task, context, request, database
        self.result: Any = None
        self.has_begun = False
        self._error: BaseException | None = None
        self._pause = 0.0

    def started(self) -> None:
        """Say STARTED, for a task that wants it."""
        if self.task.track_started:
            self.say({"state": states.STARTED, "info": {"hostname": self.request.hostname}, "traceback": None})
        self.has_begun = True

    def succeeded(self, value: Any) -> None:
        """Make sure that the result can be kept; the engine writes it."""
        if self.request.ignore_result:
            return
        self.result = coding.encode(value, "return value")
        try:
            encode_result(self.result, self.app.jobs.max_result_bytes)
        except UnstorableResult as error:
            raise EncodeError(str(error)) from error

    def failed(self, error: BaseException, einfo: ExceptionInfo | None) -> None:
        """Keep the exception as it is: the engine keeps its class, message and traceback."""
        self._error = error
        stores = bool(self.task.store_errors_even_if_ignored)
        if not self.request.ignore_result or stores:
            self.say({**state_patch(states.FAILURE, error, str(einfo) if einfo else None), "store_errors": stores})

    def retried(self, reason: Retry, einfo: ExceptionInfo) -> None:
        """Make the row one that the engine tries again, at the time and with the arguments that were asked for."""
        patch, columns = self._changes(reason.sig) if reason.sig is not None else ({}, {})
        self._error, self._pause = reason.exc, self._pause_until(reason.when)
        if self._error is not None and self._error.__traceback__ is None:  # made for the retry: where that was is what one wants to know
            self._error.__traceback__ = reason.__traceback__
        eta = sending.iso(self.app, reason.when) if isinstance(reason.when, datetime) else None
        until = datetime.now(UTC) + timedelta(seconds=min(self._pause, _LONGEST_PAUSE))
        asked = {"attempt": self.context.attempt, "lease": self.context.lease, "until": until.isoformat()}
        patch |= {"retries": self.request.retries + 1, "eta": eta, "asked": asked}
        if (self.request.delivery_info or {}).get("redelivered"):
            patch["requeued"] = False  # what follows is another message, in Celery's terms
        if not self.request.ignore_result:
            patch |= state_patch(states.RETRY, reason.exc, str(einfo))
        # One attempt more than this: a retry is always possible, and nothing else is tried again by itself.
        self.say(patch, max_attempts=min(self.context.attempt + 1, MOST_ATTEMPTS), pause=self._pause, **columns)

    def end(self, state: str, value: Any) -> None:
        """Tell the engine of an end without a result."""
        match state:
            case states.RETRY:
                if self._error is not None and self.context.attempt < MOST_ATTEMPTS:
                    raise self._error  # on record with its traceback; the pause stands in the row
                raise _again(self.context, self._pause, str(value))
            case states.REJECTED if value.requeue:
                self.say({"requeued": True})
                raise Snooze(_REQUEUE_PAUSE, f"rejected: {value.reason}")
            case states.FAILURE | states.REJECTED:
                raise self._error or value
            case _:
                self.say({"ignored": True})

    def stopped(self, stopped: JobStopped, *, runs_once: bool) -> None:
        """The worker has interrupted the body."""
        if stopped.reason == "cancelled":
            self.revoked("terminated", expired=False, terminated=True)
        elif runs_once and stopped.reason == "deploy":
            self.failed(WorkerLostError(_BY_DEPLOY), None)
            raise Fail(f"WorkerLostError: {_BY_DEPLOY}") from stopped

    def revoked(self, why: str, *, expired: bool, terminated: bool = False) -> None:
        """Keep why there will be no result, and send the signal."""
        self.say({"revoked": why})
        signals.task_revoked.send(
            sender=self.task, request=self.request, terminated=terminated, signum=signal.SIGTERM if terminated else None, expired=expired
        )

    def say(self, patch: dict[str, Any], **columns: Any) -> None:
        """Write members of Celery's part of `meta`, and columns; see `rows.amend`."""
        from jobrunner.compat.celery import rows

        rows.amend(self.database, self.context, {**patch, "lease": self.context.lease}, **columns)

    def _pause_until(self, when: Any) -> float:
        if isinstance(when, (int, float)):
            return max(0.0, float(when))
        return 0.0 if when is None else max(0.0, (sending.moment(self.app, when) - datetime.now(UTC)).total_seconds())

    def _changes(self, sig: Signature) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the retry asks for that is not as it was: members of `meta`, and columns.

        Raises:
            EncodeError: an argument cannot be stored.
        """
        request, options = self.request, sig.options
        patch: dict[str, Any] = {}
        columns: dict[str, Any] = {}
        if (tuple(sig.args), sig.kwargs) != (tuple(request.args), request.kwargs):
            columns["args"], patch["args"] = coding.encode_call(self.app.parameters_of(self.task), tuple(sig.args), sig.kwargs)
        if options.get("queue") is not None:
            columns["queue"] = self.app.router.route({"queue": options["queue"]}, self.task.name)["queue"]
        if options.get("priority") != (request.delivery_info or {}).get("priority"):
            columns["priority"], patch["priority"] = native_priority(options.get("priority"), self.app.conf), options.get("priority")
        columns |= {name: options.get(name) for name in ("time_limit", "soft_time_limit") if options.get(name) != getattr(request, name)}
        if options.get("expires") != request.expires:
            expires = options.get("expires")
            if isinstance(expires, (int, float)):
                expires = datetime.now(UTC) + timedelta(seconds=expires)
            patch["expires"] = sending.iso(self.app, expires)
        for name, before in (("headers", request.headers or {}), ("link", request.callbacks), ("link_error", request.errbacks)):
            if options.get(name) != before:
                now = options.get(name)
                patch[name] = sending.stored_headers(now or {}) if name == "headers" else coding.encode(now, name)
        return patch, columns


