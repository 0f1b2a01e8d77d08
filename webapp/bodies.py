"""Owns reading the body of a request: one JSON object, of bounded size, with one meaning.

It must not know what the fields are for.
"""

from __future__ import annotations

import difflib
import json
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn

from .problems import BodyTooLarge, InvalidField, MalformedBody, NotJson

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from flask import Request

MAX_BODY = 1_048_576  # bytes: the largest arguments there are (settings.MAX_PAYLOAD_BYTES) and the fields around them


def json_object(request: Request) -> dict[str, Any]:
    """The body as a JSON object.

    Raises:
        NotJson, BodyTooLarge, MalformedBody: it is not one; a member given twice counts as malformed, because the next reader
            might take the other.
    """
    if request.mimetype != "application/json":
        raise NotJson(request.mimetype)
    # Read by hand: a chunked body has no length to check beforehand.
    data = request.stream.read(MAX_BODY + 1)
    if len(data) > MAX_BODY:
        raise BodyTooLarge(MAX_BODY)
    try:
        body = json.loads(data.decode("utf-8"), object_pairs_hook=_object, parse_constant=_constant)
    except UnicodeDecodeError:
        raise MalformedBody("the body is not UTF-8") from None
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise MalformedBody(f"the body is not JSON: {reason}") from None
    if not isinstance(body, dict):
        raise MalformedBody("the body must be one JSON object", hint='such as {"task": "send_welcome", "args": {"user_id": 42}}')
    return body


def refuse_unknown(body: Mapping[str, Any], known: Collection[str], where: str = "") -> None:
    """Raise InvalidField for a member that has no meaning: a misspelt option must not be ignored."""
    for name in body:
        if name not in known:
            close = difflib.get_close_matches(name, list(known), n=1)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
            raise InvalidField(f"there is no field {where}{name}", hint=hint)


def text(body: Mapping[str, Any], name: str) -> str:
    """A member that must be text, not empty."""
    value = body.get(name)
    if not isinstance(value, str) or not value:
        raise InvalidField(f"{name} must be text, not {_kind(value)}")
    return value


def mapping(body: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A member that must be an object; nothing is an empty one."""
    value = body.get(name, {})
    if not isinstance(value, dict):
        raise InvalidField(f"{name} must be an object, not {_kind(value)}")
    return value


def instant(value: Any, name: str) -> datetime:
    """An instant with its zone, as ISO 8601 text."""
    try:
        found = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        found = None
    if found is None or found.utcoffset() is None:
        raise InvalidField(f"{name} must be an instant with its zone", hint="such as 2030-01-31T09:00:00Z")
    return found


def _kind(value: Any) -> str:
    names = {
        type(None): "missing or null",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "text",
        list: "an array",
        dict: "an object",
    }
    return "empty" if value == "" else names[type(value)]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"member {next(name for name in names if names.count(name) > 1)!r} is given twice")
    return found


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
