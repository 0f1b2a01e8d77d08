"""Owns control groups for the process trees of a worker: one below the worker's own group for whomever it names, v1 or v2.

It must not decide what a limit is, nor what follows when one is hit; and it touches no group but the worker's own and those below it.
Where groups cannot be had, or the kernel refuses, it says so with None or False: callers fall back on sampling.

What the kernel counts is not what `procfs` counts:

- memory is what the group's processes were first to touch since they were added: what a child shares with the process it was forked
  from is not in it, and page cache is, of files that were read, too; the kernel drops that before it kills anybody;
- `pids` counts threads.

Sources: the kernel's Documentation/admin-guide/cgroup-v2.rst (No Internal Process Constraint, Delegation Containment, Core Interface
Files, Memory Interface Files, PID Interface Files), cgroup-v1/memory.rst, cgroup-v1/pids.rst.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
from abc import ABC, abstractmethod
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from jobrunner import clock
from jobrunner.worker import cgroupfs, procfs

if TYPE_CHECKING:
    from collections.abc import Callable

SWITCH = "JOBRUNNER_CGROUPS"  # `off` in the environment: no groups
SUPERVISOR = "jobrunner-supervisor"  # the leaf of a v2 group for the worker itself: a group of limited groups has no processes
_OURS = re.compile(r"^jobrunner-(\d+)-")
_LOOKS = 1000  # at who is left in a group that is being emptied; a bomb takes some dozen
_PATIENCE = 0.02  # seconds to wait for killed processes to be gone; one that frees gigabytes takes longer, and it forks no more
_PEAK_SIZE = 32  # bytes; one number
_RESET = b"reset\n"  # any word does
_PROBE_LIMITS = (1 << 30, 1000)  # bytes and threads; whatever the kernel should take


class Group(ABC):
    """One control group, not for several threads at once. `Cgroups.group` makes it."""

    _usage: str
    _events: str

    def __init__(self, memory: Path, pids: Path | None) -> None:
        self._memory, self._pids = memory, pids
        self._directories = list(dict.fromkeys(filter(None, (memory, pids))))
        self._limits: tuple[int | None, int | None] | None = None

    def make(self) -> None:
        """Make it, or take over the one that is there.

        Raises:
            OSError: the kernel refuses.
        """
        for directory in self._directories:
            directory.mkdir(exist_ok=True)

    def set_limits(self, memory_bytes: int | None, process_count: int | None) -> bool:
        """Set both limits, or lift them with None. What is set already is not written again.

        Args:
            memory_bytes: of memory and swap together. At the limit page cache is dropped; when that is not enough, somebody is killed:
                on v2 the whole group, on v1 one process, and the rest is for the caller to `kill`.
            process_count: how many *threads* the processes of the group have together, since that is what the kernel counts: a process
                with only its main thread is one. Above it `fork` and new threads fail with EAGAIN; who is there already stays.

        Returns:
            False when the kernel refuses: more memory is in use, there is no `pids` controller, or the group is gone. Then the group
            has no limit at all.
        """
        wanted = (memory_bytes, process_count)
        if wanted != self._limits:
            taken = self._limit_memory(memory_bytes) and self._limit_processes(process_count)
            self._limits = wanted if taken else None
            if not taken:
                self._limit_memory(None)
                self._limit_processes(None)
        return self._limits is not None

    @abstractmethod
    def _limit_memory(self, size: int | None) -> bool: ...

    def _limit_processes(self, count: int | None) -> bool:
        if self._pids is None:
            return count is None
        return cgroupfs.write(f"{self._pids}/pids.max", "max" if count is None else str(count))

    def add(self, pid: int) -> bool:
        """Move a process with all its threads into the group; what it forks from now on is born there. Memory it has stays where it is.

        Args:
            pid: 0 is the calling process itself.

        Returns:
            False when it could not be moved: it is gone, or the group is.
        """
        return False not in [cgroupfs.move(pid, directory) for directory in self._directories]

    def usage_bytes(self) -> int | None:
        """Memory that is charged to the group now, page cache included; None when the group is gone."""
        return cgroupfs.number(f"{self._memory}/{self._usage}")

    @abstractmethod
    def peak_bytes(self) -> int | None:
        """The most that was charged since the last `reset_peak`, page cache included; None where the kernel cannot reset it."""

    @abstractmethod
    def reset_peak(self) -> bool:
        """Let the peak begin again at what is charged now. Returns whether it did."""

    def oom_kills(self) -> int:
        """How many processes of the group the kernel has killed for want of memory since it was made; the machine's want counts too."""
        return cgroupfs.count(f"{self._memory}/{self._events}", b"oom_kill")

    def process_refusals(self) -> int:
        """How often the limit of processes has refused one since the group was made."""
        return 0 if self._pids is None else cgroupfs.count(f"{self._pids}/pids.events", b"max")

    def processes(self) -> list[int]:
        """Who is in the group; not those who are dead and not yet waited for."""
        return cgroupfs.processes(self._memory)

    def kill(self) -> int:
        """Kill everybody in the group, and whoever is forked meanwhile; waits up to 20 ms until they are gone.

        Returns:
            How many processes that were.
        """
        known: set[int] = set()
        killed_count = 0
        patient_until = clock.monotonic() + _PATIENCE
        for _ in range(_LOOKS):
            here = set(self.processes())
            late = here - known
            known |= late
            killed_count += sum(procfs.signal_checked(pid, signal.SIGKILL, partial(self._holds, pid)) for pid in late)
            # Whoever has SIGKILL pending begins no fork; one that was under way may still show up until everybody is gone.
            if not here or (not late and clock.monotonic() >= patient_until):
                break
            os.sched_yield()
        return killed_count

    def _holds(self, pid: int) -> bool:
        return any(path.rpartition("/")[2] == self._memory.name for path in cgroupfs.membership(pid).values())

    def remove(self) -> bool:
        """Remove the group, which must be empty; one that is gone already is no error. Returns whether it is gone."""
        self._limits = None
        return False not in [cgroupfs.remove(directory) for directory in self._directories]


class GroupV1(Group):
    """A group in the hierarchies of `memory` and `pids`."""

    _usage = "memory.usage_in_bytes"
    _events = "memory.oom_control"
    _peak = "memory.max_usage_in_bytes"

    def _limit_memory(self, size: int | None) -> bool:
        limit, with_swap = f"{self._memory}/memory.limit_in_bytes", f"{self._memory}/memory.memsw.limit_in_bytes"
        value = "-1" if size is None else str(size)
        # Memory with swap can never be limited to less than memory alone: it is lifted first and set last. No file, no swap accounting.
        lifted = cgroupfs.write(with_swap, "-1", missing=True)
        return lifted and cgroupfs.write(limit, value) and (size is None or cgroupfs.write(with_swap, value, missing=True))

    def peak_bytes(self) -> int | None:
        """See `Group`."""
        return cgroupfs.number(f"{self._memory}/{self._peak}")

    def reset_peak(self) -> bool:
        """See `Group`."""
        return cgroupfs.write(f"{self._memory}/{self._peak}", "0")


class GroupV2(Group):
    """A group in the unified hierarchy."""

    _usage = "memory.current"
    _events = "memory.events"
    _peak: int | None = None  # a descriptor: a peak is since the reset that was written through the same one

    def make(self) -> None:
        """See `Group`."""
        super().make()
        cgroupfs.write(f"{self._memory}/memory.oom.group", "1")  # everybody or nobody; before Linux 4.19 one, as on v1
        with contextlib.suppress(OSError):
            peak = os.open(self._memory / "memory.peak", os.O_RDWR)
            try:
                os.pwrite(peak, _RESET, 0)
            except OSError:
                os.close(peak)  # before Linux 6.12 it is for reading only; root may open it all the same
            else:
                self._peak = peak

    def _limit_memory(self, size: int | None) -> bool:
        if size is not None and not self._fits(size):
            return False  # v1 answers EBUSY; v2 would take it, and kill
        swap, value = ("max", "max") if size is None else ("0", str(size))
        return cgroupfs.write(f"{self._memory}/memory.swap.max", swap, missing=True) and cgroupfs.write(f"{self._memory}/memory.max", value)

    def _fits(self, size: int) -> bool:
        usage = self.usage_bytes()
        if usage is None or usage <= size:
            return True
        facts = cgroupfs.keyed(f"{self._memory}/memory.stat")  # the rest is cache, which the kernel drops
        return facts.get("anon", 0) + facts.get("shmem", 0) <= size

    def peak_bytes(self) -> int | None:
        """See `Group`."""
        try:
            return None if self._peak is None else int(os.pread(self._peak, _PEAK_SIZE, 0))
        except OSError:
            return None

    def reset_peak(self) -> bool:
        """See `Group`."""
        try:
            return self._peak is not None and os.pwrite(self._peak, _RESET, 0) > 0
        except OSError:
            return False

    def kill(self) -> int:
        """See `Group`; the kernel itself sees to it, forks included, and those who were there before are counted."""
        here = self.processes()
        return len(here) if cgroupfs.write(f"{self._memory}/cgroup.kill", "1") else super().kill()  # before Linux 5.14

    def remove(self) -> bool:
        """See `Group`."""
        gone = super().remove()
        if gone and self._peak is not None:
            os.close(self._peak)
            self._peak = None
        return gone


class Cgroups:
    """Where the groups of one worker are made: below its own of the `memory` controller and, unless it is None, of `pids`."""

    def __init__(self, version: int, memory: Path, pids: Path | None) -> None:
        self.version, self.memory, self.pids = version, memory, pids
        self._kind = GroupV1 if version == 1 else GroupV2
        self._prefix = f"jobrunner-{os.getpid()}"

    def group(self, name: str) -> Group:
        """Make the group `jobrunner-<pid of the worker>-<name>`, or take over the one that is there.

        Raises:
            OSError: the kernel refuses, though it let `detect` make one.
        """
        directory = f"{self._prefix}-{name}"
        group = self._kind(self.memory / directory, self.pids and self.pids / directory)
        group.make()
        return group

    def probe(self) -> None:
        """Make a group, limit it, and remove it.

        Raises:
            OSError: one of these is refused.
        """
        group = self.group("probe")
        try:
            if not group.set_limits(_PROBE_LIMITS[0], None if self.pids is None else _PROBE_LIMITS[1]):
                raise PermissionError(errno.EACCES, "limits cannot be set below", str(self.memory))
        finally:
            group.remove()

    def remove_stale(self) -> None:
        """Remove what dead workers have left, as far as it is empty."""
        for parent in {self.memory, self.pids or self.memory}:
            for directory in parent.glob("jobrunner-*-*"):
                owner = _OURS.match(directory.name)
                if owner and not Path(f"/proc/{owner[1]}").exists():
                    cgroupfs.remove(directory)


def detect(explain: Callable[[str], object] = lambda _: None, proc: Path = Path("/proc")) -> Cgroups | None:
    """Find the group that this process is in, and whether limited groups can be made below it. To be asked at the worker's start.

    On v2 this may move the worker's processes, when they are alone in their group, into a leaf `jobrunner-supervisor`: the kernel
    demands it before the children of a group can be limited. Never raises.

    Args:
        explain: told in one sentence why there are none, or none for `pids`.
        proc: where to find `self/cgroup` and `self/mountinfo`.

    Returns:
        None when groups cannot be used, or are switched off with `JOBRUNNER_CGROUPS=off`.
    """
    if os.environ.get(SWITCH, "").strip().lower() == "off":
        explain(f"{SWITCH} is off")
        return None
    try:
        found = _find(proc)
        try:
            found.probe()
        except OSError as error:
            if found.version != 1 or found.pids is None:
                raise
            explain(f"without pids: {error}")
            found = Cgroups(1, found.memory, None)
            found.probe()
        found.remove_stale()
    except (OSError, ValueError) as error:
        explain(str(error))
        return None
    return found


def _find(proc: Path) -> Cgroups:
    memory = cgroupfs.own_group("memory", proc)
    if memory is not None:  # v1, or a hybrid: a controller belongs to one hierarchy, and v2 has those that v1 leaves
        if cgroupfs.number(memory / "memory.use_hierarchy") == 0:
            raise OSError(f"memory is not counted hierarchically in {memory}")
        return Cgroups(1, memory, cgroupfs.own_group("pids", proc))
    own = cgroupfs.own_group(cgroupfs.UNIFIED, proc)
    if own is None:
        raise OSError("this kernel has no control groups")
    if own.name == SUPERVISOR and "memory" in cgroupfs.words(own.parent / "cgroup.subtree_control"):
        own = own.parent  # moved aside before: by this process, or by the worker that started it
    enabled = cgroupfs.words(own / "cgroup.subtree_control")
    if "memory" not in enabled:
        enabled = {"memory", "pids"} & cgroupfs.words(own / "cgroup.controllers")
        if "memory" not in enabled:
            raise OSError(f"the memory controller is not available in {own}")
        _enable(own, enabled)
    return Cgroups(2, own, own if "pids" in enabled else None)


def _enable(own: Path, controllers: set[str]) -> None:
    """Let the children of the worker's own v2 group be limited; all as it was when that cannot be.

    Raises:
        OSError: others are in the group too, or it is not ours to divide.
    """
    if not os.access(own / "cgroup.subtree_control", os.W_OK):
        raise PermissionError(errno.EACCES, "not delegated to this user", str(own))
    moved: set[int] = set()
    try:
        _move_aside(own, moved)
        cgroupfs.demand(own / "cgroup.subtree_control", " ".join(f"+{name}" for name in sorted(controllers)))
    except OSError:
        for pid in moved:
            cgroupfs.move(pid, own)
        cgroupfs.remove(own / SUPERVISOR)
        raise


def _move_aside(own: Path, moved: set[int]) -> None:
    leaf = own / SUPERVISOR
    for _ in range(_LOOKS):  # somebody may be forking
        here = set(cgroupfs.processes(own))
        if not here:
            return
        if strangers := here - {os.getpid(), *procfs.descendants(os.getpid())}:
            raise OSError(f"{own} holds processes that are not this worker's ({len(strangers)}, one is {min(strangers)})")
        leaf.mkdir(exist_ok=True)
        moved.update(pid for pid in here if cgroupfs.move(pid, leaf))
    raise OSError(f"{own} does not become empty")
