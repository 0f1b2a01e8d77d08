"""Owns what goes with a call beside its arguments: a copy of the request and of `g` to a thread, chosen values to a job.

It must not run anything itself.
"""

from __future__ import annotations

import copy
import functools
from typing import TYPE_CHECKING, Any

from flask import current_app, g, has_app_context, has_request_context, request, session
from flask import globals as flask_globals

from jobrunner.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from flask import Flask

    from jobrunner.values import Values

CAPTURED = "captured"  # the attribute of `g` under which a job finds what was no attribute of `g` itself
_EVERYTHING = "g.*"
_ROOTS = ("g", "request", "session", "current_user")
_MISSING = object()


def with_request(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn` with a copy of the request that is handled now, if there is one.

    Flask's own `copy_current_request_context` makes one copy, which several threads of a `map` must not enter at the same time.
    """
    if not has_request_context():
        return fn
    snapshot = _request_context().copy()

    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        around = flask_globals.app_ctx.g if has_app_context() else None
        with snapshot.copy() as context:
            if around is not None and flask_globals.app_ctx.g is not around:
                context.g = around  # from Flask 3.2 on a request's context is an app context as well, which begins with an empty `g`
            return current_app.ensure_sync(fn)(*args, **kwargs)

    return wrapper


def get_current_app_context() -> Any:
    """The app context that is active, as an object; None outside of any."""
    return flask_globals.app_ctx._get_current_object() if has_app_context() else None  # type: ignore[attr-defined]  # noqa: SLF001


def push_app_context(fn: Callable[..., Any], app: Flask | None = None) -> Callable[..., Any]:
    """`fn` in an app context of its own, whose `g` is a shallow copy of the one at this moment.

    Args:
        fn: what is called.
        app: when there is no app context now.
    """
    within = has_app_context()
    known: Any = current_app._get_current_object() if within else app  # type: ignore[attr-defined]  # noqa: SLF001  a LocalProxy's only way
    kept = copy.copy(g) if within else None

    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        with known.app_context() as context:
            if kept is not None:
                context.g = copy.copy(kept)  # of its own: threads of a `map` do not share it
            return fn(*args, **kwargs)

    return wrapper if known is not None else fn


def checked_names(given: Any, where: str) -> tuple[str, ...]:
    """The names in `EXECUTOR_CAPTURE`. Raises ConfigurationError for one that cannot be meant."""
    names: tuple[str, ...] = tuple(given.replace(",", " ").split() if isinstance(given, str) else given or ())
    for name in names:
        root, _, rest = str(name).partition(".")
        if root not in _ROOTS or not rest:
            raise ConfigurationError(
                f"{where}: {name!r} cannot be captured",
                hint="names such as g.tenant_id, g.*, request.path, request.headers.X-Request-ID, session.user_id, current_user.id",
            )
    return names


def captured(names: Iterable[str], values: Values) -> dict[str, Any]:
    """What these names stand for now; those that stand for nothing are left out.

    Args:
        names: as `checked_names` gives them. `g.*` is every attribute of `g` that can travel.
        values: to tell what can.
    """
    found: dict[str, Any] = {}
    for name in names:
        if name == _EVERYTHING:
            found |= {f"g.{key}": value for key, value in _attributes_of_g().items() if _can_travel(value, values)}
            continue
        value = _value_of(name)
        if value is not _MISSING:
            found[name] = value
    return found


def restore(context: Mapping[str, Any]) -> None:
    """In the worker: attributes of `g` are there again, all else is in the dict `g.captured` under its name."""
    others: dict[str, Any] = {}
    for name, value in context.items():
        if name.startswith("g."):
            setattr(g, name.removeprefix("g."), value)
        else:
            others[name] = value
    if others:
        setattr(g, CAPTURED, others)


def _request_context() -> Any:
    context = flask_globals.app_ctx._get_current_object()  # type: ignore[attr-defined]  # noqa: SLF001
    # One context from Flask 3.2 on, two before.
    return context if hasattr(context, "copy") else flask_globals.request_ctx._get_current_object()  # type: ignore[attr-defined]  # noqa: SLF001


def _attributes_of_g() -> dict[str, Any]:
    return {key: g.get(key) for key in g if not key.startswith("_")} if has_app_context() else {}


def _can_travel(value: Any, values: Values) -> bool:
    try:
        values.encode(value)
    except Exception:  # noqa: BLE001  whatever the object does when it is looked at
        return False
    return True


def _value_of(name: str) -> Any:
    root, _, rest = name.partition(".")
    if root == "g":
        value: Any = g if has_app_context() else _MISSING
    elif not has_request_context():
        value = _MISSING
    else:
        value = request if root == "request" else session if root == "session" else _current_user()
    for part in rest.split("."):
        if value is _MISSING:
            return _MISSING
        value = value.get(part, _MISSING) if hasattr(value, "get") and root != "current_user" else getattr(value, part, _MISSING)
        if value is _MISSING:
            return _MISSING
    return value


def _current_user() -> Any:
    try:
        from flask_login import current_user  # type: ignore[import-not-found]
    except ImportError:
        return _MISSING
    return current_user
