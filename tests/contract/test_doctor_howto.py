"""The how-to about the doctor describes what the doctor can say."""

from __future__ import annotations

import re
from pathlib import Path

from jobrunner.doctor import GROUPS
from jobrunner.doctor.examination import CHECKS

ROOT = Path(__file__).resolve().parents[2]
HOW_TO = (ROOT / "docs/how-to/doctor.md").read_text()
REFERENCE = (ROOT / "docs/reference/cli.md").read_text().partition("## `jobrunner doctor")[2].partition("\n## ")[0]


def codes():
    """Every code in the source: of findings, and of checks that could not look."""
    text = "".join(path.read_text() for path in (ROOT / "jobrunner/doctor").glob("*.py"))
    return set(re.findall(r'Finding\(\s*"(\w+)"', text)) | {check.name for check in CHECKS}


def test_every_code_is_described():
    """Those of findings in the how-to, those of checks that found nothing in the reference."""
    assert len(codes()) > 30
    missing = {code for code in codes() if f"`{code}`" not in HOW_TO + REFERENCE}
    assert missing == set()


def test_every_group_is_described():
    """In the reference by its key, in the how-to by its heading."""
    assert all(f"`{group}`" in REFERENCE for group in GROUPS)
    assert all(f"\n## {title}\n" in HOW_TO for group, title in GROUPS.items() if group != "cron")
