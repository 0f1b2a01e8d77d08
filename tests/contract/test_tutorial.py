"""The tutorial works as it stands there, block after block."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import documents
from tests.support import postgres as pg
from tests.support.commands import clean_environment

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tutorial.md"


@pytest.mark.needs("psql")
def test_the_tutorial_from_beginning_to_end(tmp_path):
    """Every file and every command of the page, in one shell, on an embedded PostgreSQL of its own, shows what the page says."""
    directory = pg.disk_directory()
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = clean_environment() | {"PATH": path, "JOBRUNNER_EMBEDDED_DIR": str(directory / "pg")}
    try:
        documents.play(PAGE.read_text(), tmp_path, environment)
    finally:
        subprocess.run(["jobrunner", "db", "destroy", "--yes"], cwd=tmp_path, env=environment, capture_output=True, check=False, timeout=60)
        directory.rmdir()


def test_a_page_that_lies_is_found_out(tmp_path):
    """The runner of pages itself: another output, a command that fails, are an error; `…`, times and widths of columns are not."""
    environment = clean_environment()
    documents.play('```python\n# a.py\nprint("x  1ms", 2)\n```\n```console\n$ python3 a.py\nx 20ms 2\n```\n', tmp_path, environment)
    documents.play("```console\n$ printf '1\\n2\\n3\\n'\n…\n3\n$ echo abc\na…c\n```\n", tmp_path, environment)
    for lie in ("$ echo a\nb", "$ false", "$ echo a\na\na", "$ printf '1\\n2\\n'\n1", "$ no_such_command"):
        with pytest.raises(AssertionError):
            documents.play(f"```console\n{lie}\n```\n", tmp_path, environment)
