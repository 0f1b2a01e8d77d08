"""Owns what the tasks of every contender do and leave behind: counts and times in files, read by the bench while they run.

It must not cost more than a microsecond for a job, nor need anything but the standard library: it runs inside every worker process
of every contender. `BENCH_MARKS` names the directory; each process writes a file of its own.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
import time
from pathlib import Path
from typing import NamedTuple

LAYOUT = struct.Struct("<qdd")  # jobs that ran here; the monotonic clock at the first and at the last of them
STAMP = struct.Struct("<d")  # seconds from the call of enqueue to the first line of the task
MILLISECOND = 0.001  # seconds
COUNTS, STAMPS = "count-", "stamps-"  # and the pid


class Counted(NamedTuple):
    """What all processes together have run: how many jobs, and when the first and the last began (0 when none has)."""

    count: int
    first: float
    last: float


class _Page:
    """The page of one process; made anew in a forked child, so that nobody writes into its parent's."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.pid = self.count = 0
        self.first = 0.0
        self.stamps = -1
        self.page: mmap.mmap | None = None

    def open(self, now: float) -> None:
        directory = Path(os.environ["BENCH_MARKS"])
        self.pid, self.count, self.first = os.getpid(), 0, now
        with (directory / f"{COUNTS}{self.pid}").open("w+b") as file:
            file.truncate(LAYOUT.size)
            self.page = mmap.mmap(file.fileno(), LAYOUT.size)
        self.stamps = os.open(directory / f"{STAMPS}{self.pid}", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o666)


_mine = _Page()


def mark(sent: float | None = None) -> None:
    """One more job ran in this process; a stamped one was sent at `sent`, by the monotonic clock of this machine."""
    now = time.monotonic()
    with _mine.lock:
        if _mine.pid != os.getpid():
            _mine.open(now)
        if sent is not None:
            os.write(_mine.stamps, STAMP.pack(now - sent))  # before it counts: whoever sees the count finds the stamp
        _mine.count += 1
        LAYOUT.pack_into(_mine.page, 0, _mine.count, _mine.first, now)  # type: ignore[arg-type]


def stamp(sent: float) -> None:
    """The job that was sent at `sent` begins now."""
    mark(sent)


def nap(seconds: float) -> None:
    """A job that waits."""
    mark()
    time.sleep(seconds)


def spin(milliseconds: float) -> None:
    """A job that uses the CPU for so long, whatever else the machine does."""
    mark()
    end = time.thread_time() + milliseconds * MILLISECOND
    while time.thread_time() < end:
        pass


def counted(directory: Path) -> Counted:
    """What the processes that write into `directory` have run by now."""
    pages = [LAYOUT.unpack(data) for file in directory.glob(f"{COUNTS}*") if len(data := file.read_bytes()) == LAYOUT.size]
    pages = [page for page in pages if page[0]]
    if not pages:
        return Counted(0, 0.0, 0.0)
    return Counted(sum(page[0] for page in pages), min(page[1] for page in pages), max(page[2] for page in pages))


def sizes(directory: Path) -> dict[str, int]:
    """How much each process has stamped by now, to leave that out later; its files stay open, so they cannot be cleared."""
    return {file.name: file.stat().st_size // STAMP.size * STAMP.size for file in directory.glob(f"{STAMPS}*")}


def stamped(directory: Path, skipped: dict[str, int]) -> list[float]:
    """Seconds from enqueue to start of every job that was stamped behind the `skipped` sizes, in no order."""
    found: list[float] = []
    for file in directory.glob(f"{STAMPS}*"):
        data = file.read_bytes()[skipped.get(file.name, 0) :]
        found.extend(value for (value,) in STAMP.iter_unpack(data[: len(data) // STAMP.size * STAMP.size]))
    return found


def clear(directory: Path) -> None:
    """Forget what was written; only while no worker runs: one that does goes on writing into what is removed."""
    for file in [*directory.glob(f"{COUNTS}*"), *directory.glob(f"{STAMPS}*")]:
        file.unlink()
