"""The documents name tests as what holds a promise: each of them exists."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAMED = re.compile(r"`(tests/[\w/]+(?:\.py)?)(?:::(\w+))?`")
LEAST = 20  # so many promises name one; fewer found means that the pattern is blind


def test_named_tests_exist():
    """A file or directory in backquotes under `tests/` is there, and holds the function that is named behind it."""
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    named = {(page.name, path, name) for page in pages for path, name in NAMED.findall(page.read_text())}
    assert len(named) >= LEAST
    missing = [
        (page, path, name)
        for page, path, name in sorted(named)
        if not (ROOT / path).exists() or (name and f"def {name}(" not in (ROOT / path).read_text())
    ]
    assert not missing
