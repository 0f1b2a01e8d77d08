"""The reference page says what the code does."""

from __future__ import annotations

import pytest

from jobrunner.compat import celery
from jobrunner.compat.celery import exceptions, signals, states
from jobrunner.compat.celery.app.control import Control
from jobrunner.compat.celery.app.inspecting import Inspect
from jobrunner.compat.celery.conf import SETTINGS
from jobrunner.migrating.ratings import ANY, Rating, all_rules
from tools import celery_page


def test_the_tables_are_those_of_the_code():
    """`python tools/celery_page.py` brings the page up to date; every setting is on it."""
    page = celery_page.PAGE.read_text()
    assert celery_page.updated(page) == page
    assert [name for name in SETTINGS if f"`{name}`" not in page] == []


@pytest.mark.parametrize("kind", ["signal", "exception", "state", "app", "control"])
def test_what_migrate_check_calls_ok_is_there(kind):
    """Code that is told to change its imports only must find the names; a signal that is never sent is not called ok."""
    app = celery.Celery("rated", broker="redis://nowhere")
    holders = {
        "signal": (signals,), "exception": (exceptions,), "state": (states,), "app": (celery, app), "control": (Control, Inspect),
    }[kind]  # fmt: skip
    words = {ANY, "subclass", "instance"}  # of the check's own
    rules = [rule for rule in all_rules() if (rule.way, rule.kind, rule.rating) == ("celery", kind, Rating.OK)]
    names = [rule.name for rule in rules if rule.name not in words]
    assert names
    assert [name for name in names if not any(name in dir(holder) for holder in holders)] == []
    assert kind != "signal" or not [name for name in names if getattr(signals, name) in signals.NEVER_SENT]


def test_a_page_without_marks_is_not_written():
    """Rather than appended to by accident."""
    with pytest.raises(ValueError, match="has no"):
        celery_page.updated("# Celery")
