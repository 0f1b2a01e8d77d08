"""The line of the guide from Celery that changes the imports does what it says."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.compat.celery.conftest import APPS

GUIDE = (Path(__file__).resolve().parents[3] / "docs" / "migrate" / "celery.md").read_text()
OURS = "jobrunner.compat.celery"
OTHERS = """
from celery_once import QueueOnce
import celeryish
    from celery import Celery  # in a function
word = "from celery import Celery"
"""
CHANGED = OTHERS.replace("    from celery import", f"    from {OURS} import")


@pytest.mark.needs("linux")
def test_the_imports_are_changed_by_the_line_of_the_guide(tmp_path):
    """The applications of the wiring tests, with Celery's own imports, become what these tests run; nothing else is touched."""
    (command,) = re.findall(r"^\$ (sed .*\))", GUIDE, re.MULTILINE)
    wanted = {path.name: path.read_text() for path in APPS.glob("wired_*.py")}
    assert all(OURS in text for text in wanted.values() if "Celery" in text)
    for name, text in wanted.items():
        (tmp_path / name).write_text(text.replace(OURS, "celery"))
    (tmp_path / "others.py").write_text(OTHERS)
    subprocess.run("git init -q . && git add .", shell=True, cwd=tmp_path, check=True, timeout=60)
    subprocess.run(command, shell=True, cwd=tmp_path, check=True, timeout=60)
    assert {name: (tmp_path / name).read_text() for name in wanted} == wanted
    assert (tmp_path / "others.py").read_text() == CHANGED
