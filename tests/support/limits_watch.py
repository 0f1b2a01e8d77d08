"""Owns looking at jobs that break limits from outside: when a limit was passed, and when nobody of the job's processes was left.

It must not use `jobrunner.worker` for that: what is under test does not measure itself.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICK_MS = 1000 / os.sysconf("SC_CLK_TCK")


@dataclass
class Sight:
    """What was seen of one cell; moments are monotonic seconds.

    Attributes:
        child: the process that ran the task.
        pids: everybody who noted himself, the child included.
        over_at: when the limit was first seen passed.
        gone_at: when everybody was gone; the child itself may go on when its task has ended.
    """

    child: int = 0
    pids: set[int] = field(default_factory=set)
    begun_at: float = 0.0
    ended_at: float | None = None
    over_at: float | None = None
    gone_at: float | None = None
    base_cpu_ms: float = 0.0
    looked_at: float = 0.0

    @property
    def late_ms(self) -> int | None:
        """From the limit to the end of the tree, at most; None when that was not seen.

        One that was gone at the look after the last in which it was below its limit may have been late by the time between the two.
        """
        if self.gone_at is None:
            return None
        over_at = self.over_at or self.looked_at or self.gone_at
        return max(0, round((self.gone_at - over_at) * 1000))


class Watch:
    """Follows the ledger of `limits_app`; call `look` every few milliseconds.

    Args:
        bounds: of each cell, what is limited and where: `seconds`, `cpu_ms`, `memory` (bytes) or `processes`. What a cell notes itself
            goes before.
    """

    def __init__(self, ledger: Path, bounds: dict[str, tuple[str, float]]) -> None:
        self.ledger, self.bounds = ledger, bounds
        self.sights: dict[str, Sight] = defaultdict(Sight)
        self._read = 0

    def look(self) -> None:
        """Take in what is new."""
        self._follow()
        for cell, sight in self.sights.items():
            if sight.child and sight.gone_at is None:
                self._observe(cell, sight, time.monotonic())

    def _follow(self) -> None:
        if not self.ledger.exists():
            return
        with self.ledger.open() as file:
            file.seek(self._read)
            text = file.read()
        whole = text[: text.rfind("\n") + 1]
        self._read += len(whole)
        for event, cell, pid, moment, cpu_ms in map(str.split, whole.splitlines()):
            sight, seconds = self.sights[cell], int(moment) / 1e6
            if event in {"begin", "pid"}:
                sight.pids.add(int(pid))
            if event == "begin":
                sight.child, sight.begun_at = int(pid), seconds
                sight.base_cpu_ms = int(cpu_ms)
            elif event == "over":
                sight.over_at = sight.over_at or seconds
            elif event == "end" and int(pid) == sight.child:
                sight.ended_at = seconds

    def _observe(self, cell: str, sight: Sight, now: float) -> None:
        living = {pid for pid in sight.pids if alive(pid)}
        what, bound = self.bounds.get(cell, ("", 0.0))
        if what == "seconds":
            sight.over_at = sight.begun_at + bound
        elif what and sight.over_at is None and self._used(sight, living, what, bound):
            sight.over_at = now
        if not living - {sight.child} and (sight.ended_at is not None or sight.child not in living):
            sight.gone_at = now
        elif sight.over_at is None:
            sight.looked_at = now

    @staticmethod
    def _used(sight: Sight, living: set[int], what: str, bound: float) -> bool:
        if what == "processes":
            return len(living) > bound
        used = [_usage(pid) for pid in living]
        if what == "cpu_ms":
            return sum(cpu for cpu, _ in used) - sight.base_cpu_ms > bound
        # Forked processes share pages, which count once.
        return sum(resident for _, resident in used) > bound and (len(living) == 1 or sum(map(_proportional, living)) > bound)

    def open(self) -> bool:
        """Whether processes of some cell have not been seen to be gone yet."""
        return any(sight.child and sight.gone_at is None for sight in self.sights.values())

    def left(self) -> set[int]:
        """Processes of cells that still run, but for children whose task ended."""
        ended = {sight.child for sight in self.sights.values() if sight.ended_at is not None}
        return {pid for sight in self.sights.values() for pid in sight.pids - ended if alive(pid)}


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    return _stat(pid)[:1] not in ([], ["Z"], ["X"])


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return []


def _usage(pid: int) -> tuple[float, int]:
    """CPU milliseconds and resident bytes of one process."""
    fields = _stat(pid)
    if not fields:
        return 0.0, 0
    return (int(fields[11]) + int(fields[12])) * _TICK_MS, int(fields[21]) * _PAGE


def _proportional(pid: int) -> int:
    """Resident bytes of one process, each page divided by the number of processes that have it."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return int(rollup.partition("\nPss:")[2].split()[0]) * 1024
