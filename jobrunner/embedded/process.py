"""Owns the question whether a server is alive: `postmaster.pid`, `/proc`, and the locks around and inside a data directory.

It must not start or signal anything, and must not trust a process id alone: ids are reused, and zombies keep theirs.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jobrunner.errors import EmbeddedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PID_FILE = "postmaster.pid"
_PROC = Path("/proc")
_HAS_PROC = Path("/proc/self/stat").exists()
_DEAD_STATES = frozenset("ZXx")
_SERVER_NAMES = frozenset({"postgres", "postmaster"})

_FIRST_PAUSE = 0.002
"""Seconds between the first two looks in `wait_until`: a warm start takes about 40 ms."""
_LONGEST_PAUSE = 0.1
"""Seconds between looks once something takes long, such as recovery."""
_PAUSE_GROWTH = 1.5

ORPHAN_PATIENCE = 10.0
"""Seconds that the backends of a killed postmaster get to notice its death; PostgreSQL tells them at once."""

_PORT_LINE, _SOCKET_LINE = 3, 4
"""Lines of postmaster.pid, counted from 0. Source: src/include/utils/pidfile.h."""


@dataclass(frozen=True, slots=True)
class PidFile:
    """What postmaster.pid says; port and socket directory are None until the server has opened its socket."""

    pid: int
    port: int | None
    socket_dir: Path | None


def read_pid_file(data_dir: Path) -> PidFile | None:
    """Read `postmaster.pid`, or return None when it is missing, unreadable or holds no process id."""
    try:
        lines = (data_dir / PID_FILE).read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        pid = abs(int(lines[0]))  # a single-user backend writes its id negated
    except (OSError, ValueError, IndexError):
        return None
    port = lines[_PORT_LINE] if len(lines) > _PORT_LINE else ""
    socket_dir = lines[_SOCKET_LINE] if len(lines) > _SOCKET_LINE else ""
    return PidFile(pid, int(port) if port.isdigit() else None, Path(socket_dir) if socket_dir.startswith("/") else None)


def exists(pid: int) -> bool:
    """Whether a process has this id and is not a zombie (where the system has no `/proc`, whether we could signal it)."""
    if not _HAS_PROC:
        return _can_signal(pid)
    try:
        stat = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in _DEAD_STATES  # the name in front may itself hold spaces and parentheses


def is_postmaster(pid: int, data_dir: Path) -> bool:
    """Whether `pid` is a living PostgreSQL server of exactly this data directory."""
    if not exists(pid):
        return False
    if not _HAS_PROC:
        return True
    try:
        words = (_PROC / str(pid) / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    if Path(os.fsdecode(words[0])).name not in _SERVER_NAMES:
        return False
    return any(os.path.realpath(os.fsdecode(word)) == str(data_dir) for word in words[1:] if word)


def backends_of(data_dir: Path) -> list[int]:
    """The living PostgreSQL processes that work in this data directory, postmaster or not; empty without `/proc`."""
    if not _HAS_PROC:
        return []
    return [int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit() and _works_in(entry, data_dir)]


def is_there(path: Path) -> bool:
    """Whether we can see something at this path; a directory that is closed to us hides it without an error."""
    try:
        path.lstat()
    except OSError:
        return False
    return True


def wait_until(condition: Callable[[], bool], timeout: float | None = None) -> bool:
    """Look again and again, quickly at first, until `condition()` holds; False after `timeout` seconds (None: no deadline)."""
    deadline = None if timeout is None else time.monotonic() + timeout
    pause = _FIRST_PAUSE
    while not condition():
        if deadline is not None and time.monotonic() >= deadline:
            return False
        time.sleep(pause)
        pause = min(pause * _PAUSE_GROWTH, _LONGEST_PAUSE)
    return True


@contextlib.contextmanager
def exclusive(lock: Path, uid: int) -> Iterator[None]:
    """Hold the lock around start, stop and initdb of one cluster; waits for its holder. The file may be unlinked while held.

    Args:
        lock: the lock file; made with mode 0600 when missing.
        uid: who owns a file that root makes, so that the cluster's account can take the lock too.

    Raises:
        EmbeddedError: the file can be neither opened nor made.

    """
    try:
        fd = _take(lock, uid)
    except OSError as error:
        raise EmbeddedError(
            f"cannot lock {lock}: {error.strerror}",
            hint=f"the directory {lock.parent} must be writable: name a data directory below one that is",
        ) from error
    try:
        yield
    finally:
        fcntl.flock(fd, fcntl.LOCK_UN)  # closing is not enough: a child forked by another thread may hold a copy of fd
        os.close(fd)


def occupy(data_dir: Path) -> int:
    """Lock the data directory itself and return the descriptor, for the server to inherit and to hold while it lives.

    It keeps a second server out where a process id cannot: orphaned backends, and a server in another container that
    shares the directory but not our process ids. The lock goes when the last process that inherited it ends.

    Raises:
        EmbeddedError: some process still holds the directory after `ORPHAN_PATIENCE` seconds.

    """
    fd = os.open(data_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    if wait_until(lambda: _try_lock(fd), ORPHAN_PATIENCE):
        return fd
    os.close(fd)
    pids = ", ".join(str(pid) for pid in backends_of(data_dir))
    raise EmbeddedError(
        f"the data directory {data_dir} is in use by {f'processes {pids} of a dead server' if pids else 'a server we cannot see'}",
        hint="end those processes" if pids else "is it shared with another container or host? stop the server there",
    )


def is_occupied(data_dir: Path) -> bool:
    """Whether a process that inherited the lock of `occupy` still lives."""
    try:
        fd = os.open(data_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not _try_lock(fd)
    finally:
        os.close(fd)


def _can_signal(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def _works_in(entry: Path, data_dir: Path) -> bool:
    try:
        name = (entry / "comm").read_text(encoding="utf-8", errors="replace").strip()
        return name in _SERVER_NAMES and (entry / "cwd").readlink() == data_dir and exists(int(entry.name))
    except OSError:
        return False


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # NFS does not lock directories; PostgreSQL's own check of its shared memory remains
    return True


def _take(lock: Path, uid: int) -> int:
    while True:
        fd = _open_lock(lock, uid)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if _is_same_file(fd, lock):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # `destroy` unlinked it while we waited


def _open_lock(lock: Path, uid: int) -> int:
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    while True:
        with contextlib.suppress(FileNotFoundError):
            return os.open(lock, flags)  # without O_CREAT: in a sticky directory Linux refuses it for other people's files
        with contextlib.suppress(FileExistsError):
            fd = os.open(lock, flags | os.O_CREAT | os.O_EXCL, 0o600)
            if os.geteuid() == 0:
                os.fchown(fd, uid, -1)
            return fd


def _is_same_file(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.lstat())
    except FileNotFoundError:
        return False
