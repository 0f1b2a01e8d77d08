"""Owns how values without parts travel as typed JSON: the tag of each type, what stands behind it, and the way back.

It must not know containers, enums or exceptions (`values` does), nor look anything up but time zones by their names.
"""

from __future__ import annotations

import base64
import math
import re
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any
from uuid import UUID
from zoneinfo import ZoneInfo

from jobrunner import jsonvalues as jv
from jobrunner.errors import JobrunnerError
from jobrunner.jsonvalues import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable

MARK = "$"  # a member's name that begins with it is a tag
_PLAIN_BITS = 14_000  # of an int, about 4,200 digits: with more, Python's own JSON reader refuses it
_ZONE = re.compile(r"[A-Za-z0-9_+-]+(?:/[A-Za-z0-9_+-]+)*")


class UnreadableValue(JobrunnerError, ValueError):
    """Stored data is not what this module writes, or names a class that the application does not allow."""


def number(value: float) -> tuple[str, str] | None:
    """The tag of an int or float that JSON or jsonb would not give back as it is, and its text; None for all others."""
    if type(value) is int:
        return None if value.bit_length() < _PLAIN_BITS else ("int", hex(value))
    return None if _is_plain(value) else ("float", repr(value))


def text(value: str) -> tuple[str, str] | None:
    """The tag of text that PostgreSQL could not store, and what stands for it; None for all other text."""
    return None if jv.text_problem(value) is None else ("str", base64.b64encode(value.encode("utf-8", "surrogatepass")).decode())


def _is_plain(value: float) -> bool:
    """Whether jsonb gives the same float back: it has no NaN, no -0.0, and writes large ones as integers."""
    return math.isfinite(value) and abs(value) < jv.FLOAT_AS_INT and (value != 0 or math.copysign(1, value) > 0)


def listed(data: Any) -> list[Any]:
    """The data when it is a list. Raises UnreadableValue."""
    if type(data) is not list:
        raise UnreadableValue("stored data has no list where one belongs")
    return data


def as_text(data: Any) -> str:
    """The data when it is text. Raises UnreadableValue."""
    if type(data) is not str:
        raise UnreadableValue("stored data has no text where some belongs")
    return data


def _moment(value: datetime | time) -> Any:
    """Text, or an object when there is a zone with a name, or the second of two equal times of the day the clocks go back."""
    zone = value.tzinfo
    name: Any = getattr(zone, "key", None)  # None of a zone that was read from a file
    if isinstance(zone, ZoneInfo) and name is not None and _ZONE.fullmatch(name):
        return {"at": value.replace(tzinfo=None).isoformat(), "zone": name, "fold": value.fold}
    if zone is not None and value.utcoffset() is None:
        raise Refusal("has a zone without a fixed offset, which would be lost", instead="pass one in UTC")
    return {"at": value.isoformat(), "zone": None, "fold": value.fold} if value.fold else value.isoformat()


def _read_moment(kind: type[datetime | time]) -> Callable[[Any, int], Any]:
    def read(data: Any, _depth: int) -> Any:
        if type(data) is str:
            return kind.fromisoformat(data)
        value, zone = kind.fromisoformat(as_text(data["at"])), data["zone"]
        if zone is not None:
            if not _ZONE.fullmatch(as_text(zone)):
                raise UnreadableValue(f"stored data names the time zone {zone[:60]!r}")
            value = value.replace(tzinfo=ZoneInfo(zone))
        return value.replace(fold=data["fold"])

    return read


def _read_text(kind: Callable[[str], Any]) -> Callable[[Any, int], Any]:
    return lambda data, _depth: kind(as_text(data))


def _binary(data: str) -> bytes:
    return base64.b64decode(data, validate=True)


ENCODERS: dict[type, Callable[[Any], tuple[str, Any]]] = {
    bytes: lambda value: ("bytes", base64.b64encode(value).decode()),
    bytearray: lambda value: ("bytearray", base64.b64encode(value).decode()),
    datetime: lambda value: ("datetime", _moment(value)),
    time: lambda value: ("time", _moment(value)),
    date: lambda value: ("date", value.isoformat()),
    timedelta: lambda value: ("timedelta", jv.duration_text(value)),
    Decimal: lambda value: ("decimal", str(value)),
    UUID: lambda value: ("uuid", str(value)),
    complex: lambda value: ("complex", [repr(value.real), repr(value.imag)]),
    PurePosixPath: lambda value: ("posixpath", _path_text(value)),
    PureWindowsPath: lambda value: ("windowspath", _path_text(value)),
    type(Path()): lambda value: ("path", _path_text(value)),
}
DECODERS: dict[str, Callable[[Any, int], Any]] = {
    "str": _read_text(lambda text: _binary(text).decode("utf-8", "surrogatepass")),
    "int": _read_text(lambda text: int(text, 16)),
    "float": _read_text(float),
    "complex": lambda data, _depth: complex(*(float(as_text(part)) for part in listed(data))),
    "bytes": _read_text(_binary),
    "bytearray": _read_text(lambda text: bytearray(_binary(text))),
    "datetime": _read_moment(datetime),
    "time": _read_moment(time),
    "date": _read_text(date.fromisoformat),
    "timedelta": _read_text(jv.duration_of),
    "decimal": _read_text(Decimal),
    "uuid": _read_text(UUID),
    "path": _read_text(Path),
    "posixpath": _read_text(PurePosixPath),
    "windowspath": _read_text(PureWindowsPath),
}


def _path_text(value: PurePath) -> str:
    text = str(value)
    problem = jv.text_problem(text)
    if problem:
        raise Refusal(problem, instead="pass the path as bytes: os.fsencode(path)")
    return text
