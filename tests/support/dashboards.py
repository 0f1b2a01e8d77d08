"""Owns running `jobrunner.web.serve` as a user does: a process of its own, on a free port of loopback."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.commands import clean_environment

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
SECONDS = 20  # to end after SIGTERM; it takes milliseconds
PROGRAM = """
import os, sys
from jobrunner.web import create_app, serve
serve(create_app(), os.environ["HOST"], 0, on_ready=lambda url: print(url, flush=True))
"""


@contextlib.contextmanager
def served(dsn: str, host: str = "127.0.0.1", **environment: str) -> Iterator[str]:
    """A dashboard on `dsn` for the length of the block; gives its URL, with the slash at the end."""
    env = clean_environment() | {"JOBRUNNER_DSN": dsn, "HOST": host, "PYTHONPATH": str(ROOT)} | environment
    with subprocess.Popen([sys.executable, "-c", PROGRAM], env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            url = process.stdout.readline().strip()
            assert url, f"the dashboard ended with {process.wait(SECONDS)}"
            yield url
        finally:
            process.terminate()
            process.wait(SECONDS)
