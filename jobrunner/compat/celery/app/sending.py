"""Owns the way of a call into a job: its message as Celery would build it, the signals around it, and one INSERT.

It must not join the application's transaction unless the call names a session: `.delay()` means that the task is sent.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from jobrunner.compat.celery import _state, coding, signals
from jobrunner.compat.celery.app import runner
from jobrunner.compat.celery.canvas import maybe_list
from jobrunner.compat.celery.exceptions import EncodeError, OperationalError, Unsupported
from jobrunner.compat.celery.options import CALL_OPTIONS
from jobrunner.compat.celery.settings import check_serializer
from jobrunner.compat.celery.utils import uuid
from jobrunner.errors import InvalidPayload

if TYPE_CHECKING:
    from jobrunner.compat.celery.app.base import Celery
    from jobrunner.compat.celery.app.context import Context
    from jobrunner.compat.celery.app.task import Task
    from jobrunner.database import Database

logger = logging.getLogger(__name__)

_REFUSED = ("chain", "chord", "group_id", "group_index", "stamped_headers", "stamps")
_REPR_LIMIT = 1024  # characters of the arguments in `argsrepr`, as integrations show them
_STANDARD = frozenset({
    "lang", "task", "id", "shadow", "eta", "expires", "group", "group_index", "retries", "timelimit", "root_id", "parent_id", "argsrepr",
    "kwargsrepr", "origin", "ignore_result", "replaced_task_nesting", "stamped_headers", "stamps",
})  # fmt: skip
"""What a message's headers hold beside the custom ones."""


class Call(NamedTuple):
    """One call of a task, checked."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    task_id: str
    task: Task | None
    options: dict[str, Any]


def options_of(app: Celery, task: Task | None, given: dict[str, Any], *, checked: bool) -> dict[str, Any]:
    """The options of a call, with those of the task, or of the settings for a task of another code base, where it says nothing.

    Args:
        checked: the task itself has added its own already.
    """
    if task is None:
        own = {name: app.conf[f"task_{name}"] for name in ("time_limit", "soft_time_limit")}
        own["priority"] = app.conf["task_default_priority"]
    elif checked:
        own = {}
    else:
        own = {**task._execution_options(), "ignore_result": task.ignore_result}  # noqa: SLF001
    # None says nothing, but of `expires`: that this call does not.
    return {**own, **{name: value for name, value in given.items() if value is not None or name not in own or name == "expires"}}


def send(app: Celery, name: str, args: Any, kwargs: Any, options: dict[str, Any], task: Task | None) -> str:
    """Write one job for a call. Returns the task id; what is raised is in `Task.apply_async`."""
    call = _checked(name, args, kwargs, options, task)
    runner.warn_of_addresses(app)
    conf = app.conf
    parent = _state.get_current_worker_request()
    _inherit(call.options, parent, inherits_priority=conf.task_inherit_parent_priority)
    routed = app.router.route(call.options, call.options.get("route_name") or name, call.args, call.kwargs, task)
    headers = _headers(app, call, routed)
    properties = {"correlation_id": call.task_id, "reply_to": routed.get("reply_to") or ""}
    links = {"callbacks": maybe_list(routed.get("link")), "errbacks": maybe_list(routed.get("link_error")), "chain": None, "chord": None}
    body = (call.args, call.kwargs, links)
    queue = routed["queue"]
    signals.before_task_publish.send(
        sender=name, body=body, exchange="", routing_key=queue, declare=[], headers=headers, properties=properties, retry_policy=None
    )
    _submit(app, call, routed, headers, links)
    signals.after_task_publish.send(sender=name, body=body, headers=headers, exchange="", routing_key=queue)
    return call.task_id


def _checked(name: str, args: Any, kwargs: Any, options: dict[str, Any], task: Task | None) -> Call:
    args, kwargs = args or (), kwargs or {}
    if not isinstance(args, (list, tuple)):
        raise TypeError("task args must be a list or tuple")
    if not isinstance(kwargs, Mapping):
        raise TypeError("task keyword arguments must be a mapping")
    for refused in _REFUSED:
        if options.get(refused) is not None:
            raise Unsupported(f"the option {refused!r}", CALL_OPTIONS[refused].note)
    check_serializer(options.get("serializer"), "serializer")
    for numeric in ("countdown", "time_limit", "soft_time_limit"):
        value = options.get(numeric)
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise ValueError(f"{numeric} is out of range: {value!r}")
    soft, hard = options.get("soft_time_limit"), options.get("time_limit")
    if soft and hard and soft > hard:
        raise ValueError("soft_time_limit must be less than or equal to time_limit")
    return Call(name, tuple(args), dict(kwargs), str(options.get("task_id") or uuid()), task, options)


def _inherit(options: dict[str, Any], parent: Context | None, *, inherits_priority: bool) -> None:
    if parent is None:
        return
    options["root_id"] = options.get("root_id") or parent.root_id or parent.id
    options["parent_id"] = options.get("parent_id") or parent.id
    if inherits_priority and options.get("priority") is None:
        options["priority"] = (parent.delivery_info or {}).get("priority")


def _headers(app: Celery, call: Call, routed: Mapping[str, Any]) -> dict[str, Any]:
    """The headers of the message that Celery would send; integrations read and add to them."""
    eta, expires = routed.get("eta"), routed.get("expires")
    if countdown := routed.get("countdown"):
        eta = app.now() + timedelta(seconds=countdown)
    custom = dict(routed.get("headers") or {})
    return {
        "lang": "py", "task": call.name, "id": call.task_id, "shadow": routed.get("shadow"), "eta": iso(app, eta),
        "expires": iso(app, app.now() + timedelta(seconds=expires) if isinstance(expires, (int, float)) else expires), "group": None,
        "group_index": None, "retries": routed.get("retries") or 0,
        "timelimit": [routed.get("time_limit"), routed.get("soft_time_limit")], "root_id": routed.get("root_id") or call.task_id,
        "parent_id": routed.get("parent_id"), "argsrepr": repr(call.args)[:_REPR_LIMIT], "kwargsrepr": repr(call.kwargs)[:_REPR_LIMIT],
        "origin": f"gen{os.getpid()}@{socket.gethostname()}", "ignore_result": bool(routed.get("ignore_result")),
        "replaced_task_nesting": 0, "stamped_headers": None, "stamps": {}, **custom,
    }  # fmt: skip


def _submit(app: Celery, call: Call, routed: Mapping[str, Any], headers: dict[str, Any], links: dict[str, Any]) -> None:
    """The INSERT: the headers go into `meta`, but for what has a column."""
    stored, by_position = coding.encode_call(app.parameters_of(call.task), call.args, call.kwargs)
    meta: dict[str, Any] = {
        "id": call.task_id, "args": by_position,
        **{name: headers[name] for name in ("root_id", "parent_id", "retries", "eta", "expires", "shadow", "origin", "ignore_result")},
        "priority": routed.get("priority"), "reply_to": routed.get("reply_to"),
        "store_errors": bool(call.task is not None and call.task.store_errors_even_if_ignored),
        "headers": stored_headers({name: value for name, value in headers.items() if name not in _STANDARD}),
        "link": coding.encode(links["callbacks"], "link"), "link_error": coding.encode(links["errbacks"], "link_error"),
    }  # fmt: skip
    options: dict[str, Any] = {
        "queue": routed["queue"], "priority": runner.native_priority(routed.get("priority"), app.conf), "max_attempts": 1,
        "max_crashes": runner.CRASHES_IF_RETRIED if runner.runs_again(call.task, app.conf) else 1,
        "time_limit": routed.get("time_limit") or None, "soft_time_limit": routed.get("soft_time_limit") or None,
        "meta": {"celery": {name: value for name, value in meta.items() if value or name in {"args", "priority"}}},
        "reference": ("celery", call.task_id), **_when(app, routed), **_where(routed),
    }  # fmt: skip
    _write(app, call, options, stored)


def stored_headers(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Custom headers as JSON data. Raises EncodeError."""
    return {name: coding.encode(value, f"headers[{name!r}]") for name, value in headers.items()}


def _write(app: Celery, call: Call, options: dict[str, Any], stored: dict[str, Any]) -> None:
    from jobrunner.compat.celery import rows  # the driver, and SQLAlchemy, are imported with the first call
    from jobrunner.errors import DuplicateReference
    from jobrunner.references import References

    native = runner.remote(app.jobs, call.name)
    bound = native.options(**options)
    try:
        try:
            app.jobs.submit(native, bound._options, (), stored)  # noqa: SLF001  not `enqueue(**stored)`: an argument may be called "self"
        except DuplicateReference:
            database = app.jobs.branch_of(options["queue"]).database
            job_id = References(database).find(rows.SPACE, call.task_id)
            found = None if job_id is None else rows.look(database, job_id)
            if found is not None and found.finished_at is None:
                raise
            # The id of a task that has finished is used again: from now on it means the new one. Not that of a third one, which somebody
            # else may have sent since: that is refused below.
            if job_id is not None:
                _free(database, options, call.task_id, job_id)
            app.jobs.submit(native, bound._options, (), stored)  # noqa: SLF001
    except rows.UNANSWERED as error:
        raise OperationalError(str(error)) from error
    except InvalidPayload as error:
        raise EncodeError(str(error)) from error


def _free(database: Database, options: Mapping[str, Any], task_id: str, job_id: int) -> None:
    """Take an id away from a task that has finished, in the transaction of the call: should that roll back, it means what it meant."""
    from jobrunner import places
    from jobrunner.compat.celery import rows
    from jobrunner.references import References, drop_in

    session, connection = options.get("session"), options.get("connection")
    if session is None and connection is None:
        References(database).drop(rows.SPACE, task_id, job_id)
    else:
        drop_in(places.in_session(session) if connection is None else places.on_connection(connection), rows.SPACE, task_id, job_id)


def _when(app: Celery, routed: Mapping[str, Any]) -> dict[str, Any]:
    """When it is due: a countdown is added to the database's clock."""
    countdown, eta = routed.get("countdown"), routed.get("eta")
    if countdown:
        return {"delay": max(0.0, float(countdown))}
    return {"run_at": moment(app, eta)} if eta else {}


def _where(routed: Mapping[str, Any]) -> dict[str, Any]:
    """In which transaction: its own, unless the call names another."""
    if routed.get("sql_connection") is not None:
        return {"connection": routed["sql_connection"]}
    return {"session": routed.get("session")}


def moment(app: Celery, value: Any) -> datetime:
    """A point in time with its zone; one without is UTC, or of the app's zone when `enable_utc` is off."""
    found = datetime.fromisoformat(value) if isinstance(value, str) else value
    if not isinstance(found, datetime):
        raise ValueError(f"expected a datetime, or ISO 8601 text, not {value!r}")  # noqa: TRY004  as Celery does for what it cannot read
    if found.utcoffset() is None:
        found = found.replace(tzinfo=UTC if app.conf.enable_utc else app.timezone)
    return found


def iso(app: Celery, value: Any) -> str | None:
    """A point in time as text."""
    return None if not value else moment(app, value).isoformat()
