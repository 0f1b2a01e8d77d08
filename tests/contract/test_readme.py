"""What the README shows works as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import psycopg

from tests.support.workers import states

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def block(language: str, containing: str) -> str:
    """The fenced block of that language that contains a text."""
    return str(next(text for text in re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL) if containing in text))


def run(*command: str, cwd: Path, dsn: str) -> str:
    """Run `jobrunner …` there, on that database."""
    done = subprocess.run(
        [sys.executable, "-m", "jobrunner", *command, "--dsn", dsn], cwd=cwd, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_readme_fits_on_a_page_and_its_app_is_the_example():
    """The README has at most 200 lines, and its app.py is the one in examples/quickstart."""
    assert len(README.splitlines()) <= 200
    assert block("python", "# app.py").removeprefix("# app.py\n") == (ROOT / "examples" / "quickstart" / "app.py").read_text()


def test_the_readme_app_runs(empty_dsn, tmp_path):
    """db upgrade, a job of the README's app, a worker that drains, jobs list, and the README's SQL: all work verbatim."""
    (tmp_path / "app.py").write_text(block("python", "# app.py"))
    run("db", "upgrade", cwd=tmp_path, dsn=empty_dsn)
    run("enqueue", "welcome", '{"user_id": 42}', cwd=tmp_path, dsn=empty_dsn)
    run("-q", "work", "--drain", "--max-seconds", "55", cwd=tmp_path, dsn=empty_dsn)
    assert states(empty_dsn) == {"succeeded": 1}
    assert "welcome" in run("jobs", "list", cwd=tmp_path, dsn=empty_dsn)
    with psycopg.connect(empty_dsn) as connection:
        assert connection.execute("SELECT result FROM jobrunner.v_jobs").fetchall() == [("Welcome, user 42!",)]
        assert connection.execute(block("sql", "v_attempts")).fetchall() == []
