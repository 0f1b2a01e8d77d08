"""Fixtures of the command line's tests: a small application in a directory, and the program in it."""

from __future__ import annotations

import pytest

from tests.support.cli import APP, Program


@pytest.fixture
def home(tmp_path):
    """A directory with an application."""
    (tmp_path / "app.py").write_text(APP)
    return tmp_path


@pytest.fixture
def program(home, dsn):
    """`jobrunner` beside an application, on a migrated, empty database."""
    return Program(home, dsn)


@pytest.fixture
def reader(tmp_path, dsn):
    """`jobrunner` in a directory whose application cannot be imported: what works here imports none."""
    (tmp_path / "app.py").write_text("raise RuntimeError('the application was imported')\n")
    return Program(tmp_path, dsn)
