"""Typed JSON: what goes in comes back equal and of the same type, through jsonb too; what comes from elsewhere is a value or one error."""

from __future__ import annotations

import enum
import json
import math
from collections import Counter, OrderedDict, namedtuple
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jobrunner.jsonvalues import Refusal
from jobrunner.values import MAX_DEPTH, UnreadableValue, Values
from tests.support.typedvalues import VALUES, Colour, Here, OrderError, json_data, same, travelled, value_or_the_one_error, values


@given(values)
@example({"$tuple": [1]})
@example({1: {"$dict": [[1, 2]]}, (2,): set()})
@example([float("inf"), -0.0, 1e16, 5e-324, 10**5000, -(2**14_000)])
@example(datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=1))
@example(["\0", "\ud800", {"\0": 1}])
@example(Decimal("1.10"))
@example(timedelta.min)
def test_what_goes_in_comes_back(value):
    """Every value of the fixed list of types, in any container, comes back equal and of the same type; dicts that look like tags too."""
    assert same(travelled(value), value)


def test_what_is_not_equal_to_itself():
    """NaN comes back as NaN."""
    assert math.isnan(travelled(float("nan")))
    assert travelled(Decimal("NaN")).is_nan()
    assert travelled(complex(float("nan"), -0.0)).imag == 0


def test_plain_data_stays_readable():
    """What JSON can hold by itself has no tag, so that SQL can look into it."""
    plain = {"user_id": 42, "items": [1, 2.5, None, True, "é"], "deep": {"a": []}}
    assert VALUES.encode(plain) == plain
    assert VALUES.encode((1, "a")) == {"$tuple": [1, "a"]}
    assert VALUES.encode(Colour.ALARM) == {"$enum": {"class": "here:Colour", "name": "RED"}}


def test_equal_sets_have_equal_text():
    """The order in which a process holds a set does not show."""
    assert json.dumps(VALUES.encode({"b", "a", 3})) == json.dumps(VALUES.encode({3, "a", "b"}))


def test_through_the_database(connection):
    """jsonb changes numbers and the order of names; none of it is seen."""
    value = {
        "floats": [1.0, 1e15, 1e16, 1e300, 5e-324, -0.0, 0.1, float("inf")],
        "ints": (0, 2**63, -(10**400), 10**5000),
        "text": {"\0", "é", "\ud800"},
        "when": [datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 1), date(2026, 1, 1), time(1, 2, 3), timedelta(days=-1, microseconds=1)],  # noqa: DTZ001
        3: UUID(int=5),
    }
    stored = connection.execute("SELECT (%s::jsonb)::text", (json.dumps(VALUES.encode(value)),)).fetchone()[0]
    assert same(VALUES.decode(json.loads(stored)), value)


# -- subclasses and what cannot travel


class Shouting(str):
    __slots__ = ()


@pytest.mark.parametrize("value", [OrderedDict(a=1), Counter("aab"), Shouting("hey"), {"k": Shouting("é")}, {Shouting("k"): 1}], ids=repr)
def test_a_subclass_that_comes_back_equal(value):
    """It comes back as the built-in type: nothing of its value is lost."""
    assert travelled(value) == value


Point = namedtuple("Point", "x y")  # noqa: PYI024  the untyped kind


@pytest.mark.parametrize(
    ("value", "place", "problem"),
    [
        (Point(1, 2), "it", "plain tuple"),
        ([{"a": (1, object())}], "it[0].a[1]", "object"),
        ({"a": {1: lambda: None}}, "it.a[1]", "function"),
        (Here(), "it", "Here"),
        (NotImplemented, "it", "NotImplementedType"),
        (Values, "it", "type"),
        (enum.Enum("Other", "A", module="elsewhere").A, "it", "elsewhere"),  # type: ignore[attr-defined]
        (KeyboardInterrupt(object()), "it[0]", "object"),
        (memoryview(b"a"), "it", "memoryview"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_travel_is_named(value, place, problem):
    """The refusal says where it is and what, and what to do instead."""
    with pytest.raises(Refusal, match=problem) as caught:
        VALUES.encode(value)
    assert caught.value.path("it") == place
    assert caught.value.instead


def test_a_value_that_contains_itself():
    """Depth is bounded, and a circle is called one."""
    circle: list[object] = []
    circle.append((circle,))
    with pytest.raises(Refusal, match=r"contains itself|nested deeper"):
        VALUES.encode(circle)
    deep: object = 1
    for _ in range(MAX_DEPTH):
        deep = [deep]
    assert travelled(deep) == deep
    with pytest.raises(Refusal, match="nested deeper"):
        VALUES.encode([deep])


# -- exceptions


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no", 1, (2, {3})),
        KeyError("k"),
        FileNotFoundError(2, "No such file", "/nowhere"),
        ModuleNotFoundError("No module named 'shop'", name="shop", path="/nowhere"),
        AttributeError("no total", name="total"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        StopIteration(5),
        SystemExit(3),
        ExceptionGroup("several", [ValueError(1), TypeError()]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_builtin_exceptions_come_back(error):
    """Type, arguments, text and the fields that the built-in part has, whether it was raised or is a value."""
    error.add_note("seen by the worker")
    for back in (travelled(error), VALUES.decode(json.loads(json.dumps(VALUES.encode_error(error))))):
        assert type(back) is type(error)
        assert (repr(back), str(back), back.__notes__) == (repr(error), str(error), ["seen by the worker"])
        assert getattr(back, "filename", None) == getattr(error, "filename", None)
        assert vars(back).keys() == {"__notes__"}
        if isinstance(error, ImportError):
            assert (back.name, back.path) == ("shop", "/nowhere")


@given(
    error=st.builds(
        lambda kind, given: kind(*given),
        st.sampled_from([ValueError, KeyError, RuntimeError, LookupError, AssertionError, SystemExit, KeyboardInterrupt, StopIteration]),
        st.lists(values, max_size=3),
    )
    | st.builds(OrderError, st.integers(), st.text()),
    notes=st.lists(st.text(), max_size=2),
)
def test_exceptions_with_any_values_come_back(error, notes):
    """Whatever an exception was given comes back with it, equal and of the same types, whether it was raised or is a value."""
    for note in notes:
        error.add_note(note)
    for back in (VALUES.decode(json.loads(json.dumps(VALUES.encode_error(error)))), travelled(error)):
        assert type(back) is type(error)
        assert same(back.args, error.args)
        assert getattr(back, "__notes__", []) == notes
        assert getattr(back, "number", None) == getattr(error, "number", None)


def test_an_exception_of_the_application_comes_back_without_its_constructor():
    """Arguments that its own constructor would not take are no obstacle; attributes that cannot travel stay behind."""
    back = VALUES.decode(VALUES.encode_error(OrderError(5, "gone")))
    assert (type(back), str(back), back.number, hasattr(back, "handle")) == (OrderError, "order 5: gone", 5, False)


def test_an_exception_that_cannot_travel_keeps_its_text():
    """An argument that cannot travel is replaced by what the exception says."""
    back = VALUES.decode(VALUES.encode_error(ValueError("no", object())))
    assert type(back) is ValueError
    assert "no" in str(back)


class Hostile(Exception):
    @property
    def __dict__(self):  # type: ignore[override]
        raise RuntimeError("no attributes")

    def __str__(self):
        raise RuntimeError("no text")

    def __reduce__(self):
        raise RuntimeError("no parts")


def test_an_exception_that_attacks_its_own_description():
    """Encoding it gives something or nothing, and never raises."""
    assert VALUES.encode_error(Hostile(object())) is None or VALUES.encode_error(Hostile(object()))


# -- hostile input


@given(json_data)
@example({"$enum": {"class": "os:system", "name": "x"}})
@example({"$exception": {"type": "here:Here", "args": [], "state": {}}})
@example({"$exception": {"type": "builtins:UnicodeDecodeError", "args": [1], "state": {}}})
@example({"$exception": {"type": "builtins:ValueError", "args": [], "state": {"args": 3, "__class__": "x", "__traceback__": 1}}})
@example({"$exception": {"type": "builtins:BaseExceptionGroup", "args": ["m", [1]], "state": {}}})
@example({"$datetime": {"at": "2026-01-01", "zone": "../../etc/passwd", "fold": 0}})
@example({"$datetime": {"at": "2026-01-01", "zone": "Europe", "fold": 0}})
@example({"$datetime": {"at": "2026-01-01", "zone": None, "fold": 7}})
@example({"$set": [[1]]})
@example({"$dict": [[[1], 2]]})
@example({"$dict": [[1]]})
@example({"$dict": [1]})
@example({"$tuple": 3})
@example({"$tuple": [], "a": 1})
@example({"$decimal": "1e999999999999999999999"})
@example({"$timedelta": "P9999999999999999999D"})
@example({"$bytes": "é"})
@example({"$int": "x"})
@example({"$enum": {"class": "here:Right", "value": 10**30}})
@example({"$enum": {"class": "here:Colour", "value": "#f00"}})
def test_data_from_elsewhere_is_a_value_or_the_one_error(data):
    """Whatever stands in a row, decoding gives a value or raises UnreadableValue; what it gives can be encoded, or is refused."""
    value_or_the_one_error(data)


@pytest.mark.parametrize("opening", ["[", '{"$tuple":[', '{"a":', '{"$dict":[[1,'])
def test_depth_is_bounded(opening):
    """Data that is nested deeper than anything we write is refused before the stack is used up."""
    closing = {"[": "]", '{"$tuple":[': "]}", '{"a":': "}", '{"$dict":[[1,': "]]}"}[opening]
    with pytest.raises(UnreadableValue, match="nested"):
        VALUES.decode(json.loads(opening * 100 + "1" + closing * 100))


@pytest.mark.parametrize("name", ["os:system", "builtins:eval", "builtins:int", "here:Here", "here:Colour", "subprocess:Popen", "", 5, None])
def test_a_name_in_data_finds_only_exceptions_that_are_allowed(name):
    """No class is looked up by a name in a row but among those that the application allows, and of the kind that belongs there."""
    with pytest.raises(UnreadableValue):
        VALUES.decode({"$exception": {"type": name, "args": ["x"], "state": {}}})
