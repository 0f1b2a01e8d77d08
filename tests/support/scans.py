"""Owns scanning small trees in tests: texts become files, uses become short lines that can be compared."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from jobrunner.migrating import scan

if TYPE_CHECKING:
    from pathlib import Path

    from jobrunner.migrating import Report


def write_tree(home: Path, files: dict[str, str]) -> None:
    """Write files below a directory; indentation that all lines share is dropped."""
    for name, text in files.items():
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text).lstrip("\n"))


def scan_tree(home: Path, files: dict[str, str], **options: object) -> Report:
    """Scan these files."""
    write_tree(home, files)
    return scan([str(home)], **options)  # type: ignore[arg-type]


def found(report: Report, name: str = "") -> list[str]:
    """What was found in the files whose path ends so, as `line what`, in the order of the text; `?` where only the name told."""
    return [f"{use.line} {use.what}{'' if use.certain else '?'}" for use in report.uses if use.path.endswith(name)]


def uses_in(home: Path, text: str, name: str = "code.py") -> list[str]:
    """What is found in one file."""
    return found(scan_tree(home, {name: text}), name)
