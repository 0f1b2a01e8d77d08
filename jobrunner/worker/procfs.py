"""Owns reading a process tree from `/proc`, and ending one: what it uses, who belongs to it, and that nobody escapes the kill.

It must not know what the processes are for, nor wait for any of them. Without `/proc` every answer is None, [] or 0.

A tree is its root with everything forked from it, by whichever thread. A process whose parent died stays in the tree only below a
subreaper (`limits.adopt_orphans`), which its root should be. A look at a tree is no snapshot: what vanishes meanwhile is left out, and
processes that follow each other quickly may both be in it. Nobody is counted twice.

Source: proc(5), proc_pid_stat(5), proc_tid_children(5), pidfd_open(2).
"""

from __future__ import annotations

import os
import signal
from functools import cache
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

from jobrunner import clock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_CHUNK = 1 << 16  # bytes asked of the kernel at once; it gives at most a page of `children`
_FORKED_NOT_EXECUTED = 0x40  # PF_FORKNOEXEC of the kernel's sched.h, in the flags of stat
_LOOKS = 100  # at a tree that is being ended, at least, before it is given up to settle; two or three do
_PATIENCE = 0.25  # seconds, likewise: a busy machine may take so long to let a process see that it was stopped


class Usage(NamedTuple):
    """What a process tree uses: resident memory, CPU time since its processes began, and how many they are, zombies included."""

    rss_bytes: int
    cpu_ms: int
    process_count: int


class _Process(NamedTuple):
    pid: int
    parent: int
    state: bytes
    flags: int
    ticks: int
    thread_count: int
    started: int  # in ticks since boot: with the pid, who it is
    forker: int  # the thread of its parent that forked it

    @property
    def dead(self) -> bool:
        """A zombie whose main thread has ended goes on while other threads do."""
        return self.state in {b"Z", b"X"} and self.thread_count <= 1

    @property
    def task(self) -> str:
        """The directory that tells about its memory: a main thread that has ended has none any more, the others do."""
        if self.state == b"Z" and self.thread_count > 1:
            thread = next((one for one in _threads(self) if one != str(self.pid)), self.pid)
            return f"/proc/{self.pid}/task/{thread}"
        return f"/proc/{self.pid}"


def usage(pid: int) -> Usage | None:
    """What the tree rooted at `pid` uses now; takes about 50 µs for each of its processes.

    Memory is a sum of resident sets: pages that processes share count once for each (`proportional_bytes` does not). A process
    between `vfork` and `exec` runs in its parent's memory, which is counted once. CPU time includes what dead descendants used, once
    their parent has waited for them.

    Returns:
        None when the root is gone.
    """
    pages = ticks = found = 0
    # An ancestor is read before its descendants: of a process that is reaped in between, the time is missing rather than counted twice.
    for process in _walk(pid):
        found += 1
        ticks += process.ticks
        pages += _resident_pages(process)
    return Usage(pages * os.sysconf("SC_PAGE_SIZE"), ticks * 1000 // os.sysconf("SC_CLK_TCK"), found) if found else None


def proportional_bytes(pid: int) -> int | None:
    """Memory of the tree rooted at `pid`, each page divided by the number of processes that have it mapped (Pss).

    The kernel walks the page tables of every process for this: about 0.4 ms for each, and more the larger it is. Where it may not be
    read (another user's process), the resident set stands in.

    Returns:
        None when the root is gone.
    """
    total = found = 0
    for process in _walk(pid):
        found += 1
        if not _borrows_memory(process):
            _, told, rest = _read(f"{process.task}/smaps_rollup").partition(b"\nPss:")
            total += int(rest.split(maxsplit=1)[0]) * 1024 if told else _resident_pages(process) * os.sysconf("SC_PAGE_SIZE")
    return total if found else None


def descendants(pid: int) -> list[int]:
    """Every process below `pid`, zombies included, parents before their children."""
    return [process.pid for process in _walk(pid) if process.pid != pid]


def children(pid: int) -> list[int]:
    """The processes whose parent is `pid`, zombies included."""
    parent = _look(pid, 0)
    if parent is None:
        return []
    of = _children if _kernel_lists_children() else _scan()
    return [child for child, found in of(parent) if found is not None and found.parent == pid]


def kill_tree(pid: int, *, include_root: bool = True) -> int:
    """Kill every process of a tree, also one that forks faster than it can be listed, or leaves a child and is gone before it is seen.

    Everybody is stopped first, each before its children are looked up, until a look misses nobody, finds nobody new and nobody who
    still runs; then all get SIGKILL, the root last: what was being forked meanwhile is re-parented to it and found. Takes a few looks, in
    the worst case a quarter of a second, and does not wait for anybody to die.
    A process other than the root is signalled only when it is the one that was found, whatever has become of its pid; that the root's
    pid is not somebody else's is for the caller to know, who is its parent and has not waited for it.

    Args:
        pid: the root.
        include_root: False spares the root, which is not stopped either; for a process that ends what it has left running itself.

    Returns:
        How many processes were sent SIGKILL.
    """
    root = _look(pid, 0)
    if root is None:
        return 0
    known: dict[tuple[int, int], _Process] = {}
    spared = set() if include_root else {pid}
    _stop_tree(pid, known, spared | {os.getpid()})
    killed = sum(_signal(process, signal.SIGKILL) for process in known.values() if process.pid != pid)
    for _ in range(_LOOKS):
        missed: list[int] = []
        late = [process for process in _walk(pid, missed) if process.pid != pid and _who(process) not in known]
        known.update((_who(process), process) for process in late)
        killed += sum(_signal(process, signal.SIGKILL) for process in late)
        if not late and not missed:
            break
    return killed + (include_root and _signal(root, signal.SIGKILL))


def signal_checked(pid: int, number: int, still: Callable[[], bool]) -> bool:
    """Send a signal to the process that `still` confirms after it has been pinned, so that a reused pid is nobody's misfortune.

    Returns:
        Whether it was sent.
    """
    try:
        pinned = os.pidfd_open(pid) if hasattr(os, "pidfd_open") else None
    except ProcessLookupError:
        return False
    except OSError:
        pinned = None  # a kernel before 5.3, a seccomp filter, or no descriptor left
    try:
        if not still():
            return False
        if pinned is not None:
            try:
                signal.pidfd_send_signal(pinned, number)
            except ProcessLookupError:
                return False
            except OSError:
                os.kill(pid, number)  # forbidden by a filter, or by the process's owner: then this fails as well
            return True
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    else:
        return True
    finally:
        if pinned is not None:
            os.close(pinned)


def _stop_tree(pid: int, known: dict[tuple[int, int], _Process], spared: set[int]) -> None:
    """Stop everybody and note them in `known`. A process that waits in the kernel (state D) cannot be stopped, nor fork meanwhile."""
    stopped: set[tuple[int, int]] = set()
    patient_until = clock.monotonic() + _PATIENCE
    for look in count():
        missed: list[int] = []
        settled = True
        for process in _walk(pid, missed):
            who = _who(process)
            if process.pid in spared:
                continue
            if who not in known:
                known[who] = process
                settled = False
                if _signal(process, signal.SIGSTOP):
                    stopped.add(who)
            elif who in stopped and _runs(process):
                settled = False  # it may be about to fork once more
        if (settled and not missed) or (look >= _LOOKS and clock.monotonic() >= patient_until):
            return
        os.sched_yield()


def _who(process: _Process) -> tuple[int, int]:
    return process.pid, process.started


def _signal(process: _Process, number: int) -> bool:
    def still() -> bool:
        now = _look(process.pid, 0)
        return now is not None and now.started == process.started and not now.dead

    return signal_checked(process.pid, number, still)


def _runs(process: _Process) -> bool:
    states = {process.state} if process.thread_count <= 1 else {_thread_state(process.pid, thread) for thread in _threads(process)}
    return not states.isdisjoint({b"R", b"S"})


def _walk(root: int, missed: list[int] | None = None) -> Iterator[_Process]:
    """The tree, parents before their children, nobody twice. A process's children are looked up after it was yielded.

    Args:
        root: where to begin.
        missed: gets those who were listed and then not there: gone, or with another parent by now, and perhaps they have left children.
    """
    first = _look(root, 0)
    if first is None:
        return
    seen = {root}
    waiting = [first]
    children = _children if _kernel_lists_children() else _scan()
    while waiting:
        process = waiting.pop()
        yield process
        for pid, child in children(process):
            if pid in seen:
                continue
            if child is not None and child.parent in seen:
                seen.add(pid)
                waiting.append(child)
            elif missed is not None:
                missed.append(pid)


def _children(process: _Process) -> Iterator[tuple[int, _Process | None]]:
    for thread in _threads(process):
        for name in _read(f"/proc/{process.pid}/task/{thread}/children").split():
            yield int(name), _look(int(name), int(thread))


def _scan() -> Callable[[_Process], list[tuple[int, _Process]]]:
    """For kernels without CONFIG_PROC_CHILDREN: all processes of the machine, once, by their parents; some 20 µs each."""
    by_parent: dict[int, list[tuple[int, _Process]]] = {}
    for name in os.listdir("/proc"):  # noqa: PTH208  the names alone, many of them
        if name.isdecimal() and (process := _look(int(name), 0)) is not None:
            by_parent.setdefault(process.parent, []).append((process.pid, process._replace(forker=process.parent)))
    return lambda process: by_parent.get(process.pid, [])


@cache
def _kernel_lists_children() -> bool:
    return os.path.exists(f"/proc/{os.getpid()}/task/{os.getpid()}/children")  # noqa: PTH110  nothing else here needs Path


def _threads(process: _Process) -> list[str]:
    if process.thread_count <= 1:
        return [str(process.pid)]
    try:
        return os.listdir(f"/proc/{process.pid}/task")  # noqa: PTH208  the names alone, ten times a second
    except OSError:
        return []


def _look(pid: int, forker: int) -> _Process | None:
    # The command name stands in parentheses and may contain any character, these and blanks too: the last one ends it.
    fields = _read(f"/proc/{pid}/stat").rpartition(b") ")[2].split()
    try:
        state, parent, flags, threads, started = fields[0], int(fields[1]), int(fields[6]), int(fields[17]), int(fields[19])
        ticks = int(fields[11]) + int(fields[12]) + int(fields[13]) + int(fields[14])
    except IndexError:
        return None
    return _Process(pid, parent, state, flags, ticks, threads, started, forker)


def _thread_state(pid: int, thread: int | str) -> bytes:
    return _read(f"/proc/{pid}/task/{thread}/stat").rpartition(b") ")[2][:1]


def _resident_pages(process: _Process) -> int:
    # Not the figure in stat, which costs nothing more: newer kernels keep it per CPU and off by some MB on large machines.
    statm = _read(f"{process.task}/statm")
    if not statm or _borrows_memory(process, statm):
        return 0
    return int(statm.split(maxsplit=2)[1])


def _borrows_memory(process: _Process, statm: bytes | None = None) -> bool:
    """Whether a process runs in its parent's memory: forked by `vfork`, as `subprocess` does, and not yet executing its program.

    That may take as long as the program's file takes to arrive. Counting the parent twice meanwhile would kill innocent jobs.
    """
    if not process.flags & _FORKED_NOT_EXECUTED or not process.forker:
        return False
    same = _read(f"/proc/{process.parent}/statm") == (statm or _read(f"/proc/{process.pid}/statm"))
    return same and _thread_state(process.parent, process.forker) == b"D"  # it waits for its child to let go of the memory


def _read(path: str) -> bytes:
    """A file's contents; nothing when it is gone or may not be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return b""
    try:
        data = os.read(descriptor, _CHUNK)
        while more := os.read(descriptor, _CHUNK) if data else b"":
            data += more
    except OSError:
        return b""
    else:
        return data
    finally:
        os.close(descriptor)
