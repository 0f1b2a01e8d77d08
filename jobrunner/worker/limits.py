"""Owns what a process asks of the operating system for itself: death signals, orphans, process groups, its own limits and its peak.

It must not decide when: the template and the children call it.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import resource
import signal
import sys
import time
from pathlib import Path

_KIB = 1024  # bytes; the unit of the kernel's memory figures
_SLACK = 1 << 20  # bytes by which two readings of one peak may differ: the kernel counts pages per CPU
_STATM_SIZE = 128  # bytes; seven numbers
# Looked up once, and as plain numbers: they are disarmed after every job.
_REAL, _VIRTUAL, _PROF = int(signal.ITIMER_REAL), int(signal.ITIMER_VIRTUAL), int(signal.ITIMER_PROF)
_PAGE = os.sysconf("SC_PAGE_SIZE")
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


_libc = ctypes.CDLL(None, use_errno=True)  # found once: a forked child is to begin its work at once


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        _libc.prctl(option, value, 0, 0, 0)


def stop_timers() -> None:
    """Disarm the interval timers of this process, alarms among them: what a job has set must not strike the one after it."""
    setitimer = signal.setitimer
    setitimer(_REAL, 0)
    setitimer(_VIRTUAL, 0)
    setitimer(_PROF, 0)


def resident_bytes() -> int | None:
    """Resident memory of this process, or None where `/proc` does not tell."""
    return _statm(1)


def address_space_bytes() -> int | None:
    """Size of this process's address space, which `set_address_space` counts; None where `/proc` does not tell."""
    return _statm(0)


def _statm(field: int) -> int | None:
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[field]) * _PAGE
    except (OSError, ValueError, IndexError):
        return None


def set_cpu_seconds(seconds: int | None) -> bool:
    """Have the kernel send this process SIGXCPU when it has used this much CPU time more than now, and again every second.

    All of its threads count; a process that it forks inherits the number but counts for itself, from 0.

    Args:
        seconds: at least 1; the signal comes up to 1 s late, because the kernel counts whole seconds, and never early. None lifts it.

    Returns:
        Whether the kernel took it; a hard limit that stands below is kept.
    """
    return _set_soft(resource.RLIMIT_CPU, None if seconds is None else math.ceil(time.process_time()) + seconds)


def set_address_space(size: int | None) -> bool:
    """Have allocations of this process fail above an address space of this size: in Python, MemoryError.

    Args:
        size: bytes, counted as `address_space_bytes` does. Below what is mapped already, every further allocation fails. None lifts it.

    Returns:
        Whether the kernel took it; a hard limit that stands below is kept.
    """
    return _set_soft(resource.RLIMIT_AS, size)


def _set_soft(which: int, value: int | None) -> bool:
    _, hard = resource.getrlimit(which)
    soft = hard if value is None or (hard != resource.RLIM_INFINITY and value > hard) else value
    try:
        resource.setrlimit(which, (soft, hard))
    except (OSError, ValueError):
        return False
    return True


class PeakMemory:
    """The peak of this process's own resident memory, from one `reset` to the next; a few µs a call.

    Keeps two files of `/proc` open. Task code may close every descriptor it finds, and may then open something else under the same
    number: each use asks first whether the descriptor is still the file that was opened here, and opens it anew when it is not, leaving
    alone what has taken its place. A thread of a task that closes and opens files in the microsecond between the question and the
    write could still have a "5" written into its file; only a task that closes what is not its own can get there.
    A forked process opens its own: the files tell of the process that opened them.

    Source: proc_pid_clear_refs(5) for "5", getrusage(2) for what ru_maxrss means.
    """

    def __init__(self) -> None:
        self._clear = _OwnFile("/proc/self/clear_refs", os.O_WRONLY)
        self._statm = _OwnFile("/proc/self/statm", os.O_RDONLY)
        self._begun = False
        self._by_rusage: bool | None = None
        self._floor = self._peak = 0
        self._pid = 0

    def reset(self) -> bool:
        """Let the peak begin again at what is resident now.

        The kernel is asked only when the peak has risen since it was asked last: after a job that needed no more than was resident
        already there is nothing to reset, but for what has been freed meanwhile.

        Returns:
            Whether the peak begins anew; without it there is no peak to tell, only that of the whole process's life.
        """
        if self._begun and self._by_rusage and self._pid == os.getpid() and self._peak - self._floor <= _SLACK:
            return True
        self._begun = False
        descriptor = self._clear.descriptor()
        if descriptor is not None:
            with contextlib.suppress(OSError):
                self._begun = os.write(descriptor, b"5") == 1
        if self._begun and self._by_rusage is None:
            # In a process that has called exec, ru_maxrss also covers what it was before and does not follow the reset.
            high = _high_water()
            self._by_rusage = high is not None and abs(_max_rss() - high) <= _SLACK
        if self._begun:
            self._floor = self._peak = _max_rss()
            self._pid = os.getpid()
        return self._begun

    def peak_bytes(self) -> int | None:
        """The most that was resident since the last `reset`; None when that did not work."""
        return self.peak_of(resource.getrusage(resource.RUSAGE_SELF))

    def peak_of(self, used: resource.struct_rusage) -> int | None:
        """As `peak_bytes`, from what this process has used as the kernel has just told it."""
        if not self._begun:
            return None
        if not self._by_rusage:
            return _high_water()
        self._peak = used.ru_maxrss * _KIB
        return self._peak

    def resident_bytes(self) -> int | None:
        """What is resident now; None where `/proc` does not tell."""
        return self._pages(1)

    def address_space_bytes(self) -> int | None:
        """Size of the address space now, which `set_address_space` counts; None where `/proc` does not tell."""
        return self._pages(0)

    def _pages(self, field: int) -> int | None:
        descriptor = self._statm.descriptor()
        try:
            return None if descriptor is None else int(os.pread(descriptor, _STATM_SIZE, 0).split()[field]) * _PAGE
        except (OSError, IndexError):
            return None

    def close(self) -> None:
        """Close both files, where they are still ours."""
        self._clear.close()
        self._statm.close()


class _OwnFile:
    """A file that is kept open as long as nobody else closes it."""

    def __init__(self, path: str, flags: int) -> None:
        self._path, self._flags = path, flags
        self._open()

    def _open(self) -> None:
        self._pid, self._identity = os.getpid(), None
        with contextlib.suppress(OSError):
            self._number = os.open(self._path, self._flags)
            self._identity = _identity(self._number)

    def _mine(self) -> bool:
        return self._identity is not None and _identity(self._number) == self._identity

    def descriptor(self) -> int | None:
        """The open descriptor, checked; None when the file cannot be opened."""
        if self._pid != os.getpid():
            self.close()  # inherited by a fork: the parent's file
            self._open()
        elif not self._mine():
            self._open()
        return None if self._identity is None else self._number

    def close(self) -> None:
        if self._mine():
            os.close(self._number)
        self._identity = None


def _identity(descriptor: int) -> tuple[int, int] | None:
    try:
        facts = os.fstat(descriptor)
    except OSError:
        return None
    return facts.st_dev, facts.st_ino


def _max_rss() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KIB


def _high_water() -> int | None:
    try:
        status = Path("/proc/self/status").read_bytes()
    except OSError:
        return None
    _, found, rest = status.partition(b"\nVmHWM:")
    return int(rest.split(maxsplit=1)[0]) * _KIB if found else None
