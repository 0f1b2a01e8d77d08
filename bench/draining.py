"""Owns how a drain is measured: jobs are there, workers start, and the tasks' own marks say how many ran and since when.

It must not know any contender. The clock runs from the first job's start to the moment when the contender says that nothing is left,
so the start of worker processes does not count and the last commit does. CPU and connections are read over the same time; WAL includes
that of enqueuing the jobs.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from bench import accounts
from bench.contenders import Broken

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.contenders import Contender, Workers

LOOK = 0.005  # seconds between two looks at the marks
LOOK_SHARE = 20  # times what a look took: at most a twentieth of a core goes into watching
ENOUGH_LOOKS = 100  # between two looks at connections
STUCK = 60.0  # seconds without one more job
TENTH = 0.9
FIRST_JOBS, GROWTH, MOST_TRIES = 100, 8, 4
GOOD_SHARE = 0.2  # of the wished duration: a shorter trial says too little about the pace


@dataclass(frozen=True, slots=True)
class Drained:
    """A drain, measured."""

    count: int
    seconds: float
    cpu_seconds: float
    server_cpu_seconds: float
    wal_bytes: float
    connections: int
    last_tenth_seconds: float

    def figures(self, *, postgresql: bool) -> dict[str, float]:
        """As published."""
        per_job = {
            "jobs_per_second": self.count / self.seconds,
            "cpu_ms_per_job": self.cpu_seconds * 1000 / self.count,
            "server_cpu_ms_per_job": self.server_cpu_seconds * 1000 / self.count,
        }
        if postgresql:
            per_job |= {"wal_bytes_per_job": self.wal_bytes / self.count, "connections": self.connections}
        return per_job

    @property
    def last_tenth_per_second(self) -> float:
        """The pace at the end."""
        return self.count * (1 - TENTH) / self.last_tenth_seconds


class Begun(NamedTuple):
    """When the first of the jobs began that count, and what had been used by then.

    Attributes:
        count: jobs that ran before, to warm up.
        used: CPU seconds of workers and of the server, and WAL bytes.
    """

    count: int
    at: float
    used: tuple[float, float, float]


def _used(contender: Contender, workers: Workers) -> tuple[float, float, float]:
    return accounts.cpu_seconds(workers.pids), accounts.cpu_seconds(contender.pids()), contender.ledger.wal_bytes()


def await_begin(contender: Contender, workers: Workers, count: int) -> Begun:
    """Wait until more than `count` jobs have run; for a thread beside the one that puts them in."""
    end = time.monotonic() + STUCK
    while contender.counted().count <= count:
        workers.check()
        if time.monotonic() > end:
            raise Broken(f"{contender.peer.title}: no job ran for {STUCK:.0f} s")
        time.sleep(LOOK)
    return Begun(count, time.monotonic(), _used(contender, workers))


def watch(
    contender: Contender, workers: Workers, count: int, left: Callable[[], bool] | None = None, begun: Begun | None = None
) -> Drained:
    """Wait until `count` jobs have run, those of `begun` besides, and nothing is left.

    Raises:
        Broken: a worker ended, or no job more ran for a minute.
    """
    before = begun.used if begun else _used(contender, workers)
    first, warmed = (begun.at, begun.count) if begun else (0.0, 0)
    connections = looks = seen = 0
    last_tenth = 0.0
    progress = time.monotonic()
    while True:
        now = time.monotonic()
        counted = contender.counted()
        ran = counted.count - warmed
        if ran and not first:
            before = _used(contender, workers)  # what was used before the first job is the start of the processes: that is not a job's
            first = counted.first
        if ran > seen:
            seen, progress = ran, now
        if not last_tenth and ran >= count * TENTH:
            last_tenth = now
        if ran >= count and not (left() if left else contender.ask("left")):
            break
        if now - progress > STUCK:
            raise Broken(
                f"{contender.peer.title}: {seen} of {count} jobs ran, then none for {STUCK:.0f} s\n{workers.log.read_text()[-1000:]}"
            )
        workers.check()  # the CPU time of one that has ended would be missing
        if looks % ENOUGH_LOOKS == 0:
            connections = max(connections, contender.ledger.connections())
        looks += 1
        # a contender that forks for each job leaves a file for each: reading them all must not compete with it
        time.sleep(max(LOOK, LOOK_SHARE * (time.monotonic() - now)))
    ended = time.monotonic()
    workers.check()
    after = _used(contender, workers)
    mine, servers_, wal = (end - begin for begin, end in zip(before, after, strict=True))
    connections = max(connections, contender.ledger.connections())
    return Drained(count, ended - first, mine + servers_, servers_, wal, connections, max(ended - last_tenth, LOOK))


def drain(
    contender: Contender, setting: str, count: int, *, task: str = "noop", argument: float = 0, slots: int = 0
) -> tuple[Drained, str]:
    """Empty, fill, start, watch. Returns the measurement and the setting in words."""
    contender.clear()
    contender.servers.settle()
    began = contender.ledger.wal_bytes()
    contender.ask("fill", task=task, argument=argument, count=count)
    filling = contender.ledger.wal_bytes() - began
    with contender.workers(setting, slots) as workers:
        drained = watch(contender, workers, count)
        return replace(drained, wal_bytes=drained.wal_bytes + filling), workers.described


def size_for(seconds: float, most: int, trial: Callable[[int], float]) -> int:
    """How many jobs keep a contender busy for about so long; found by trials, which warm everything up besides.

    Args:
        most: never more than that.
        trial: runs so many jobs and returns the seconds that it took.
    """
    count = min(FIRST_JOBS, most)
    took = trial(count)
    for _ in range(MOST_TRIES):
        if took >= seconds * GOOD_SHARE or count == most:
            break
        count = min(most, count * GROWTH)
        took = trial(count)
    return max(1, min(most, round(count * seconds / took)))
