"""Patterns of event names: what they fit, by AMQP's rules, and what is refused as a pattern, a name or a topic."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobrunner import ConfigurationError
from jobrunner.patterns import MAX_PATTERNS, check_event_name, check_patterns, check_topic, matches
from tests.support.patterns import names, patterns, reference


@pytest.mark.parametrize(
    ("pattern", "fitting", "others"),
    [
        ("order.paid", ["order.paid"], ["order", "order.paid.twice", "order.Paid", "xorder.paid"]),
        ("order.*", ["order.paid", "order.lost"], ["order", "order.paid.twice"]),
        ("*.paid", ["order.paid"], ["paid", "a.b.paid"]),
        ("order.#", ["order", "order.paid", "order.paid.twice"], ["orders", "a.order"]),
        ("#.paid", ["paid", "order.paid", "a.b.paid"], ["paid.again", "unpaid"]),
        ("#", ["a", "a.b", "a.b.c"], []),
        ("*", ["a"], ["a.b"]),
        ("a.#.z", ["a.z", "a.b.z", "a.b.c.z"], ["a", "z", "a.z.b"]),
        ("#.#", ["a", "a.b"], []),
        ("*.#", ["a", "a.b"], []),
        ("a.*.#.z", ["a.b.z", "a.b.c.z"], ["a.z"]),
        ("a+b.(c)", ["a+b.(c)"], ["aab.c", "a+b.c"]),
    ],
)
def test_what_a_pattern_fits(pattern, fitting, others):
    """A star stands for one word, a hash for any number of words, also none; everything else is meant literally."""
    assert [name for name in fitting if not matches([pattern], name)] == []
    assert [name for name in others if matches([pattern], name)] == []


@given(st.lists(patterns, min_size=1, max_size=3), names)
def test_it_is_the_rule_of_amqp(chosen, name):
    """For any patterns and any name the answer is that of the plainest way to say it."""
    assert matches(chosen, name) == any(reference(pattern.split("."), name.split(".")) for pattern in chosen)


@given(patterns)
def test_a_pattern_passes_its_own_check(pattern):
    """What the strategy makes is a pattern for the library as well."""
    assert check_patterns(pattern) == (pattern,)


@pytest.mark.parametrize("wrong", ["", ".", "a.", ".a", "a..b", "a b", "a*", "*a.b", "a.#b", "a\nb", "x" * 256, 7, None, [], ["a", "b*"], "a\x00b"])
def test_what_is_no_pattern(wrong):
    """A star or hash inside of a word, an empty word, blanks and what is too long are refused, with the reason."""
    with pytest.raises(ConfigurationError):
        check_patterns(wrong)


def test_how_many_patterns_there_may_be():
    """Each publish tries all of them, so their number has a bound; one that is given twice is one."""
    many = [f"a{number}" for number in range(MAX_PATTERNS)]
    assert len(check_patterns(many)) == MAX_PATTERNS
    with pytest.raises(ConfigurationError, match="32"):
        check_patterns([*many, "one.more"])
    assert check_patterns(["a", "b", "a"]) == ("a", "b")


@pytest.mark.parametrize("wrong", ["", "a.", "a..b", "a.*", "#", "a b", "x" * 256, 7, "a\x00b", "a\ud800b"])
def test_what_is_no_name(wrong):
    """The name of an event has no wildcards, no blanks and no empty words."""
    with pytest.raises(ConfigurationError, match="no name of an event"):
        check_event_name(wrong)


@pytest.mark.parametrize("wrong", ["", " a", "a ", "x" * 101, 7])
def test_what_is_no_topic(wrong):
    """A topic is text of 1 to 100 characters without blanks at its ends."""
    with pytest.raises(ConfigurationError):
        check_topic(wrong)
