"""Owns what a machine may lack, so that a test which needs it is deselected in one place and the run says so in its header.

A test names its needs: `@pytest.mark.needs("root", "unshare")`; `@pytest.mark.browser` is one as well.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from jobrunner.worker import cgroups

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest


def _can_unshare() -> bool:
    command = ["unshare", "--pid", "--fork", "--mount-proc", "true"]
    return shutil.which("unshare") is not None and subprocess.run(command, capture_output=True, check=False).returncode == 0


def _can_make_networks() -> bool:
    """Whether `ip` makes a network namespace with a pair of cards, which a kernel or a container may refuse even root."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        return False
    name = f"jrneed{os.getpid()}"
    commands = (
        ("netns", "add", name),
        ("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name),
        ("netns", "exec", name, "true"),
        ("netns", "del", name),
    )
    worked = [subprocess.run(["ip", *words], capture_output=True, check=False).returncode == 0 for words in commands]
    return all(worked)


def _can_make_groups() -> bool:
    found = cgroups.detect()
    return found is not None and found.pids is not None


NEEDS: dict[str, tuple[str, Callable[[], bool]]] = {
    "browser": (
        "Chromium with chromedriver",
        lambda: bool(shutil.which("chromedriver") and (shutil.which("chromium") or shutil.which("google-chrome"))),
    ),
    "cgroups": ("control groups of memory and pids that can be made and limited", _can_make_groups),
    "crond": ("cron", lambda: shutil.which("cron", path=f"{os.environ.get('PATH', '')}:/usr/sbin") is not None),
    "git": ("git", lambda: shutil.which("git") is not None),
    "linux": ("a /proc file system", lambda: Path("/proc/self/stat").exists()),
    "netns": ("leave to make network namespaces", _can_make_networks),
    "pgbouncer": ("pgbouncer", lambda: shutil.which("pgbouncer") is not None),
    "postgresql15": ("Debian's PostgreSQL 15", lambda: Path("/usr/lib/postgresql/15/bin/postgres").exists()),
    "psql": ("psql", lambda: shutil.which("psql") is not None),
    "root": ("root, to become other users", lambda: os.geteuid() == 0),
    "unshare": ("leave to make pid namespaces", _can_unshare),
}


@cache
def has(need: str) -> bool:
    """Whether this machine has it. Raises KeyError for a need that nobody defined, so that a misspelling is no silent deselection."""
    return NEEDS[need][1]()


def lacking() -> list[str]:
    """What this machine lacks, for the header of a run."""
    return [f"{text} (needs: {need})" for need, (text, _) in NEEDS.items() if not has(need)]


def runs_here(item: pytest.Item) -> bool:
    """Whether the machine has everything that a test needs."""
    wanted = {need for mark in item.iter_markers("needs") for need in mark.args}
    wanted |= {"browser"} if item.get_closest_marker("browser") else set()
    return all(has(need) for need in wanted)
