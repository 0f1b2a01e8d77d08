"""Owns the values that inspection answers with: frozen, complete, with the database's own words for states.

It must not read anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobrunner.states import State, sources_of

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from jobrunner.filters import StateWord


@dataclass(frozen=True, slots=True)
class Count:
    """How many: `value`, or with `exact` False at least that many (counting stopped there)."""

    value: int
    exact: bool = True

    def __str__(self) -> str:
        if self.exact or self.value < 1000:  # noqa: PLR2004  a thousand
            return f"{self.value:,}" + ("" if self.exact else "+")
        return f"{self.value // 1000}k+"


START_ONE = "start one: jobrunner work (or jobrunner cron from crontab; an embedded worker comes with its web server)"


@dataclass(frozen=True, slots=True)
class Reason:
    """Why something is as it is: `code` for programs, `text` a sentence, `hint` what to do about it."""

    code: str
    text: str
    hint: str = ""

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class JobRow:
    """One job in a list, live or finished.

    Attributes:
        state: the word of the view `v_jobs`.
        args_excerpt: the beginning of the arguments as JSON text; the whole is in `JobDetail`.
        wait: from due to start; of a job that is due and waits, until now. None while it is scheduled.
        run: of the last attempt; of a running one, until now. None when it has not begun.
        error_type, error: of the last attempt that failed, even when the job succeeded later; `error` is an excerpt.
        progress, progress_text: what an attempt said last, 0 to 1 and an excerpt of the words beside it; None when none did.
        peak_memory: bytes, of the last attempt of a finished job; None when nobody measured it.
    """

    id: int
    task: str
    queue: str
    state: StateWord
    priority: int
    attempt: int
    max_attempts: int
    created_at: datetime
    run_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    wait: timedelta | None
    run: timedelta | None
    args_excerpt: str
    error_type: str | None
    error: str | None
    worker_id: int | None
    progress: float | None
    progress_text: str | None
    peak_memory: int | None


@dataclass(frozen=True, slots=True)
class Page:
    """A stretch of a list, newest first.

    Attributes:
        items: the jobs.
        next: cursor of the older jobs behind the last item; None when there are none.
        prev: cursor of the newer jobs before the first item; None on the first page.
        at: the database's time of the answer; ages are counted from it.
    """

    items: tuple[JobRow, ...]
    next: str | None
    prev: str | None
    at: datetime


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """One ended run of a job.

    Attributes:
        lease: the fence of the attempt; grows with every claim, also where `attempt` does not (a snooze).
        outcome: `succeeded | retried | failed | snoozed | released | cancelled | crashed | quarantined`.
        exit_cause: `exception | timeout | memory | cpu | output | processes | signal N | exit N | deploy | cancelled | …`; None for a
            success.
        peak_memory: bytes, of all its processes together; None when nobody measured it.
    """

    attempt: int
    lease: int
    outcome: str
    started_at: datetime | None
    finished_at: datetime
    run: timedelta | None
    cpu: timedelta | None
    worker_id: int | None
    worker: str | None
    error_type: str | None
    message: str | None
    traceback: str | None
    fingerprint: str | None
    exit_cause: str | None
    peak_memory: int | None


@dataclass(frozen=True, slots=True)
class JobDetail:
    """Everything about one job.

    Attributes:
        job: what the list shows; its excerpts are excerpts.
        args, result, meta, checkpoint: JSON text, indented, with every digit as stored; all but `args` are None when there is none.
        error, progress_text: the whole of what `job` has an excerpt of.
        memory_limit, output_limit: bytes; None, here as of every limit, is no limit.
        memory_limit_on_retry: how many times the memory limit an attempt gets after one that exceeded it.
        attempts: ended runs, newest first; at most `MAX_ATTEMPTS`.
        attempts_left_out: True when there are older ones.
        waiting_reason: why it is not running, or where it runs; None for a finished job.
        ordering_key: jobs of its queue with the same one run one after the other; None when it has none.
        expires_at: it is not begun any more after that; None: never.
        at: the database's time of the answer.
    """

    job: JobRow
    args: str
    result: str | None
    meta: str | None
    checkpoint: str | None
    tags: tuple[str, ...]
    parent_id: int | None
    unique_key: str | None
    error: str | None
    error_at: datetime | None
    crash_count: int
    max_crashes: int
    time_limit: timedelta | None
    soft_time_limit: timedelta | None
    cpu_limit: timedelta | None
    memory_limit: int | None
    memory_limit_on_retry: float | None
    output_limit: int | None
    max_processes: int | None
    progress_text: str | None
    backoff: str
    lease: int
    claimed_at: datetime | None
    cancel_requested_at: datetime | None
    cpu: timedelta | None
    worker: str | None
    attempts: tuple[AttemptRow, ...]
    attempts_left_out: bool
    waiting_reason: Reason | None
    at: datetime
    ordering_key: str | None = None
    expires_at: datetime | None = None

    @property
    def stored_state(self) -> State:
        """The state as `states.py` knows it."""
        return State.QUEUED if self.job.state in ("scheduled", "retrying") else State(self.job.state)

    @property
    def retry_refusal(self) -> str | None:
        """Why `retry` would be refused now, or None."""
        if self.stored_state in sources_of("requeue"):
            return None
        if self.stored_state is State.QUEUED:
            return None if self.job.run_at > self.at else "it is due already"
        return (
            "running: wait for it, or cancel it first"
            if self.stored_state is State.RUNNING
            else "it succeeded; enqueue a new job to run it again"
        )

    @property
    def cancel_refusal(self) -> str | None:
        """Why `cancel` would be refused or change nothing now, or None."""
        if self.cancel_requested_at is not None:
            return "already asked to stop"
        if self.stored_state in sources_of("cancel") | sources_of("request_cancel"):
            return None
        return f"it has {self.job.state}" if self.stored_state in (State.SUCCEEDED, State.FAILED) else f"it is {self.job.state}"


@dataclass(frozen=True, slots=True)
class QueueRow:
    """One queue that holds live jobs or is listened to.

    Attributes:
        ready: due and waiting. scheduled: due later, never run. retrying: waiting for another attempt, due or not.
        unserved: of the ready, those whose task no live worker of this queue registers.
        exact: False when counting stopped; then the counts of waiting jobs are lower bounds.
        workers, slots: live workers that listen, and how many attempts they can run at once.
    """

    queue: str
    ready: int
    scheduled: int
    retrying: int
    running: int
    unserved: int
    exact: bool
    oldest_ready_at: datetime | None
    workers: int
    slots: int


@dataclass(frozen=True, slots=True)
class RunningJob:
    """What one slot of a worker ran at its last heartbeat. Each part is None when the worker did not say it.

    Attributes:
        run: since the attempt began.
        memory: bytes that all its processes had at that moment.
    """

    slot: int | None
    job_id: int | None
    task: str | None
    attempt: int | None
    run: timedelta | None
    memory: int | None


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """One worker process.

    Attributes:
        state: `alive`, `lost` (its lease expired) or `stopped`.
        running: jobs that it holds now.
        running_jobs: what its slots ran at its last heartbeat, by slot; empty when it has stopped, or does not say.
        rss_bytes: of the supervising process alone. memory_bytes: with all processes of its jobs.
        pool, pool_slot: the slot it holds, so that no other worker does; None for one that needs none.
        claimed_count: jobs that it took; None before its first heartbeat.
    """

    id: int
    name: str
    host: str
    pid: int
    kind: str
    version: str
    queues: tuple[str, ...]
    tasks: tuple[str, ...]
    slots: int
    state: str
    running: int
    started_at: datetime
    heartbeat_at: datetime
    stopped_at: datetime | None
    last_exit: str | None
    rss_bytes: int | None
    succeeded_count: int
    failed_count: int
    crashed_count: int
    pool: str | None
    pool_slot: int | None
    claimed_count: int | None
    memory_bytes: int | None
    running_jobs: tuple[RunningJob, ...]


def ago(duration: timedelta) -> str:
    """A duration in the two largest units that matter: `840 ms`, `2.3 s`, `4 m 12 s`, `3 d 4 h`."""
    seconds = max(0.0, duration.total_seconds())
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:  # noqa: PLR2004  a minute
        return f"{seconds:.1f}".removesuffix(".0") + " s"
    whole = int(seconds)
    units = (("d", whole // 86_400), ("h", whole // 3_600 % 24), ("m", whole // 60 % 60), ("s", whole % 60))
    first = next(index for index, (_, value) in enumerate(units) if value)
    return " ".join(f"{value} {unit}" for unit, value in units[first : first + 2] if value)
