"""Cursors of lists: whole or refused."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobrunner.errors import InvalidCursor
from jobrunner.filters import MAX_ID
from jobrunner.inspection.cursors import Cursor, Key, decode, encode

instants = st.none() | st.datetimes(datetime(1970, 1, 1), datetime(9998, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001  hypothesis adds the zone


@given(st.builds(Cursor, st.builds(Key, instants, st.integers(0, MAX_ID)), st.booleans()))
def test_a_cursor_comes_back_whole(cursor) -> None:
    """Encoding loses nothing, not a microsecond, and the text goes into a URL as it is."""
    text = encode(cursor)
    assert decode(text) == cursor
    assert text.replace("-", "").replace("_", "").isalnum()


@given(st.text(max_size=60) | st.binary(max_size=40).map(lambda data: __import__("base64").urlsafe_b64encode(data).decode().rstrip("=")))
def test_any_text_is_a_cursor_or_refused(text) -> None:
    """Whatever comes in a URL is a cursor of ours or InvalidCursor, nothing else."""
    try:
        decode(text)
    except InvalidCursor as error:
        assert "next" in error.hint


@pytest.mark.parametrize("text", ["", "x", "WzFd", "WzIsIm8iLDEsbnVsbF0", "WzEsIm8iLDEsIjIwMjYtMDEtMDFUMDA6MDA6MDAiXQ", "A" * 201, "é"])
def test_near_misses_are_refused(text) -> None:
    """Another version, a naive instant, an overlong text: refused in words."""
    with pytest.raises(InvalidCursor, match="not one that this list gave out"):
        decode(text)
