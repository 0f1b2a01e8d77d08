"""Owns what is read off a message of Kombu before it is stored: when it is due, until when it is wanted, what it is for people.

It must not touch the database, nor change the message.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from kombu.utils.json import dumps

if TYPE_CHECKING:
    from collections.abc import Mapping

_SHOWN = 500  # characters of a task's name or id that get a column of their own
_MOST_MS = 100 * 366 * 86_400_000  # a century: what is longer is for ever


class Envelope(NamedTuple):
    """What is stored beside a message's own text."""

    priority: int
    available_at: datetime | None
    ttl_ms: int | None
    task: str | None
    task_id: str | None
    message: str


def envelope_of(message: Mapping[str, Any], priority: int) -> Envelope:
    """Read a message as `Channel.prepare_message` made it.

    A Celery message says itself when it is due (`eta`), so it waits in the database and not in a worker's memory; any message may with
    `DelaySeconds`, as on Kombu's transports for SQS and pgmq. When it is no longer wanted (`expires`) Celery wants to receive it all the
    same: the worker marks it as revoked, which somebody may be waiting for.
    """
    headers = message.get("headers") or {}
    task = _shown(headers.get("task"))
    expiration = message["properties"].get("expiration")
    return Envelope(
        priority,
        (_due(headers.get("eta")) if task else None) or _after(message["properties"].get("DelaySeconds")),
        None if task else _milliseconds(expiration),
        task,
        _shown(headers.get("id")) if task else None,
        dumps(message),
    )


def pattern_of(routing_key: str) -> str:
    r"""A topic's routing key as a regular expression for PostgreSQL on `'.' || key`: `*` is one word, `#` any number of words.

    >>> pattern_of("task.#")
    '^\\.task(\\.[^.]*)*$'
    """
    words = {"*": r"\.[^.]*", "#": r"(\.[^.]*)*"}
    return "^" + "".join(words.get(word) or r"\." + re.escape(word) for word in routing_key.split(".")) + "$"


def milliseconds_of(arguments: Mapping[str, Any] | None, name: str) -> int | None:
    """One of a queue's arguments, such as `x-expires`: milliseconds, or None when it is not given or makes no sense."""
    return _milliseconds((arguments or {}).get(name)) or None


def _milliseconds(value: object) -> int | None:
    try:
        found = int(float(value))  # type: ignore[arg-type]  # a text, a number, or what is neither
    except (TypeError, ValueError, OverflowError):
        return None
    return found if 0 <= found <= _MOST_MS else None


def _due(eta: object) -> datetime | None:
    """When a task is due, or None when that is not for us to say: a time without a zone is the worker's to read."""
    if not isinstance(eta, (str, datetime)):
        return None
    try:
        found = datetime.fromisoformat(eta) if isinstance(eta, str) else eta
    except ValueError:
        return None
    return found if found.tzinfo is not None else None


def _after(delay: object) -> datetime | None:
    try:
        seconds = min(int(float(delay)), _MOST_MS // 1000)  # type: ignore[arg-type]  # whole seconds, as there
    except (TypeError, ValueError, OverflowError):
        return None
    return datetime.now(UTC) + timedelta(seconds=seconds) if seconds > 0 else None


def _shown(value: object) -> str | None:
    return str(value).replace("\0", "")[:_SHOWN] if value else None
