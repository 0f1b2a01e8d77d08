"""Owns what the operating system is asked for: death signals, orphans, process groups.

It must not decide when: the template and the children call it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def die_with_parent(parent: int, signal_number: int = signal.SIGKILL) -> None:
    """Have the kernel send this process `signal_number` when its parent dies; exits at once when it already has.

    Linux only; elsewhere the closed socket to the parent is what ends a child.
    """
    _prctl(_PR_SET_PDEATHSIG, signal_number)
    if os.getppid() != parent:
        os._exit(1)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent dies, so that none escapes. Linux only."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def kill_group(group: int, signal_number: int) -> None:
    """Signal every process of a process group; nothing when it is gone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal_number)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def resident_bytes() -> int | None:
    """Resident memory of this process, or None where `/proc` does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None
