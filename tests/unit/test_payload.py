"""A call becomes one JSON object and comes back equal, or is refused with the path of the argument."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal  # noqa: TC003  read from the annotations at run time
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobrunner import payload
from jobrunner.errors import InvalidPayload
from jobrunner.payload import Parameters
from jobrunner.settings import MAX_PAYLOAD_BYTES

LIMIT = MAX_PAYLOAD_BYTES


def there_and_back(function, *args, **kwargs):
    """The arguments as the function would get them from a stored row."""
    parameters = Parameters(function, function.__name__)
    text = payload.object_text(parameters.bind(args, kwargs), LIMIT)
    got_args, got_kwargs = parameters.call(json.loads(text))
    return parameters.signature.bind(*got_args, **got_kwargs).arguments


def refusal(function, *args, limit=LIMIT, **kwargs) -> InvalidPayload:
    parameters = Parameters(function, function.__name__)
    with pytest.raises(InvalidPayload) as caught:
        payload.object_text(parameters.bind(args, kwargs), limit)
    return caught.value


def untyped(value):
    return value


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False, min_value=-1e15, max_value=1e15) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


@given(JSON)
def test_plain_json_needs_no_annotation(value):
    """Whatever JSON holds by itself comes back equal without any annotation."""
    assert there_and_back(untyped, value) == {"value": value}


@given(
    st.text()
    | st.floats()
    | st.binary()
    | st.integers()
    | st.lists(st.floats() | st.text() | st.binary())
    | st.dictionaries(st.text(), st.text())
)
def test_hostile_values_come_back_or_are_refused(value):
    """No value gets through that would come back different, and nothing but InvalidPayload is raised."""
    try:
        text = payload.object_text(Parameters(untyped, "untyped").bind((value,), {}), LIMIT)
    except InvalidPayload as error:
        assert error.argument.startswith("value")
    else:
        assert json.loads(text) == {"value": value}
        text.encode()
        assert "\0" not in json.loads(text)["value"] if isinstance(value, str) else True


AWARE = st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=-9, minutes=-30)), ZoneInfo("Europe/Berlin")]))


def moment(value: datetime): ...
def day(value: date): ...
def clock(value: time): ...
def span(value: timedelta): ...
def money(value: Decimal): ...
def fraction(value: float): ...
def whole(value: int): ...
def several(value: list[tuple[date, Decimal | None]]): ...
def unique_days(value: set[date]): ...
def by_day(value: dict[date, list[timedelta]]): ...
def mixed(value: int | float | str | None): ...  # noqa: PYI041  the difference is the point


@pytest.mark.parametrize(
    ("function", "values"),
    [
        (day, st.dates()),
        (clock, st.times()),
        (span, st.timedeltas()),
        (money, st.decimals(allow_nan=False, allow_infinity=False)),
        (fraction, st.floats(allow_nan=False, allow_infinity=False)),
        (whole, st.integers()),
        (several, st.lists(st.tuples(st.dates(), st.decimals(allow_nan=False, allow_infinity=False) | st.none()), max_size=4)),
        (unique_days, st.sets(st.dates(), max_size=5)),
        (by_day, st.dictionaries(st.dates(), st.lists(st.timedeltas(), max_size=2), max_size=3)),
        (mixed, st.integers() | st.floats(allow_nan=False, allow_infinity=False, min_value=-1e15, max_value=1e15) | TEXT | st.none()),
    ],
)
def test_annotated_values_come_back_equal(function, values):
    """A value of the annotated type comes back equal and of the same type."""

    @given(values)
    def check(value):
        back = there_and_back(function, value)["value"]
        assert back == value
        assert type(back) is type(value)

    check()


@given(AWARE)
def test_moments_come_back_as_the_same_instant(value):
    """An aware datetime comes back as the same instant, whatever its zone; what UTC cannot express is no valid instant either."""
    back = there_and_back(moment, value)["value"]
    assert back.utcoffset() == value.utcoffset()
    assert back.replace(tzinfo=None) == value.replace(tzinfo=None)


@pytest.mark.parametrize("value", [0.1, 1e16, 1e22, 1e23, 1e308, 5e-324, -0.0, 2.0])
def test_floats_survive_jsonb(connection, value):
    """A float annotated as such is the same number after PostgreSQL's jsonb has stored it."""
    parameters = Parameters(fraction, "fraction")
    text = payload.object_text(parameters.bind((value,), {}), LIMIT)
    stored = connection.execute("SELECT CAST(%s AS jsonb)", (text,)).fetchone()[0]
    back = parameters.call(stored)[1]["value"]
    assert back == value
    assert type(back) is float


def test_large_float_without_annotation_is_refused():
    """jsonb would give it back as an int, so the caller is told to annotate it."""
    error = refusal(untyped, {"size": 1e23})
    assert error.argument == "value.size"
    assert "annotate" in error.hint


@given(JSON)
def test_stored_text_is_what_jsonb_takes(value):
    """Text that was not refused has no NUL escape outside of an escaped backslash, no surrogate and no NaN."""
    text = payload.object_text(Parameters(untyped, "untyped").bind((value,), {}), LIMIT)
    assert json.loads(text, parse_constant=pytest.fail) == {"value": value}


def test_the_text_backslash_u0000_is_not_a_nul(connection):
    """Six harmless characters that look like JSON's escape of NUL are stored as they are."""
    harmless = "\\u0000"
    text = payload.object_text(Parameters(untyped, "untyped").bind((harmless,), {}), LIMIT)
    assert connection.execute("SELECT CAST(%s AS jsonb)->>'value'", (text,)).fetchone()[0] == harmless


def nested(levels: int):
    value: object = "bottom"
    for _ in range(levels):
        value = [value]
    return value


class Mapped:
    """Looks like a row of SQLAlchemy's ORM."""

    _sa_instance_state = object()


@pytest.mark.parametrize(
    ("value", "path", "words"),
    [
        (b"x", "value", "bytes"),
        ({"items": [1, 2, 3, float("nan")]}, "value.items[3]", "nan"),
        ([float("inf")], "value[0]", "inf"),
        ([{"a b": "x\0"}], "value[0]['a b']", "NUL"),
        ({"x": {"y": "\ud800"}}, "value.x.y", "surrogate"),
        ({1: "a"}, "value[1]", "key of type int"),
        ({None: "a"}, "value[None]", "key of type NoneType"),
        pytest.param(10**5000, "value", "4,300 digits", id="huge int"),
        (Mapped(), "value", "database object"),
        ((1, 2), "value", "would come back as a list"),
        (datetime.now(UTC), "value", "of type datetime"),
        ({1, 2}, "value", "of type set"),
        (object(), "value", "of type object"),
        (untyped, "value", "of type function"),
    ],
)
def test_refusals_name_the_place(value, path, words):
    """What JSON cannot hold is refused with the path of the argument, the reason, and what to pass instead."""
    error = refusal(untyped, value)
    assert error.argument == path
    assert words in str(error)
    assert error.hint


def test_orm_objects_are_told_to_pass_the_id():
    """The commonest mistake has its own advice, also where the parameter is annotated with the model."""

    def annotated(value: Mapped): ...

    assert "pass the id" in refusal(untyped, Mapped()).hint
    assert "pass the id" in refusal(annotated, Mapped()).hint


def test_depth_is_limited():
    """64 levels of containers are stored, one more is refused."""
    there_and_back(untyped, nested(63))
    error = refusal(untyped, nested(64))
    assert "nested deeper than 64 levels" in str(error)
    assert len(error.argument) < 60


def test_cycles_are_refused():
    """A value that contains itself is refused as such, not after a recursion error."""
    value: list[object] = []
    value.append({"self": value})
    assert "contains itself" in str(refusal(untyped, value))


def test_size_is_limited():
    """Above the limit the largest argument is named, and both numbers are given."""

    def send(small, large): ...

    error = refusal(send, "x", "y" * 200, limit=100)
    assert error.argument == "large"
    assert "100" in str(error)
    assert "max_payload_bytes" in error.hint


def test_size_counts_bytes_not_characters():
    """The limit is in bytes of UTF-8."""
    assert refusal(untyped, "é" * 60, limit=100).argument == "value"


def test_naive_datetimes_are_refused():
    """A datetime without zone means another moment on another host."""
    error = refusal(moment, datetime(2026, 1, 1))  # noqa: DTZ001  that is the point
    assert "without a time zone" in str(error)
    assert "datetime.now(UTC)" in error.hint


@pytest.mark.parametrize(
    ("function", "value"),
    [(day, datetime.now(UTC)), (whole, "1"), (whole, 1.5), (fraction, 2**60 + 1), (several, [("x",)]), (moment, date.today())],  # noqa: DTZ011
)
def test_values_of_another_type_are_refused(function, value):
    """A value that the annotation would not bring back is refused at enqueue, not when the job runs."""
    assert refusal(function, value).argument.startswith("value")


def test_plain_calls_are_fast():
    """Binding and encoding a call with one int takes a few microseconds: less than 25 even on a loaded machine (median of many)."""
    from time import thread_time
    from timeit import repeat

    parameters = Parameters(whole, "whole")
    best = min(repeat(lambda: payload.object_text(parameters.bind((42,), {}), LIMIT), timer=thread_time, number=2000, repeat=20)) / 2000
    assert best < 25e-6
