"""Writes the measured part of docs/explanation/lost-and-doubled.md from `bench/losing/measured.json`; no figure stands here.

It must not measure. `python tools/losses.py` writes the page; `python -m bench losses --json bench/losing/measured.json` measures.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # run as a script
    sys.path.insert(0, str(ROOT))

from bench.losing import report  # noqa: E402  after the path
from tools.generated import Marks  # noqa: E402

MEASURED = ROOT / "bench" / "losing" / "measured.json"
PAGE = ROOT / "docs" / "explanation" / "lost-and-doubled.md"
MARKS = Marks.of("python tools/losses.py")
EMPTY = "**Not measured yet.** There is no published result; the command above prints a table like the one that will be here."


def part(measured: Path) -> str:
    """What stands between the marks: the table and what belongs to it, or that there is none."""
    if not measured.exists():
        return EMPTY
    document = report.read(measured)
    return f"{report.table(document)}\n\n{report.notes(document)}"


def updated(page: str, measured: Path) -> str:
    """The page with its measured part replaced. Raises ValueError when the marks are missing."""
    return MARKS.replaced(page, part(measured))


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text(), MEASURED))
    print(PAGE.relative_to(ROOT))
