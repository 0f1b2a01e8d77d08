"""Owns the end of a contender's worker: SIGKILL to it and all that it has started, at once, and again until nobody is left.

It must not know any contender. Who belongs to a worker is told by its tree and, for who became a daemon or was being forked at that
moment, by a variable that only its processes have inherited: what is overlooked would do jobs after the kill, and be taken for a recovery.
"""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

from jobrunner.worker import procfs

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Collection

LOOK = 0.05  # seconds between two looks whether somebody is left


def kill_all(root: subprocess.Popen[bytes], variable: str, spared: Collection[int], patience: float) -> bool:
    """Kill a worker and all that it has started, and wait until they are gone.

    Args:
        root: the worker, whose child we are the parent of; it may have ended.
        variable: `NAME=value` in the environment of its processes.
        spared: processes that have the variable too, and are none of it.
        patience: seconds to wait at most.

    Returns:
        Whether all are gone.
    """
    below = []
    if root.poll() is None:  # else its pid may be somebody else's by now
        below = procfs.descendants(root.pid)
        procfs.kill_tree(root.pid)
        root.wait()
    end = time.monotonic() + patience
    while (late := [pid for pid in marked(variable) if pid not in spared]) or any(map(_is_there, below)):
        for pid in late:
            procfs.signal_checked(pid, signal.SIGKILL, lambda pid=pid: _has(pid, variable))  # type: ignore[misc]
        if time.monotonic() > end:
            return False
        time.sleep(LOOK)
    return True


def marked(variable: str) -> list[int]:
    """The living processes that were started with a variable in their environment."""
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and _has(int(entry.name), variable)]


def _has(pid: int, variable: str) -> bool:
    try:
        return variable.encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # gone, or somebody else's
        return False


def _is_there(pid: int) -> bool:
    """Whether a process is still alive; one that nobody has waited for yet is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] not in {"Z", "X"}
    except OSError:
        return False
