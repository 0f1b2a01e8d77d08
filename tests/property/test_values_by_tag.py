"""Typed JSON, tag by tag: each type of the fixed list comes back, and behind each tag anything may stand."""

from __future__ import annotations

import pathlib
from datetime import UTC

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.typedvalues import (
    CLASSES,
    VALUES,
    ZONES,
    Colour,
    Level,
    Right,
    hashable,
    json_data,
    same,
    travelled,
    value_or_the_one_error,
    values,
)

# Each type that has a tag, by the tag that its values have.
KINDS: dict[str, st.SearchStrategy[object]] = {
    "tuple": st.builds(tuple, st.lists(values, max_size=4)),
    "set": st.sets(hashable, max_size=4),
    "frozenset": st.frozensets(hashable, max_size=4),
    "bytes": st.binary(),
    "bytearray": st.builds(bytearray, st.binary()),
    "datetime": st.datetimes(timezones=st.none() | ZONES, allow_imaginary=True),
    "time": st.times(timezones=st.none() | st.just(UTC)),
    "date": st.dates(),
    "timedelta": st.timedeltas(),
    "decimal": st.decimals(allow_nan=False),
    "uuid": st.uuids(),
    "complex": st.complex_numbers(allow_nan=False),
    "path": st.builds(pathlib.Path, st.text(st.characters(codec="utf-8", exclude_characters="\0"))),
    "windowspath": st.builds(pathlib.PureWindowsPath, st.text(st.characters(codec="utf-8", exclude_characters="\0"))),
    "enum": st.sampled_from([*Colour, *Level, *Right, Right.READ | Right.WRITE, Right(0)]),
    "dict": st.dictionaries(st.integers() | st.sampled_from([(), "$tuple"]), values, min_size=1, max_size=3),
    "int": st.integers(min_value=0).map(lambda number: (number + 1) * 2**14_000) | st.integers(max_value=-1).map(lambda number: number * 2**14_000),
    "float": st.sampled_from([float("inf"), float("-inf"), -0.0]) | st.floats(min_value=1e16),
    "str": st.text(st.characters(), max_size=4).flatmap(lambda text: st.sampled_from([text + "\0", "\ud800" + text])),
}


@pytest.mark.parametrize("tag", KINDS)
@given(data=st.data())
def test_each_type_comes_back_by_its_tag(tag, data):
    """Each type of the list, by itself and within others, comes back equal and of the same type; its tag is the one that stands in the list."""
    value = data.draw(KINDS[tag])
    assert VALUES.encode(value).keys() == {f"${tag}"}
    assert same(travelled({"deep": [value, (value,)]}), {"deep": [value, (value,)]})


def test_the_list_of_tags_is_fixed():
    """A tag is one of those above, or that of an exception or of a pure path; nothing else is read."""
    assert VALUES._decoders.keys() == {*KINDS, "posixpath", "exception"}


# -- hostile input


# What a decoder expects, and what is nearly that.
bodies = st.one_of(
    json_data,
    st.text(),
    st.text("0123456789-+:.TPYMWDHSZ/eExXabc= ", max_size=30),
    st.lists(json_data, max_size=3),
    st.lists(st.lists(json_data, max_size=3), max_size=3),
    st.fixed_dictionaries(
        {},
        optional={
            "at": st.text("0123456789-:.T+", max_size=20) | st.sampled_from(["2026-01-01T00:00:00", "00:00", "2026-01-01T00:00:00+99:00"]) | json_data,
            "zone": st.none() | st.sampled_from(["UTC", "Europe/Berlin", "Europe", "../UTC", "", "/etc/passwd", "\0"]) | json_data,
            "fold": st.integers(-2, 2) | json_data,
            "class": st.sampled_from([*CLASSES, "os:system", "builtins:int"]) | json_data,
            "name": st.sampled_from(["RED", "LOW", "READ", "__class__", "mro"]) | json_data,
            "value": st.integers() | json_data,
            "type": st.sampled_from([*CLASSES, "builtins:ValueError", "builtins:OSError", "builtins:ExceptionGroup", "builtins:eval"]) | json_data,
            "args": st.lists(json_data, max_size=5) | json_data,
            "state": st.dictionaries(st.sampled_from(["__notes__", "__class__", "args", "name", "filename", "__dict__", "x"]), json_data, max_size=3) | json_data,
        },
    ),
)


@pytest.mark.parametrize("tag", sorted(VALUES._decoders))
@given(body=bodies, within=st.sampled_from([lambda data: data, lambda data: [data], lambda data: {"$tuple": [data]}, lambda data: {"$set": [data]}, lambda data: {"$dict": [[data, 1]]}]))
def test_each_tag_withstands_what_does_not_belong_there(tag, body, within):
    """Behind each tag of the list, whatever stands there: a value, or the one error."""
    value_or_the_one_error(within({f"${tag}": body}))
