"""The reference page says what the code does."""

from __future__ import annotations

import pytest

from jobrunner.compat.celery.conf import SETTINGS
from tools import celery_page


def test_the_tables_are_those_of_the_code():
    """`python tools/celery_page.py` brings the page up to date; every setting is on it."""
    page = celery_page.PAGE.read_text()
    assert celery_page.updated(page) == page
    assert [name for name in SETTINGS if f"`{name}`" not in page] == []


def test_a_page_without_marks_is_not_written():
    """Rather than appended to by accident."""
    with pytest.raises(ValueError, match="has no"):
        celery_page.updated("# Celery")
