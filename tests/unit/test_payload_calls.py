"""Every kind of parameter is stored under its name and given back the way the function takes it."""

from __future__ import annotations

import json
from datetime import date
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobrunner import payload
from jobrunner.errors import InvalidPayload
from jobrunner.payload import Parameters

if TYPE_CHECKING:
    from datetime import datetime


def plain(a, b=2):
    return a, b


def only_position(a, b=2, /):
    return a, b


def only_keyword(*, a, b=2):
    return a, b


def rest(a, *more: int, flag=False):
    return a, more, flag


def extra(a, **options: date):
    return a, options


def everything(a, b=2, /, c=3, *more, d, e=5, **options):
    return a, b, c, more, d, e, options


@pytest.mark.parametrize(
    ("function", "args", "kwargs", "stored"),
    [
        (plain, (1,), {}, {"a": 1}),
        (plain, (), {"a": 1}, {"a": 1}),
        (plain, (1,), {"b": 3}, {"a": 1, "b": 3}),
        (only_position, (1,), {}, {"a": 1}),
        (only_position, (1, 5), {}, {"a": 1, "b": 5}),
        (only_keyword, (), {"a": 1, "b": 3}, {"a": 1, "b": 3}),
        (rest, (1, 2, 3), {"flag": True}, {"a": 1, "more": [2, 3], "flag": True}),
        (extra, (1,), {"due": date(2026, 1, 1)}, {"a": 1, "due": "2026-01-01"}),
        (everything, (1, 2, 3, 4), {"d": 5, "z": 6}, {"a": 1, "b": 2, "c": 3, "more": [4], "d": 5, "z": 6}),
        (everything, (1,), {"d": 5}, {"a": 1, "d": 5}),
    ],
)
def test_calls_are_stored_by_name_and_made_again(function, args, kwargs, stored):
    """What was passed is stored under the parameter's name, defaults are not, and the call gives the same result."""
    parameters = Parameters(function, function.__name__)
    text = payload.object_text(parameters.bind(args, kwargs), 1000)
    assert json.loads(text) == stored
    got_args, got_kwargs = payload.decode_args(type("T", (), {"parameters": parameters})(), text)
    assert function(*got_args, **got_kwargs) == function(*args, **kwargs)


@given(st.lists(st.integers(), max_size=5), st.dictionaries(st.sampled_from(["b", "c", "d", "e", "x", "y"]), st.integers()))
def test_any_call_is_refused_or_made_again(args, kwargs):
    """A call that Python would refuse is refused at enqueue; every other one comes back the same, or is a named refusal."""
    parameters = Parameters(everything, "everything")
    try:
        expected = everything(*args, **kwargs)
    except TypeError:
        with pytest.raises(InvalidPayload, match="do not fit everything"):
            parameters.bind(tuple(args), kwargs)
        return
    try:
        bound = parameters.bind(tuple(args), kwargs)
    except InvalidPayload as error:
        # f(1, b=2) where b is positional-only: there is no second name for it in one object.
        assert "has the name of a parameter" in str(error) or "positional only" in str(error)
        return
    got_args, got_kwargs = parameters.call(json.loads(json.dumps(bound)))
    assert everything(*got_args, **got_kwargs) == expected


@pytest.mark.parametrize(
    ("args", "kwargs", "words"),
    [
        ((), {}, "missing a required argument: 'a'"),
        ((1, 2, 3), {}, "too many positional arguments"),
        ((1,), {"c": 3}, "unexpected keyword argument 'c'"),
        ((1,), {"a": 3}, "multiple values for argument 'a'"),
    ],
)
def test_wrong_calls_are_refused_in_the_functions_words(args, kwargs, words):
    """The message has the function's signature and what is wrong with the call."""
    with pytest.raises(InvalidPayload) as caught:
        Parameters(plain, "plain").bind(args, kwargs)
    assert "do not fit plain(a, b=2)" in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize(("data", "words"), [({}, "missing a required argument: 'a'"), ({"a": 1, "x": 2}, "unexpected argument 'x'")])
def test_rows_that_do_not_fit_the_function_are_refused(data, words):
    """A row written by SQL with missing or unknown names is refused before the function is called."""
    with pytest.raises(InvalidPayload, match=words):
        Parameters(plain, "plain").call(data)


def test_a_default_that_changed_holds_for_waiting_jobs():
    """Only what the caller passed is stored, so the function's default at run time counts."""

    def after(a, b=99):
        return a, b

    bound = Parameters(plain, "plain").bind((1,), {})
    args, kwargs = Parameters(after, "plain").call(bound)
    assert after(*args, **kwargs) == (1, 99)


def hidden(when: datetime): ...


def test_annotations_that_cannot_be_resolved_are_explained():
    """A name imported under TYPE_CHECKING only still lets plain data through, and is named when it is needed."""
    from datetime import UTC, datetime

    parameters = Parameters(hidden, "hidden")
    assert parameters.bind(("now",), {}) == {"when": "now"}
    with pytest.raises(InvalidPayload) as caught:
        parameters.bind((datetime.now(UTC),), {})
    assert "TYPE_CHECKING" in caught.value.hint


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.integers(), min_size=1))
def test_unique_keys_depend_on_content_only(values):
    """Equal arguments have equal keys in whatever order they were given, different ones different keys."""
    assert payload.unique_key(values) == payload.unique_key(dict(reversed(values.items())))
    assert payload.unique_key(values) != payload.unique_key({**values, "another": [1]})


@pytest.mark.parametrize("text", ["", "[1]", "nope", "{", "3", "[" * 100_000])
def test_text_that_is_no_object_is_refused(text):
    """What a person types as arguments is one JSON object or InvalidPayload."""
    with pytest.raises(InvalidPayload):
        payload.parse_object(text)
