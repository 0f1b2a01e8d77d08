"""The database decides who gets an event: its answer is the one of AMQP's rules, for any pattern and any name."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.patterns import names, patterns, reference

FITS = "SELECT m IS NULL OR '.' || %s ~ m FROM jobrunner.topic_matcher(%s) AS m"


@settings(max_examples=300)
@given(chosen=st.lists(patterns, min_size=1, max_size=4), name=names)
def test_the_database_says_what_the_rules_say(connection, chosen, name):
    """The regular expression that patterns come to fits exactly the names that one of them fits."""
    expected = any(reference(pattern.split("."), name.split(".")) for pattern in chosen)
    assert connection.execute(FITS, (name, chosen)).fetchone() == (expected,)
