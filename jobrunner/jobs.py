"""Owns the values that travel between database, worker and child: a claimed job and the outcomes of an attempt.

It must not do anything with them. They are named tuples because thousands are made each second.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from datetime import datetime


class ClaimedJob(NamedTuple):
    """A job that this worker took; the fields are the columns that `claim.sql` returns, in its order.

    Attributes:
        lease: the fence of this attempt; every later write about it carries it.
        args: JSON text of the arguments object, not decoded: it passes through the worker as it is.
        time_limit_ms: milliseconds an attempt may run, or None.
        suspect: the job's start must be on record before it runs, because a crash more could quarantine it.
        limits: JSON text with `soft_ms`, `cpu_ms`, `memory` (bytes), `output` (bytes), `processes`; None for a job without any.
        checkpoint: JSON text that an earlier attempt left, or None.
        ordering_key: no other job of its queue with the same key runs meanwhile; None for the many that have none.
    """

    id: int
    lease: int
    attempt: int
    max_attempts: int
    task: str
    queue: str
    args: str
    run_at: datetime
    time_limit_ms: int | None
    suspect: bool
    limits: str | None = None
    checkpoint: str | None = None
    ordering_key: str | None = None


class Floor(NamedTuple):
    """The last key claimed in one (queue, priority): the next claim starts behind it."""

    run_at: datetime
    id: int


class Walk(NamedTuple):
    """Which ordering keys of a queue a claim looks at.

    Attributes:
        behind: the walk goes on behind this key; empty text is before the first.
        keys: so many of them, at most; 0 for no walk.
        given: keys that are looked at in any case.
    """

    behind: str = ""
    keys: int = 0
    given: tuple[str, ...] = ()


class Walked(NamedTuple):
    """What a claim found on its walk over ordering keys.

    Attributes:
        jobs: what it took.
        last_key: where the walk ended; None when there was no key.
        key_count: how many keys it passed; as many as it might: there may be more behind.
        due_in_ms: how soon the first job is due that is the next of its key and waits for its time; None when there is none.
    """

    jobs: list[ClaimedJob]
    last_key: str | None
    key_count: int
    due_in_ms: int | None


class Due(NamedTuple):
    """One queue and priority that holds queued jobs, and how soon the first is due, in milliseconds (0: now).

    Without a priority: a queue that holds jobs with an ordering key.
    """

    queue: str
    priority: int | None
    due_in_ms: int


class LostWorker(NamedTuple):
    """A worker whose lease has expired."""

    id: int
    name: str


class Held(NamedTuple):
    """A job the database thinks a worker is running."""

    id: int
    lease: int
    cancel_requested: bool


class Ending(StrEnum):
    """How an attempt ended without success; each begins with the transition of that name."""

    RETRY = "retry"
    FAIL = "fail"
    SNOOZE = "snooze"
    RELEASE = "release"
    ABORT = "abort"
    CRASH = "crash"


class Succeeded(NamedTuple):
    """An attempt that returned. `result` is JSON text or None; `ended_at` is `clock.monotonic()`; `peak_memory` is bytes."""

    id: int
    lease: int
    result: str | None
    run_ms: int
    cpu_ms: int | None
    ended_at: float
    peak_memory: int | None = None


class Unsuccessful(NamedTuple):
    """An attempt that did not return.

    Attributes:
        run_ms: None when the attempt never began (released unstarted); such an attempt leaves no record.
        exit_cause: `exception | timeout | memory | cpu | output | processes | signal N | exit N | deploy | lost lease | cancelled`.
        delay_ms: the pause that `Retry(delay=…)` or `Snooze` asked for; None means the job's own backoff.
    """

    ending: Ending
    id: int
    lease: int
    error_type: str | None = None
    message: str | None = None
    traceback: str | None = None
    fingerprint: str | None = None
    exit_cause: str | None = None
    run_ms: int | None = None
    cpu_ms: int | None = None
    ended_at: float = 0.0
    delay_ms: int | None = None
    peak_memory: int | None = None


class Settled(NamedTuple):
    """An attempt about which nothing is left to write: it succeeded, and its own transaction ended the job."""

    id: int
    lease: int


Outcome = Succeeded | Unsuccessful
Ended = Outcome | Settled


class Note(NamedTuple):
    """What an attempt says of itself while it runs; None leaves what is there.

    Attributes:
        fraction: 0 to 1.
        text: a few words beside it.
        checkpoint: JSON text from which a later attempt can go on.
    """

    id: int
    lease: int
    fraction: float | None = None
    text: str | None = None
    checkpoint: str | None = None


class LogLine(NamedTuple):
    """One line that an attempt logged.

    Attributes:
        line: its number within the attempt, from 1.
        level: as in Python's logging.
        logged_at: `clock.monotonic()`.
    """

    id: int
    lease: int
    line: int
    level: int
    logger: str
    message: str
    logged_at: float


class WorkerCounts(NamedTuple):
    """What a worker has done since it started."""

    succeeded: int = 0
    failed: int = 0
    crashed: int = 0
    claimed: int = 0


class WorkerSight(NamedTuple):
    """What a worker shows of itself with each heartbeat.

    Attributes:
        rss_bytes: of the supervising process; None where the system does not tell.
        memory_bytes: of the supervising process, the template and all children with what they started.
        running: JSON text: a list with one object for each running job.
    """

    rss_bytes: int | None = None
    memory_bytes: int | None = None
    running: str | None = None


class Leaving(NamedTuple):
    """How a worker leaves, for `worker_runs`.

    Attributes:
        reason: `drained` (nothing was left to do), `time` (its time was over), `done` (it has run as many jobs as it was to), `signal`,
            `error`. What finds a worker dead writes `lost`.
        left_count: jobs of its queues that were due when it left; None when nobody looked.
        next_due_at: when the next one is due, by the database.
    """

    reason: str
    exit_code: int = 0
    error: str | None = None
    left_count: int | None = None
    next_due_at: datetime | None = None


class Registered(NamedTuple):
    """A worker's row; `given_up` is the worker that held its slot and was found lost, or None."""

    worker_id: int
    given_up: int | None = None


class Remains(NamedTuple):
    """What a worker leaves behind.

    Attributes:
        left: jobs of its queues that are due; counted up to a bound.
        next_due_at: when the next job that waits for its time is due; None when none does.
    """

    left: int
    next_due_at: datetime | None
