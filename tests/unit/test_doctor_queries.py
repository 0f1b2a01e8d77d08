"""How much of somebody's query the doctor shows: whose it is can be told, and no value of it is there."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobrunner.doctor.queries import SHOWN, shortened

SECRET = "hunter2"


@pytest.mark.parametrize(
    ("query", "shown"),
    [
        (None, ""),
        ("", ""),
        ("COMMIT", "COMMIT"),
        ("SELECT *\n\t FROM orders\n WHERE id = 4711", "SELECT * FROM orders WHERE id = ?"),
        ("SELECT a1, b.c2 FROM t3 LIMIT -1.5e3", "SELECT a1, b.c2 FROM t3 LIMIT ?"),
        ("SELECT * FROM users WHERE email = 'hunter2' AND id = 1", "SELECT * FROM users WHERE email = …"),
        ("SELECT E'it\\'hunter2'", "SELECT E…"),
        ("SELECT U&'hunter2'", "SELECT U&…"),
        ("ALTER ROLE app PASSWORD 'hunter2", "ALTER ROLE app PASSWORD …"),
        ("SELECT $$hunter2$$", "SELECT …"),
        ("SELECT $tag$hunter2$tag$", "SELECT …"),
        ("SELECT * FROM t WHERE a = $1 AND b = $2", "SELECT * FROM t WHERE a = $1 AND b = $2"),
        ('SELECT "Name" FROM "My Table" WHERE x = \'hunter2\'', 'SELECT "Name" FROM "My Table" WHERE x = …'),
        ("/* token=hunter2 */ SELECT 1", "SELECT ?"),
        ("/* a /* nested hunter2 */ hunter2 */ SELECT now()", "SELECT now()"),
        ("/* hunter2 that never ends", ""),
        ("SELECT now() -- hunter2\n FROM t", "SELECT now() FROM t"),
        ("SELECT now() -- hunter2", "SELECT now()"),
        ("COPY t FROM stdin", "COPY t FROM stdin"),
    ],
)
def test_what_is_shown(query, shown):
    """Words and names up to the first string, on one line, numbers and comments left out."""
    assert shortened(query) == shown
    assert SECRET not in shortened(query)


def test_long_queries_are_cut():
    """One line of a terminal, with a mark that there is more."""
    text = shortened("SELECT " + ", ".join(f"column_{letter}" for letter in "abcdefghijk"))
    assert len(text) <= SHOWN
    assert text.endswith("…")


@given(st.text(), st.sampled_from(["'", "E'", "$$", "$x$", "/* ", "--\t", "\\"]), st.text())
def test_what_follows_a_string_is_never_shown(before, opening, after):
    """Whatever stands before it, the begin of a string or a comment hides a secret behind it; and it is always one short line."""
    text = shortened(f"{before} {opening}{SECRET}{after}")
    assert SECRET not in text or SECRET in before
    assert len(text) <= SHOWN
    assert "\n" not in text
