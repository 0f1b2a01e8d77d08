"""Owns the cursors of job lists: the key of a row and a direction, as opaque text.

It must not trust one: whatever text comes in is either a cursor of this list or `InvalidCursor`.
"""

from __future__ import annotations

import base64
import binascii
import json
from datetime import UTC, datetime
from typing import NamedTuple

from jobrunner.errors import InvalidCursor
from jobrunner.filters import MAX_ID

MAX_CURSOR_LENGTH = 200  # characters; ours have about 60
_VERSION = 1


class Key(NamedTuple):
    """Where a row stands in the list: live jobs by id, behind them finished ones by (finished_at, id); both descending."""

    finished_at: datetime | None
    id: int


class Cursor(NamedTuple):
    """Begin behind `key`, towards older rows or, with `newer`, towards newer ones."""

    key: Key
    newer: bool


def encode(cursor: Cursor) -> str:
    """The cursor as text for a URL."""
    finished_at = cursor.key.finished_at
    parts = [_VERSION, "n" if cursor.newer else "o", cursor.key.id, finished_at.astimezone(UTC).isoformat() if finished_at else None]
    return base64.urlsafe_b64encode(json.dumps(parts, separators=(",", ":")).encode()).decode().rstrip("=")


def decode(text: str) -> Cursor:
    """The cursor in a text. Raises InvalidCursor."""
    if not 0 < len(text) <= MAX_CURSOR_LENGTH or not text.isascii():
        raise InvalidCursor
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        version, direction, job_id, instant = json.loads(raw)
        finished_at = None if instant is None else datetime.fromisoformat(instant)
    except (binascii.Error, ValueError, TypeError, RecursionError):
        raise InvalidCursor from None
    if version != _VERSION or direction not in ("n", "o") or type(job_id) is not int or not 0 <= job_id <= MAX_ID:
        raise InvalidCursor
    if finished_at is not None and finished_at.utcoffset() is None:
        raise InvalidCursor
    return Cursor(Key(finished_at, job_id), newer=direction == "n")
