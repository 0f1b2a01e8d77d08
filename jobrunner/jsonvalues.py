"""Owns what JSON (and PostgreSQL's jsonb) can hold: the walk that turns a value into plain JSON data, or says where and why not.

It must not know about annotations (`codecs` does), tasks or the database.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from json import JSONEncoder
from typing import TYPE_CHECKING, Any
from uuid import UUID

from jobrunner.travelling import advice

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_DEPTH = 64  # containers within containers; a deeper value is a mistake, and PostgreSQL's JSON parser has a stack limit too
FLOAT_AS_INT = 1e16  # from here on a float's text has an exponent, jsonb stores it as an integer and it comes back as an int
_SHOWN_STEPS = 8  # of a path; a cyclic value would print a line of 64 steps
_MAX_DIGITS = 4300  # Python's own limit for turning an int into text and back

_DURATION = re.compile(r"^([+-])?P(?:(\d+)W)?(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:(\d+)(?:\.(\d{1,6}))?S)?)?$")

_encode = JSONEncoder(ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":"))
to_canonical_text = JSONEncoder(ensure_ascii=True, allow_nan=False, check_circular=False, separators=(",", ":"), sort_keys=True).encode


def _fastest_encoder() -> Callable[[Any], str]:
    """`_encode.encode`, without the C encoder that it makes anew for each call: that is a third of its time."""
    make: Any = getattr(json.encoder, "c_make_encoder", None)
    try:
        encoder = make(None, _encode.default, json.encoder.encode_basestring, None, ":", ",", False, False, False)  # noqa: FBT003
        if "".join(encoder({"a": [1, "é"]}, 0)) == _encode.encode({"a": [1, "é"]}):
            return lambda data: "".join(encoder(data, 0))
    except TypeError:  # another Python, or none in C
        pass
    return _encode.encode


to_text = _fastest_encoder()


class Refusal(Exception):
    """A value does not fit. Containers on the way out add their step, so that a fitting value pays nothing for its path."""

    def __init__(self, problem: str, *, instead: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.instead = instead
        self.depth_exceeded = False
        self._steps: list[str] = []
        self._containers: list[int] = []

    def step(self, step: str, container: object) -> None:
        """Add one step of the path, innermost first."""
        self._steps.append(step)
        if self.depth_exceeded:
            if id(container) in self._containers:
                self.problem = "contains itself"
                self.instead = "pass plain data, or the id of the object"
            self._containers.append(id(container))

    def path(self, root: str) -> str:
        """Where the value is, such as `order.items[3]`."""
        steps = self._steps[::-1]
        if self.problem == "contains itself":
            return root
        return root + "".join(steps[:_SHOWN_STEPS]) + ("…" if len(steps) > _SHOWN_STEPS else "")


def too_deep() -> Refusal:
    """The refusal for a container at MAX_DEPTH."""
    refusal = Refusal(f"is nested deeper than {MAX_DEPTH} levels", instead="pass flatter data, or store it and pass its id")
    refusal.depth_exceeded = True
    return refusal


def plain(value: Any, depth: int = 0, *, rich: bool = False) -> Any:
    """The same value as plain JSON data.

    Args:
        value: what to convert.
        depth: containers around it.
        rich: also take what needs an annotation to come back as it was (datetime, UUID, tuple, dataclass, …), as return values do.

    Raises:
        Refusal: JSON cannot hold it, or, unless `rich`, it would come back as something else.
    """
    kind = type(value)
    if kind is str or kind is int or kind is bool or value is None:
        return value
    if kind is float:
        return plain_float(value, rich=rich)
    if kind is list:
        return plain_items(value, depth, rich=rich)
    if kind is dict:
        return plain_members(value, depth, rich=rich)
    return _other(value, depth, rich=rich)


def plain_items(value: Any, depth: int, *, rich: bool) -> list[Any]:
    """Each element of an iterable, as a list."""
    if depth >= MAX_DEPTH:
        raise too_deep()
    items: list[Any] = []
    try:
        for item in value:
            items.append(plain(item, depth + 1, rich=rich))  # noqa: PERF401  the except needs to know how far it came
    except Refusal as refusal:
        refusal.step(f"[{len(items)}]", value)
        raise
    return items


def plain_members(value: Any, depth: int, *, rich: bool) -> dict[str, Any]:
    """Each member of a mapping, as a dict with text keys."""
    if depth >= MAX_DEPTH:
        raise too_deep()
    members: dict[str, Any] = {}
    key: object = None
    try:
        for key, item in value.items():
            members[key if type(key) is str else key_text(key)] = plain(item, depth + 1, rich=rich)
    except Refusal as refusal:
        refusal.step(key_step(key), value)
        raise
    return members


def key_text(key: object) -> str:
    """A dict key as JSON's text key; only text is."""
    if isinstance(key, str) and not isinstance(key, Enum):
        return str.__str__(key)
    raise Refusal(f"is a key of type {type_name(key)}; keys in JSON are text", instead="use str keys, or a list of pairs")


def key_step(key: object) -> str:
    """The step of a path that a dict key makes."""
    return f".{key}" if isinstance(key, str) and key.isidentifier() else f"[{_shown(key)}]"


def plain_float(value: float, *, rich: bool = True) -> float:
    """A finite float. Unless `rich`, one that jsonb would give back as an int is refused."""
    if not math.isfinite(value):
        raise Refusal(f"is {value}, which JSON cannot hold", instead="pass None for a missing number")
    if not rich and abs(value) >= FLOAT_AS_INT:
        raise Refusal(f"is the float {value!r}, which would come back as an int", instead="annotate the parameter as float")
    return value


def _other(value: Any, depth: int, *, rich: bool) -> Any:  # noqa: C901, PLR0911, PLR0912  one branch per kind of value
    if isinstance(value, Enum):
        return enum_data(value) if rich else _needs_annotation(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):  # numpy's float64 is one
        return plain_float(float(value), rich=rich)
    if isinstance(value, list):
        return plain_items(value, depth, rich=rich)
    if isinstance(value, dict):
        return plain_members(value, depth, rich=rich)
    if not _has_natural_form(value):
        raise Refusal(describe_unfit(value), instead=what_instead(value))
    if not rich:
        return _needs_annotation(value)
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    if isinstance(value, timedelta):
        return duration_text(value)
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, Decimal):
        return decimal_text(value)
    if hasattr(value, "model_dump"):
        return plain(value.model_dump(mode="json", by_alias=True), depth, rich=True)
    if hasattr(value, "_fields") or dataclasses.is_dataclass(value):
        names = value._fields if hasattr(value, "_fields") else [field.name for field in dataclasses.fields(value) if field.init]
        return plain_members({name: getattr(value, name) for name in names}, depth, rich=True)
    if isinstance(value, (set, frozenset)):
        return sorted_set(plain_items(value, depth, rich=True))
    return plain_items(value, depth, rich=True)


def _has_natural_form(value: object) -> bool:
    return (
        isinstance(value, (datetime, date, time, timedelta, UUID, Decimal, tuple, set, frozenset))
        or (dataclasses.is_dataclass(value) and not isinstance(value, type) and not is_orm_object(value))
        or hasattr(type(value), "__pydantic_validator__")
    )


def _needs_annotation(value: object) -> Any:
    name = type_name(value)
    as_what = "a list" if isinstance(value, (tuple, set, frozenset)) else "an object" if dataclasses.is_dataclass(value) else "plain JSON"
    raise Refusal(f"is of type {name} and would come back as {as_what}", instead=f"annotate the parameter with {name}, or pass plain data")


def sorted_set(items: list[Any]) -> list[Any]:
    """The elements of a set in an order that does not change from process to process, so that equal sets have equal text."""
    return sorted(items, key=to_canonical_text)


def enum_data(member: Enum) -> Any:
    """An enum member's value when JSON can hold it as it is, else its name."""
    value = member.value
    if value is None or type(value) in (int, bool):
        return value
    if type(value) is float and math.isfinite(value) and abs(value) < FLOAT_AS_INT:
        return value
    if type(value) is str and text_problem(value) is None:
        return value
    return member.name


def duration_text(value: timedelta) -> str:
    """ISO 8601, exact to the microsecond; PostgreSQL reads it with `::interval`."""
    micros = value // timedelta(microseconds=1)
    seconds, fraction = divmod(abs(micros), 1_000_000)
    return f"{'-' if micros < 0 else ''}PT{seconds}{f'.{fraction:06}' if fraction else ''}S"


def duration_of(data: object) -> timedelta:
    """A timedelta from ISO 8601 text or a number of seconds. Raises Refusal."""
    try:
        if isinstance(data, (int, float)) and not isinstance(data, bool):
            return timedelta(seconds=data)
        match = _DURATION.match(data) if isinstance(data, str) and len(data) < 100 else None  # noqa: PLR2004  longer is no duration
        if match:
            sign, weeks, days, hours, minutes, seconds, fraction = match.groups(default="")
            total = timedelta(
                weeks=int(weeks or 0), days=int(days or 0), hours=int(hours or 0), minutes=int(minutes or 0),
                seconds=int(seconds or 0), microseconds=int(fraction.ljust(6, "0")) if fraction else 0,
            )  # fmt: skip
            return -total if sign == "-" else total
    except (OverflowError, ValueError):
        pass
    raise Refusal(f"is {_shown(data)}, which is not a duration", instead="seconds, or ISO 8601 text such as PT90S")


def decimal_text(value: Decimal) -> str:
    """A finite Decimal as text, which keeps every digit."""
    if not value.is_finite():
        raise Refusal(f"is Decimal('{value}'), which JSON cannot hold", instead="pass None for a missing number")
    return str(value)


def text_problem(value: str) -> str | None:
    """Why PostgreSQL would refuse this text, or None."""
    if "\x00" in value:
        return "contains a NUL character, which PostgreSQL cannot store"
    if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
        return "contains a lone surrogate (half of a character), which is not valid text"
    return None


def checked_text(data: Any) -> tuple[str, int]:
    """Plain JSON data as text that PostgreSQL takes, and its size in bytes. Raises Refusal."""
    try:
        text = to_text(data)
        size = len(text) if text.isascii() else len(text.encode())
    except (UnicodeEncodeError, ValueError):
        _find_unfit(data)
        raise
    if "\\u0000" in text:
        _find_unfit(data)
    return text, size


def _find_unfit(data: Any) -> None:
    """Raise for the first text or number below `data` that cannot be stored. Only walked when the whole did not go through."""
    if isinstance(data, str):
        problem = text_problem(data)
        if problem:
            raise Refusal(problem, instead="clean the text before passing it, or pass bytes as base64 text")
    elif isinstance(data, int) and not isinstance(data, bool) and abs(data) >= 10**_MAX_DIGITS:
        raise Refusal(f"is an integer of more than {_MAX_DIGITS:,} digits", instead="pass it as hexadecimal text")
    elif isinstance(data, float):
        plain_float(data)
    elif isinstance(data, (list, dict)):
        for key, item in data.items() if isinstance(data, dict) else enumerate(data):
            try:
                _find_unfit(key)
                _find_unfit(item)
            except Refusal as refusal:
                refusal.step(key_step(key), data)
                raise


def is_orm_object(value: object) -> bool:
    """Whether it is a row of an ORM: SQLAlchemy's, or one that follows Django's model shape."""
    return hasattr(value, "_sa_instance_state") or hasattr(type(value), "__mapper__") or (hasattr(value, "_meta") and hasattr(value, "pk"))


def describe_unfit(value: object) -> str:
    """The problem with a value that JSON has no form for."""
    if (said := advice(value)) is not None:
        return said.problem
    if is_orm_object(value):
        return f"is a database object ({type_name(value)}), which belongs to this session only"
    return f"is of type {type_name(value)}, which JSON cannot hold"


def what_instead(value: object) -> str:
    """What to pass in place of it."""
    if (said := advice(value)) is not None:
        return said.instead
    if is_orm_object(value):
        return "pass the id, and load the object in the task"
    if isinstance(value, (bytes, bytearray, memoryview)):
        return "annotate the parameter, pass base64 text, or store the bytes and pass their id or path"
    return "pass an id, a path or plain data (text, numbers, lists, dicts)"


def type_name(value: object) -> str:
    """The name of a value's type, for messages."""
    return type(value).__qualname__.rpartition("<locals>.")[2]


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001  a message about a hostile value must not fail
        return f"<{type_name(value)}>"
    return text if len(text) <= 60 else text[:57] + "…"  # noqa: PLR2004  a line's worth
