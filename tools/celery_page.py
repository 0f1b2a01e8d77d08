"""Writes the tables of docs/reference/compat-celery.md from `jobrunner.compat.celery.conf` and `options`; the rest is written by hand."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reference" / "compat-celery.md"

if str(ROOT) not in sys.path:  # run as a script
    sys.path.insert(0, str(ROOT))

from jobrunner.compat.celery.conf import SETTINGS, Rating  # noqa: E402  after the path
from jobrunner.compat.celery.options import CALL_OPTIONS, TASK_OPTIONS  # noqa: E402
from tools.generated import Marks  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterable

    from jobrunner.compat.celery.conf import Feature

MARKS = Marks.of("python tools/celery_page.py")
OF_OTHERS = ("there is no broker", "there is no other result store", "there are no event messages", "there are no control messages")
"""How the notes of settings begin that are for parts which are not there: they are listed without a row each."""


def table(features: Iterable[Feature]) -> str:
    """One row for each."""
    rows = ["| name | | what becomes of it |", "|---|---|---|"]
    return "\n".join([*rows, *(f"| `{feature.name}` | {feature.rating} | {_cell(feature.note)} |" for feature in features)])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def generated() -> str:
    """All that stands between the marks."""
    others = [feature for feature in SETTINGS.values() if feature.rating is Rating.IGNORED and feature.note.startswith(OF_OTHERS)]
    told = [feature for feature in SETTINGS.values() if feature not in others]
    names = ", ".join(f"`{feature.name}`" for feature in others)
    parts = [
        table(told),
        f"Ignored, because they are for brokers, result stores, events and remote control, which are not there: {names}.",
        "## Options of tasks",
        table(TASK_OPTIONS.values()),
        "## Options of calls",
        table(CALL_OPTIONS.values()),
    ]
    return "\n\n".join(parts)


def updated(page: str) -> str:
    """The page with its generated part replaced. Raises ValueError when the marks are missing."""
    return MARKS.replaced(page, generated())


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text()))
    print(PAGE.relative_to(ROOT))
