"""Owns what a worker can be told at its start. It must not read the environment: the command line does."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from jobrunner.errors import ConfigurationError
from jobrunner.settings import DEFAULT_QUEUE, LEASE

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobrunner.settings import Dsn
    from jobrunner.store import Store
    from jobrunner.worker.upkeep import Report

MAX_POOL = 200  # characters of a pool's name: a line of `jobrunner workers runs` stays a line
LEAST_MEMORY = 16_000_000  # bytes for --max-memory-per-child: below, it is a number whose unit was forgotten
MAX_POOL_SLOTS = 1000  # each is asked for in turn
_MIN_LEASE = timedelta(seconds=1)  # below, a busy machine loses leases without anything being wrong


def default_slots() -> int:
    """One slot per core this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """How one worker runs.

    Attributes:
        dsn: the database.
        app: the application's address for `jobrunner.loading.load`, or None for its defaults.
        queues: (name, jobs of it at once in this worker, or None for no bound), all served by priority.
        slots: jobs at once, each in its own process.
        threads: when above 0, jobs run in so many threads of one process, and `slots` counts for nothing.
        async_slots: when above 0, `async def` tasks run in so many slots of one event loop, in a process of their own.
        max_jobs_per_child, max_memory_per_child: after so many jobs, or above so many resident bytes, a child process is replaced
            by a fresh one, between two jobs.
        time_limit, soft_time_limit: of jobs that have none of their own; a job's own goes before them.
        name: shown in `v_workers`; default `host:pid`.
        kind: `daemon`, `drain`, …; see the workers table.
        drain: leave when nothing is due and nothing runs.
        grace: after a first SIGTERM or SIGINT, how long running jobs may go on before they are released.
        lease: how long the jobs of a dead worker stay its own.
        poll: the longest pause between two looks at the queues.
        listen: take wake-ups by LISTEN on a third connection.
        max_jobs, max_seconds: stop in order after so many jobs claimed, or after so long.
        began: `clock.monotonic()` from which `max_seconds` counts; None for when it begins to work.
        pool, pool_slots: the worker must have one of so many slots of that pool to itself, whatever host the others are on; None for
            a worker that runs beside any other.
        patience: how long to try to reach the database at the start.
        fail_on_job_failure: leave with 1 when a job ended here as failed or quarantined.
        chores: rare steps that keep the tables in shape, called with a store; see `jobrunner.worker.upkeep`.
        code_of: the exit code that stands for an error, for the record in `worker_runs`.
    """

    dsn: Dsn
    app: str | None = None
    queues: tuple[tuple[str, int | None], ...] = ((DEFAULT_QUEUE, None),)
    slots: int = field(default_factory=default_slots)
    threads: int = 0
    async_slots: int = 0
    max_jobs_per_child: int | None = None
    max_memory_per_child: int | None = None
    time_limit: timedelta | None = None
    soft_time_limit: timedelta | None = None
    name: str | None = None
    kind: str = "daemon"
    drain: bool = False
    grace: timedelta = timedelta(seconds=30)
    lease: timedelta = LEASE
    poll: timedelta = timedelta(seconds=1)
    listen: bool = True
    max_jobs: int | None = None
    max_seconds: float | None = None
    began: float | None = None
    pool: str | None = None
    pool_slots: int = 1
    patience: timedelta = timedelta(0)
    fail_on_job_failure: bool = False
    chores: tuple[Callable[[Store], Report], ...] = ()
    code_of: Callable[[BaseException], int] | None = None

    def __post_init__(self) -> None:
        names = [name for name, _ in self.queues]
        problems = {
            "queues": not names
            or len(set(names)) < len(names)
            or any(not name or (limit is not None and limit < 1) for name, limit in self.queues),
            "concurrency": self.slots < 1,
            "threads": self.threads < 0,
            "async-slots": self.async_slots < 0,
            "max-jobs-per-child": self.max_jobs_per_child is not None and self.max_jobs_per_child < 1,
            "max-memory-per-child": self.max_memory_per_child is not None and self.max_memory_per_child < LEAST_MEMORY,
            "time-limit": self.time_limit is not None and self.time_limit <= timedelta(0),
            "soft-time-limit": self.soft_time_limit is not None
            and (self.soft_time_limit <= timedelta(0) or (self.time_limit is not None and self.soft_time_limit > self.time_limit)),
            "lease": self.lease < _MIN_LEASE,
            "poll": self.poll <= timedelta(0),
            "max-jobs": self.max_jobs is not None and self.max_jobs < 1,
            "max-seconds": self.max_seconds is not None and self.max_seconds <= 0,
            "pool": self.pool is not None and not (self.pool and self.pool.isprintable() and len(self.pool) <= MAX_POOL),
            "pool-slots": not 1 <= self.pool_slots <= MAX_POOL_SLOTS,
        }
        for option, wrong in problems.items():
            if wrong:
                raise ConfigurationError(
                    f"--{option}: {getattr(self, option.replace('-', '_'), self.slots)!r} makes no sense", hint=_HINTS[option]
                )

    @property
    def all_slots(self) -> int:
        """Jobs at once, of all kinds."""
        return (self.threads or self.slots) + self.async_slots

    @property
    def shown_name(self) -> str:
        """The name under which the worker shows."""
        return self.name or f"{socket.gethostname()}:{os.getpid()}"


_HINTS = {
    "queues": "name each queue once, with a positive bound if any: --queues mail:4,default",
    "concurrency": "at least 1",
    "threads": "how many; 0 is none",
    "async-slots": "how many; 0 is none",
    "max-jobs-per-child": "at least 1",
    "max-memory-per-child": "a size with its unit, such as 512MB; a child holds more than 16MB before its first job",
    "time-limit": "above 0 seconds",
    "soft-time-limit": "above 0 seconds, and at most --time-limit",
    "lease": "at least 1 second; the default is 30",
    "poll": "above 0 seconds; the default is 1",
    "max-jobs": "at least 1",
    "max-seconds": "above 0",
    "pool": f"a name of at most {MAX_POOL} printable characters",
    "pool-slots": f"1 to {MAX_POOL_SLOTS}",
}
