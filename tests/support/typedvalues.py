"""Values of every type that typed JSON knows, data that looks like it, and the classes that it may rebuild."""

from __future__ import annotations

import enum
import json
import math
import pathlib
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

from hypothesis import strategies as st

from jobrunner.jsonvalues import Refusal
from jobrunner.values import UnreadableValue, Values


class Colour(enum.Enum):
    """With an alias."""

    RED = "#f00"
    ALARM = "#f00"  # noqa: PIE796  an alias
    BLUE = ("b", 1)


class Level(enum.IntEnum):
    """A number as well."""

    LOW = 1


class Right(enum.Flag):
    """With values that have no name."""

    READ = enum.auto()
    WRITE = enum.auto()


class OrderError(ValueError):
    """Its constructor wants what its arguments are not."""

    def __init__(self, number: int, why: str, *, raised: bool = True) -> None:
        super().__init__(f"order {number}: {why}")
        self.number = number
        self.handle = object()
        assert raised


class Here:
    """Allows the classes of this file."""

    def name_of(self, cls: type) -> str | None:
        """Of those above."""
        return f"here:{cls.__qualname__}" if cls.__module__ == __name__ else None

    def find(self, name: str) -> type | None:
        """The same, backwards."""
        return CLASSES.get(name)


CLASSES: dict[str, type] = {f"here:{cls.__qualname__}": cls for cls in (Colour, Level, Right, OrderError, Here)}
VALUES = Values(Here())
ZONES = st.sampled_from([UTC, timezone(timedelta(hours=-3, minutes=-30)), ZoneInfo("Europe/Berlin"), ZoneInfo("America/St_Johns")])

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.complex_numbers(allow_nan=False),
    st.text(st.characters()),
    st.binary(),
    st.builds(bytearray, st.binary()),
    st.datetimes(timezones=st.none() | ZONES, allow_imaginary=True),
    st.dates(),
    st.times(timezones=st.none() | st.just(UTC)),
    st.timedeltas(),
    st.decimals(allow_nan=False),
    st.uuids(),
    st.builds(pathlib.Path, st.text(st.characters(codec="utf-8", exclude_characters="\0"))),
    st.builds(pathlib.PureWindowsPath, st.sampled_from(["C:\\a", "b"])),
    st.sampled_from([*Colour, *Level, *Right, Right.READ | Right.WRITE, Right(0)]),
)
hashable = st.recursive(scalars.filter(lambda value: not isinstance(value, bytearray)), lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3), max_leaves=4)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.builds(tuple, st.lists(inner, max_size=4)),
        st.sets(hashable, max_size=3),
        st.dictionaries(st.sampled_from(["a", "$tuple", "$dict", "$", "$a b", ""]) | hashable, inner, max_size=4),
    ),
    max_leaves=12,
)
json_data = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["here:Colour", "builtins:OSError", "RED", "PT1S"]),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(
        st.text(max_size=3) | st.sampled_from([f"${tag}" for tag in VALUES._decoders] + ["class", "name", "value", "type", "args", "state", "at", "zone", "fold"]),
        inner,
        max_size=3,
    ),
    max_leaves=10,
)


def travelled(value: Any) -> Any:
    """The value after its way through JSON text."""
    return VALUES.decode(json.loads(json.dumps(VALUES.encode(value), allow_nan=False)))


def same(first: Any, second: Any) -> bool:
    """Equal, of the same type, and so in all parts; sets and the keys of dicts by equality alone."""
    if type(first) is not type(second):
        return False
    if isinstance(first, float):
        return first == second and math.copysign(1, first) == math.copysign(1, second)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(value, second[key]) for key, value in first.items())
    if isinstance(first, datetime):
        return bool(first == second and first.tzinfo == second.tzinfo and first.fold == second.fold and first.replace(tzinfo=None) == second.replace(tzinfo=None))
    return bool(first == second)


def value_or_the_one_error(data: Any) -> None:
    """Decode it: a value, which can be encoded or is refused, or `UnreadableValue`; whatever else is raised fails the test."""
    try:
        value = VALUES.decode(data)
    except UnreadableValue:
        return
    try:
        VALUES.encode(value)
    except Refusal:
        return
