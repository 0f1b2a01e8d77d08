"""Owns turning an exception into text that can always be stored.

It must not raise, whatever the exception's methods do; it must not keep frame locals, which hold secrets.
"""

from __future__ import annotations

import traceback as tb
from typing import NamedTuple

from jobrunner.errors import JobrunnerError
from jobrunner.fingerprint import fingerprint
from jobrunner.texts import cut, storable

MESSAGE_LIMIT = 16_000  # characters of a message kept: head and tail
TRACEBACK_LIMIT = 64_000  # characters of a traceback kept: head and tail
_CHAIN_LIMIT = 50  # causes followed; a chain can be a circle


class Failure(NamedTuple):
    """What is kept of an exception."""

    error_type: str
    message: str
    traceback: str
    fingerprint: str


def describe(error: BaseException) -> Failure:
    """Everything kept of `error`, as text that PostgreSQL accepts: no NUL, no lone surrogate, bounded.

    An exception whose own methods raise is described by its type; if even that fails, by a fixed sentence.
    """
    try:
        error_type = _type_name(type(error))
        message = cut(storable(_message(error)), MESSAGE_LIMIT)
        frames = error.__traceback__.tb_next if error.__traceback__ is not None else None  # without the executor's own frame
        text = "".join(tb.TracebackException(type(error), error, frames, compact=True).format())
        print_ = fingerprint(error_type, message, frames, _root_cause(error))
        return Failure(storable(error_type), message, cut(storable(text), TRACEBACK_LIMIT), print_)
    except BaseException as second:  # noqa: BLE001  the exception attacks its own description: the job must still be finished
        name = storable(type(error).__name__)
        message = f"the exception could not be described: describing it raised {type(second).__name__}"
        return Failure(name, message, "", fingerprint(name, message))


def _message(error: BaseException) -> str:
    try:
        hint = error.hint if isinstance(error, JobrunnerError) else ""
        return f"{error} ({hint})" if hint else str(error)
    except BaseException as second:  # noqa: BLE001  a hostile __str__ must not hide the exception's type
        return f"<str() of the exception raised {type(second).__name__}>"


def _type_name(kind: type[BaseException]) -> str:
    module = kind.__module__
    return kind.__qualname__ if module in {"builtins", "__main__"} else f"{module}.{kind.__qualname__}"


def _root_cause(error: BaseException) -> str:
    root = error
    for _ in range(_CHAIN_LIMIT):
        following = root.__cause__ or (None if root.__suppress_context__ else root.__context__)
        if following is None:
            break
        root = following
    return "" if root is error else _type_name(type(root))
