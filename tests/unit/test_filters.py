"""The filter language: what it reads, what it refuses and how it says so."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobrunner import filters
from jobrunner.errors import InvalidFilter
from jobrunner.filters import JobFilter, Pattern, parse

names = st.text(st.characters(categories=("L", "N", "P", "S", "Zs")), min_size=1, max_size=12)
ids = st.integers(1, filters.MAX_ID)
words = st.frozensets(st.sampled_from(filters.STATE_WORDS), max_size=3)


def several(what: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Up to three different ones."""
    return st.lists(what, max_size=3, unique=True).map(tuple)


any_filter = st.builds(
    JobFilter,
    states=words,
    tasks=several(st.builds(Pattern, names, st.booleans())),
    queues=several(names),
    ids=several(ids),
    not_states=words,
    not_tasks=several(st.builds(Pattern, names, st.booleans())),
    not_queues=several(names),
    not_ids=several(ids),
)


def test_every_qualifier_is_read() -> None:
    """Each qualifier of today lands in its field, with several values, negation and a trailing glob."""
    found = parse("state:failed,cancelled  task:mail.*,sync queue:mail id:1,#2 -task:x -state:running")
    assert found == JobFilter(
        states=frozenset({"failed", "cancelled"}),
        tasks=(Pattern("mail.", prefix=True), Pattern("sync")),
        queues=("mail",),
        ids=(1, 2),
        not_tasks=(Pattern("x"),),
        not_states=frozenset({"running"}),
    )


@pytest.mark.parametrize("text", ["", "  ", "\t\n"])
def test_blank_text_is_no_filter(text) -> None:
    """Blank text lets every job through."""
    assert parse(text) == JobFilter()
    assert not parse(text)


@given(any_filter)
def test_text_and_filter_are_the_same_thing(wanted) -> None:
    """Whatever a filter says, its text reads back to the same filter: links and bookmarks keep their meaning."""
    assert parse(str(wanted)) == wanted


@given(st.text(max_size=80))
def test_any_text_is_a_filter_or_refused(text) -> None:
    """No text does anything but give a filter or raise InvalidFilter with a sentence."""
    try:
        parse(text)
    except InvalidFilter as error:
        assert str(error)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("sate:failed", "Did you mean 'state'?"),
        ("state:faild", "Did you mean 'failed'?"),
        ("foo:bar", "unknown qualifier 'foo'"),
        ("task:a*b", "only stand at the end"),
        ("queue:ma*", "only task: takes a *"),
        ("state:*", "only task: takes a *"),
        ('task:"open', "not closed"),
        ('task:a"b"', "mixes quoted and plain"),
        ("task:", "has no value"),
        ("task:a,,b", "empty value"),
        ("state:failed state:queued", "given twice"),
        ("id:0", "is not the id of a job"),
        ("id:-1", "is not the id of a job"),
        ("id:1.5", "is not the id of a job"),
        ("id:9223372036854775808", "is not the id of a job"),
        ("id:" + "9" * 5000, "longer than"),
        ("id:" + ",".join(str(number) for number in range(1, 300)), "more than 200 values"),
        ("task:a\x00", "cannot be printed"),
        ("task:\ud800", "cannot be printed"),
    ],
)
def test_what_is_wrong_is_named(text, part) -> None:
    """A refusal names what is wrong, with the closest right word when there is one."""
    with pytest.raises(InvalidFilter) as caught:
        parse(text)
    assert part in str(caught.value)


@pytest.mark.parametrize(
    ("text", "hint"), [("123", "id:123"), ("#77", "id:77"), ("failed", "state:failed"), ("mail.send", "qualifiers: state")]
)
def test_bare_words_are_refused_with_what_was_meant(text, hint) -> None:
    """A word without a qualifier is refused, and the hint says how to write it."""
    with pytest.raises(InvalidFilter) as caught:
        parse(text)
    assert hint in caught.value.hint


def test_bare_parameters_are_terms_too() -> None:
    """`state=failed&task=mail.*` means the same as the filter text, and may not contradict it."""
    assert filters.combine("queue:mail", state="failed,cancelled", task="mail.*", queue=None) == parse(
        "queue:mail state:failed,cancelled task:mail.*"
    )
    assert filters.combine(None, task="my task").tasks == (Pattern("my task"),)
    with pytest.raises(InvalidFilter, match="given twice"):
        filters.combine("state:failed", state="queued")


@given(names)
def test_a_name_can_be_taken_literally(name) -> None:
    """Every printable name has a filter that means exactly it, stars and quotes included."""
    assert filters.exactly("task", name).tasks == (Pattern(name),)


def test_states_split_into_live_and_finished() -> None:
    """The words that can match are those asked for less those excluded, by where the rows are."""
    found = parse("state:failed,queued,running -state:running")
    assert found.live_words == {"queued"}
    assert found.finished_words == {"failed"}
    assert parse("").live_words == set(filters.LIVE_WORDS)
    assert parse("task:x state:failed").with_state("queued") == parse("task:x state:queued")
