"""Owns the facts about the machine that stand beside every figure, and whether it was quiet enough to publish them.

It must not change anything on the machine.
"""

from __future__ import annotations

import datetime as dt
import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DISTRIBUTIONS = ("jobrunner-pg", "psycopg", "SQLAlchemy", "Flask")
QUIET_SHARE = 0.05  # of the machine that other processes may use while figures for publication are measured


def cpu_model() -> str:
    """As the kernel names it."""
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.processor() or platform.machine()


def revision() -> str:
    """The commit, with `+` when files have been changed since; empty outside a checkout."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty=+", "--exclude=*"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def facts() -> dict[str, Any]:
    """What a reader needs to judge a figure."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "revision": revision(),
        "versions": {name: metadata.version(name) for name in DISTRIBUTIONS},
    }


def now() -> str:
    """The instant, for the record."""
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
