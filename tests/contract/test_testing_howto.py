"""The how-to about testing shows code that runs: the files of examples/tested_shop, whose tests pass and leave nothing behind."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import psycopg
import pytest

from tests.support.commands import run
from tests.support.documents import blocks

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "tested_shop"
PAGE = (ROOT / "docs" / "how-to" / "testing.md").read_text()


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_the_example_passes_and_leaves_no_trace(empty_dsn, tmp_path, driver):
    """The example's own tests, run as its reader would, pass in any order and roll back everything."""
    home = shutil.copytree(EXAMPLE, tmp_path / "shop", ignore=shutil.ignore_patterns("__pycache__", ".pytest_cache"))
    url = empty_dsn.replace("postgresql:", f"postgresql+{driver}:")
    done = run(sys.executable, "-m", "pytest", "-q", "-W", "error", cwd=home, env={"TEST_DATABASE_URL": url})
    assert re.search(r"^8 passed", done.stdout, re.MULTILINE), done.stdout
    with psycopg.connect(empty_dsn) as connection:
        for table in ("jobrunner.v_jobs", "jobrunner.job_attempts", "jobrunner.workers", '"user"'):
            assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,), table


def test_the_page_shows_the_example():
    """Each Python block of the page stands in the file of the example that its first line names."""
    shown = blocks(PAGE, "python")
    assert len(shown) >= 4
    for block in shown:
        name, _, code = block.partition("\n")
        source = (EXAMPLE / name.removeprefix("# ")).read_text()
        for part in re.split(r"^…\n", code, flags=re.MULTILINE):
            assert part.strip() in source, part
