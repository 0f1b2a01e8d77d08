"""Calls are type-checked: a consumer's program has errors exactly where it is marked wrong."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from tests.support.commands import run

PROGRAM = Path(__file__).with_name("consumer.py.txt")  # not .py: the checkout itself must be free of type errors
ROOT = PROGRAM.parents[2]
SECONDS = 600  # for mypy without a cache, on a busy machine


def test_wrong_calls_and_only_they_are_type_errors(tmp_path):
    """`enqueue` has the function's parameters, `result()` its return type, for every form of the decorator."""
    marked = {number for number, line in enumerate(PROGRAM.read_text().splitlines(), 1) if line.endswith("# wrong")}
    program = tmp_path / "consumer.py"
    program.write_text(PROGRAM.read_text())
    config = tmp_path / "mypy.ini"
    config.write_text("[mypy]\nstrict = True\n")
    found = run(
        sys.executable, "-m", "mypy", "--config-file", str(config), "--cache-dir", str(tmp_path / "cache"), str(program),
        cwd=tmp_path, ok=False, env={**os.environ, "MYPYPATH": str(ROOT)}, timeout=SECONDS,
    )  # fmt: skip
    errors = {int(number): text for number, text in re.findall(r"consumer\.py:(\d+): error: (.*)", found.stdout)}
    assert set(errors) == marked, found.stdout
