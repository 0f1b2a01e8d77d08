"""Owns running commands as a user would: a small application in a directory, and processes with a clean environment."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

COMMAND_SECONDS = 120  # no command of a test takes a tenth of it; a hang ends here

APP = textwrap.dedent(
    """
    from flask import Flask
    from jobrunner import JobRunner

    app = Flask(__name__)
    jobs = JobRunner(app)


    @jobs.task
    def add(a: int, b: int) -> int:
        return a + b


    @jobs.task(max_attempts=1)
    def divide(a: int, b: int) -> float:
        return a / b


    @app.post("/add/<int:a>/<int:b>")
    def enqueue_add(a, b):
        return {"id": add.enqueue(a, b).id}
    """
)


def write_app(directory: Path, text: str = APP) -> Path:
    """Put an `app.py` into a directory and return the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "app.py").write_text(text)
    return directory


def run(
    *argv: str | Path,
    cwd: Path,
    dsn: str | None = None,
    env: Mapping[str, str] | None = None,
    ok: bool = True,
    timeout: float = COMMAND_SECONDS,
) -> subprocess.CompletedProcess[str]:
    """Run a command with no standard input and return what it said.

    Args:
        argv: program and arguments.
        cwd: working directory.
        dsn: becomes `JOBRUNNER_DSN`.
        env: more variables.
        ok: fail the test, with both outputs, unless the exit code is 0.
        timeout: seconds.
    """
    given = {"JOBRUNNER_DSN": dsn} if dsn else {}
    done = subprocess.run(
        [str(part) for part in argv],
        cwd=cwd,
        env=clean_environment() | given | dict(env or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if ok and done.returncode:
        command = " ".join(str(part) for part in argv)
        raise AssertionError(f"exit code {done.returncode} of: {command}\n--- stdout\n{done.stdout}\n--- stderr\n{done.stderr}")
    return done


def jobrunner(*arguments: str, cwd: Path, dsn: str | None = None, **options: object) -> subprocess.CompletedProcess[str]:
    """Run this environment's `jobrunner` command; options as in `run`."""
    return run(sys.executable, "-m", "jobrunner", *arguments, cwd=cwd, dsn=dsn, **options)  # type: ignore[arg-type]


def clean_environment() -> dict[str, str]:
    """The environment without what would lead a child to another Python, app, database or width of the terminal."""
    unwanted = ("JOBRUNNER_", "PG", "FLASK_", "PYTHON", "VIRTUAL_ENV", "DATABASE_URL", "PYTEST_", "COLUMNS", "LINES")
    return {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
