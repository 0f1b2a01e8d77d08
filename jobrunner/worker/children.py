"""Owns what a worker knows about one child process: its sockets, the jobs it was given, why one of them is being ended.

It must not decide; lanes, pool and enforcer do.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jobrunner.worker import wire
from jobrunner.worker.log import logger

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

    from jobrunner.jobs import ClaimedJob, Ending
    from jobrunner.worker.cgroups import Group

PROCESS, THREADS, ASYNC = "process", "threads", "async"  # the ways in which a child runs its jobs

AHEAD = 0.02  # seconds of work a child may have waiting: covers a round trip to the database, and is taken back when it grows old
MAX_AHEAD = 64  # jobs waiting at a child, at most
STALE = 0.1  # seconds after which jobs waiting behind a running one are taken back
KILL_AFTER = 1.0  # seconds between SIGTERM and SIGKILL to a job's process group
NO_LIMITS: tuple[int | None, int | None] = (None, None)  # of a control group: memory, processes with threads
_EARFUL = 1 << 18  # bytes heard at once
_SMOOTHING = 0.2  # weight of the newest run time in a child's running mean


@dataclass(slots=True)
class Kill:
    """Why an attempt is being ended by force, and when the hard signal follows."""

    ending: Ending
    error_type: str | None
    message: str | None
    exit_cause: str
    hard_at: float


@dataclass(slots=True)
class Stop:
    """Somebody asked an attempt to end: first it is told, then interrupted, then killed."""

    reason: str
    ending: Ending
    interrupt_at: float
    kill_at: float
    interrupted: bool = False


@dataclass(slots=True, eq=False)
class Run:
    """One job that a child was given.

    Attributes:
        since: when it began, as far as the worker can tell; 0 while it waits behind another.
        recorded: whether the database knows that it has begun.
        softened: whether it was interrupted for its soft time limit.
        cpu_base: CPU milliseconds that its process had used before.
        cpu_seen: and that all its processes together have used since, as of the last look.
        peak: most resident bytes seen of all its processes together.
        lines, log_bytes: what is in its log already.
        keep_output: whether what it prints goes into its log; None while its output is not caught.
        output: bytes it has printed; `output_cut` when that is more than it may.
        captures: whether its task wants its output in the log: only one attempt at a time may be what prints.
    """

    job: ClaimedJob
    limits: dict[str, int | None] | None = None
    since: float = 0.0
    recorded: bool = False
    softened: bool = False
    stop: Stop | None = None
    kill: Kill | None = None
    cpu_base: int = 0
    cpu_seen: int = 0
    peak: int = 0
    lines: int = 0
    log_bytes: int = 0
    keep_output: bool | None = None
    output: int = 0
    output_cut: bool = False
    captures: bool = False

    @classmethod
    def of(cls, job: ClaimedJob, captured: Container[str]) -> Run:
        """A job that is about to be handed out; `captured` are the tasks whose output goes into their jobs' logs."""
        return cls(job, json.loads(job.limits) if job.limits else None, captures=job.task in captured)

    @property
    def alone(self) -> bool:
        """Whether it goes only to an idle child, and nothing waits behind it: its limits and its output are the whole process's."""
        return self.limits is not None or self.captures or self.job.suspect


@dataclass(slots=True, eq=False)
class Child:
    """One child process and the jobs it was given, in that order.

    Attributes:
        number: of this child in its worker; never used again.
        kind, capacity: how it runs jobs, and how many at once.
        inbox_there: the child's end of its inbox: jobs that it has not read are taken back from it.
        reserved: a suspect job that waits for its start to be recorded.
        mean: of recent run times, in seconds; a new child gets one job until it is known.
        retired: it takes no more jobs and leaves when the last is done.
        leave_at: when it is killed, though jobs may still run; None for whenever they end.
        put_down: whether that has happened.
        deaf: its side of the outbox is closed: by a task, or because the process is ending.
        outputs: read ends of what it prints while that is caught, by file descriptor 1 and 2.
        grouped: limits that stand on its control group.
        oom_kills, refusals: of that group, before the job that it runs.
        cpu_told: CPU milliseconds of the jobs that it has finished.
    """

    number: int
    kind: str
    capacity: int
    inbox: socket.socket
    inbox_there: socket.socket
    outbox: socket.socket
    orders: socket.socket
    outputs: dict[int, int]
    pid: int | None = None
    runs: dict[int, Run] = field(default_factory=dict)
    reserved: ClaimedJob | None = None
    mean: float = 1.0
    retired: bool = False
    leave_at: float | None = None
    put_down: bool = False
    deaf: bool = False
    buffer: bytearray = field(default_factory=bytearray)
    rests: dict[int, bytes] = field(default_factory=dict)
    group: Group | None = None
    grouped: tuple[int | None, int | None] = NO_LIMITS
    oom_kills: int = 0
    refusals: int = 0
    sampled_at: float = 0.0
    memory: int = 0
    cpu_told: int = 0

    @property
    def idle(self) -> bool:
        """Ready for a job now, with nothing else to do."""
        return not self.runs and self.reserved is None and self.pid is not None and not self.retired and not self.deaf

    def active(self) -> Iterator[Run]:
        """The jobs that it runs; in a child that runs one at a time the others wait behind the first."""
        if self.kind == PROCESS:
            first = next(iter(self.runs.values()), None)
            if first is not None:
                yield first
        else:
            yield from self.runs.values()

    @property
    def killed(self) -> bool:
        """Whether it is being ended for one of its jobs."""
        return any(run.kill is not None for run in self.runs.values())

    def room(self, now: float) -> int:
        """How many more jobs it should have: one when idle, more while its jobs are short, none behind a long one."""
        if self.pid is None or self.retired or self.deaf or self.reserved is not None or self.killed:
            return 0
        first = next(iter(self.runs.values()), None)
        if first is not None and first.alone and (self.kind == PROCESS or first.job.suspect):
            return 0
        if self.kind != PROCESS:
            return self.capacity - len(self.runs)
        if first is not None and now - first.since > STALE:
            return 0
        return max(0, min(MAX_AHEAD, max(1, int(AHEAD / max(self.mean, 1e-6)))) - len(self.runs))

    def learn(self, run_ms: int) -> None:
        """Take a finished job's run time into the mean."""
        seconds = run_ms / 1000
        self.mean = self.mean + _SMOOTHING * (seconds - self.mean) if self.mean < 1.0 else seconds

    def hear(self) -> tuple[list[list[Any]], bool]:
        """What it has said since it was heard last, line by line, and whether it will say no more."""
        over = False
        while True:
            try:
                data = self.outbox.recv(_EARFUL)
            except OSError:
                break
            if not data:
                over = True
                break
            self.buffer += data
        if b"\n" not in self.buffer:
            return [], over
        *lines, rest = self.buffer.split(b"\n")
        self.buffer = bytearray(rest)
        return [fields for line in lines if (fields := self._parsed(bytes(line)))], over

    def _parsed(self, line: bytes) -> list[Any] | None:
        try:
            fields = json.loads(line) if line else None
        except ValueError:  # an exception in a signal handler of the task came into the middle of it
            logger.warning("what a job said was cut short and is dropped", extra={"pid": self.pid})
            return None
        return fields if isinstance(fields, list) else None

    def order(self, run: Run, reason: str, *, interrupt: bool) -> None:
        """Tell it about one of its jobs."""
        wire.send_order(self.orders, wire.Order(run.job.id, run.job.lease, reason, interrupt))

    def unread(self) -> Iterator[ClaimedJob]:
        """Take back the jobs that it has not read."""
        while True:
            try:
                data = wire.receive_job(self.inbox_there, socket.MSG_DONTWAIT)
            except (BlockingIOError, ConnectionError):
                return
            if not data:
                return
            run = self.runs.pop(wire.job_id(data), None)
            if run is not None:
                yield run.job

    def close(self) -> None:
        """Close this side's ends."""
        for end in (self.inbox, self.inbox_there, self.outbox, self.orders):
            end.close()
        for descriptor in self.outputs.values():
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self.outputs.clear()


def connect() -> tuple[dict[str, Any], tuple[int, ...], list[Any]]:
    """The ends of a new child's channels.

    Returns:
        The worker's ends as fields of `Child`; the child's descriptors (inbox, outbox, orders, stdout, stderr); and what has to be
        closed here once they are sent, as functions.
    """
    inbox, inbox_there = socket.socketpair(socket.AF_UNIX, wire.JOB_SOCKET)
    outbox, outbox_there = socket.socketpair()
    orders, orders_there = socket.socketpair(socket.AF_UNIX, wire.JOB_SOCKET)
    outbox.setblocking(False)  # noqa: FBT003  the standard library's signature
    pipes = {number: os.pipe() for number in (1, 2)}
    for read, _ in pipes.values():
        os.set_blocking(read, False)
    fields = {
        "inbox": inbox, "inbox_there": inbox_there, "outbox": outbox, "orders": orders,
        "outputs": {number: read for number, (read, _) in pipes.items()},
    }  # fmt: skip
    writes = [write for _, write in pipes.values()]
    theirs = (inbox_there.fileno(), outbox_there.fileno(), orders_there.fileno(), *writes)
    return fields, theirs, [outbox_there.close, orders_there.close, *(lambda end=end: os.close(end) for end in writes)]
