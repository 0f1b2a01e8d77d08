"""The how-to about `migrate-check` shows what the program says, and describes what it knows."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from jobrunner.migrating import WAYS, Rating
from tests.support import documents
from tests.support.commands import clean_environment

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "migrate-check.md"


def test_the_examples_are_what_the_program_says(tmp_path):
    """Every file and every command of the page, in one shell."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    documents.play(PAGE.read_text(), tmp_path, clean_environment() | {"PATH": path, "PYTHONDONTWRITEBYTECODE": "1"})


def test_every_rating_and_way_is_described():
    """A row of a table for each."""
    rows = set(re.findall(r"^\| `(\w+)` \|", PAGE.read_text(), re.MULTILINE))
    assert rows == {*WAYS, *(rating.value for rating in Rating)}
