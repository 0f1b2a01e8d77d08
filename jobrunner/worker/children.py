"""Owns what a worker knows about one child process: its sockets, the jobs it was given, why one of them is being ended.

It must not decide; lanes, pool and enforcer do.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any

from jobrunner.worker import bundles, wire
from jobrunner.worker.bundles import FEWEST, Bundle
from jobrunner.worker.log import logger

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Sequence

    from jobrunner.jobs import ClaimedJob, Ending
    from jobrunner.worker.cgroups import Group

PROCESS, THREADS, ASYNC = "process", "threads", "async"  # the ways in which a child runs its jobs

AHEAD = 0.02  # seconds of work for each slot of a child that it may hold at least: covers a round trip to the database, usually
MAX_AHEAD = 400  # jobs waiting at a child, at most
LONGEST_AHEAD = 0.08  # seconds that a job may be expected to take and still wait in a child: behind a longer one all would be taken back
STALE = 0.1  # seconds after which jobs waiting behind running ones are taken back
MOVE_AFTER = 0.005  # seconds of waiting that are worth taking a job to a slot that is free: for less, moving costs as much
KILL_AFTER = 1.0  # seconds between SIGTERM and SIGKILL to a job's process group
NO_LIMITS: tuple[int | None, int | None] = (None, None)  # of a control group: memory, processes with threads
_OF_THE_PROCESS = ("cpu_ms", "output", "processes")  # limits that a job can only have in a process that is idle when it begins
_EARFUL = 1 << 16  # bytes heard at once; the memory for much more is asked of the kernel anew each time


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
        limits: shared by all jobs with the same ones: not to be changed.
        expected: seconds it will take, by its task's recent run times.
        since: when it began, as far as the worker can tell; 0 while it waits behind another.
        recorded: whether the database knows that it has begun.
        softened: whether it was interrupted for its soft time limit.
        cpu_base: CPU milliseconds that its process had used before; exactly for a job with a limit of them.
        cpu_seen: and that all its processes together have used since, as of the last look.
        peak: most resident bytes seen of all its processes together.
        lines, log_bytes: what is in its log already.
        keep_output: whether what it prints goes into its log; None while its output is not caught.
        output: bytes it has printed; `output_cut` when that is more than it may.
        crowded: whether the last look found more processes than it may have.
        starved: whether the kernel has killed a process of it for its memory.
        captures: whether its task wants its output in the log: only one attempt at a time may be what prints.
        bundle: that it is the last job of, if any.
    """

    job: ClaimedJob
    limits: dict[str, int | None] | None = None
    expected: float = 0.0
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
    crowded: bool = False
    starved: bool = False
    captures: bool = False
    bundle: Bundle | None = None

    @classmethod
    def of(cls, job: ClaimedJob, expected: float, captured: Container[str]) -> Run:
        """A job that is about to be handed out; `captured` are the tasks whose output goes into their jobs' logs."""
        return cls(job, _parsed(job.limits) if job.limits else None, expected, captures=job.task in captured)

    @property
    def alone(self) -> bool:
        """Whether it goes only to an idle child, and nothing waits behind it.

        What its process has used before must be known when it begins, or what the process prints must be its own. Limits of time
        and memory are looked at while it runs: jobs with these travel like any others.
        """
        return self.captures or self.job.suspect or (self.job.limits is not None and _of_the_process(self.job.limits))


# Few tasks have limits of their own, and thousands of jobs have the same.
@lru_cache(maxsize=256)
def _parsed(limits: str) -> dict[str, int | None]:
    return json.loads(limits)  # type: ignore[no-any-return]


@lru_cache(maxsize=256)
def _of_the_process(limits: str) -> bool:
    return any(_parsed(limits).get(limit) is not None for limit in _OF_THE_PROCESS)


def _held(limits: dict[str, int | None] | None) -> int | None:
    """What a child's control group holds while a job runs, of the limits with which jobs follow each other."""
    return None if limits is None else limits.get("memory")


@dataclass(slots=True, eq=False)
class Child:
    """One child process and the jobs it was given, in that order.

    Attributes:
        number: of this child in its worker; never used again.
        kind, capacity: how it runs jobs, and how many at once.
        solo: beside a child that is shared: it takes suspects only, one at a time, whose crash then costs nobody else.
        forked_at: when it was asked for.
        inbox_there: the child's end of its inbox: jobs that it has not read are taken back from it.
        reserved: a suspect job that waits for its start to be recorded.
        load: seconds that everything it was given and has not finished is expected to take.
        last_limits: of the job that it was given last.
        retired: it takes no more jobs and leaves when the last is done.
        leave_at: when it is killed, though jobs may still run; None for whenever they end.
        put_down: whether that has happened.
        deaf: its side of the outbox is closed: by a task, or because the process is ending.
        outputs: read ends of what it prints while that is caught, by file descriptor 1 and 2.
        grouped: limits that stand on its control group.
        oom_kills, refusals: of that group, before the job that it runs.
        done_count, cpu_told: how many jobs it has finished, and their CPU milliseconds.
    """

    number: int
    kind: str
    capacity: int
    inbox: socket.socket
    inbox_there: socket.socket
    outbox: socket.socket
    orders: socket.socket
    outputs: dict[int, int]
    solo: bool = False
    forked_at: float = 0.0
    pid: int | None = None
    runs: dict[int, Run] = field(default_factory=dict)
    reserved: ClaimedJob | None = None
    load: float = 0.0
    last_limits: dict[str, int | None] | None = None
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
    done_count: int = 0
    cpu_told: int = 0
    bundles: set[Bundle] = field(default_factory=set)

    @property
    def idle(self) -> bool:
        """Ready for a job now, with nothing else to do."""
        return not self.runs and self.reserved is None and self.pid is not None and not self.retired and not self.deaf

    def active(self) -> Iterator[Run]:
        """The jobs that it runs: those it was given first; the others wait behind them."""
        return islice(self.runs.values(), self.capacity)

    @property
    def killed(self) -> bool:
        """Whether it is being ended for one of its jobs."""
        return any(run.kill is not None for run in self.active())

    @property
    def busy(self) -> int:
        """How many of its slots are taken."""
        return min(self.capacity, len(self.runs) + (self.reserved is not None))

    @property
    def open(self) -> bool:
        """Whether it may be given jobs at all."""
        if self.pid is None or self.retired or self.deaf or self.reserved is not None:
            return False
        if self.capacity > 1 or not self.runs:
            return True
        first = next(iter(self.runs.values()))
        return first.kill is None and not first.alone

    @property
    def newest(self) -> float:
        """When the job began, of those that it runs, that began last; it has one."""
        if self.capacity == 1:
            return next(iter(self.runs.values())).since
        return max(run.since for run in self.active())

    def stuck(self, now: float) -> bool:
        """Whether its slots are taken and none has come free for so long that nothing should wait here."""
        return len(self.runs) >= self.capacity and now - self.newest > STALE

    def holds_up(self, now: float) -> bool:
        """Whether what waits here would begin sooner in a slot that is free elsewhere."""
        return now - self.newest > MOVE_AFTER or self.load - sum(run.expected for run in self.active()) > MOVE_AFTER

    def is_fed(self, seconds: float) -> bool:
        """Whether the jobs that wait here are work for so long, going by run times."""
        return len(self.runs) > self.capacity and self.load - sum(run.expected for run in self.active()) > seconds * self.capacity

    def ahead(self, mean: float | None, now: float, hold: float) -> int:
        """How many more jobs of the usual kind may wait here: none while run times are unknown, what runs takes its time, or enough wait.

        `hold` is seconds of work for each slot. Below half of what it may hold it is filled up: many at a time cost less than one by one.
        """
        waiting = max(0, len(self.runs) - self.capacity)
        budget = hold * self.capacity
        if mean is None or mean > LONGEST_AHEAD * self.capacity or self.load > budget / 2 or waiting > MAX_AHEAD // 2:
            return 0
        if len(self.runs) >= self.capacity and now - self.newest > MOVE_AFTER + mean:
            return 0
        return min(MAX_AHEAD - waiting, int((budget - self.load) / mean))

    def fits_behind(self, run: Run, hold: float) -> bool:
        """Whether a job may wait behind those that are here, with `hold` seconds of work for each slot."""
        if run.alone or run.expected > LONGEST_AHEAD * self.capacity or self.load + run.expected > hold * self.capacity:
            return False
        return run.limits is self.last_limits or self.group is None or _held(run.limits) == _held(self.last_limits)

    def give(self, run: Run, now: float) -> None:
        """It was sent a job."""
        if len(self.runs) < self.capacity and not run.since:
            self.begins(run, now)
        self.runs[run.job.id] = run
        self.load += run.expected
        self.last_limits = run.limits

    def begins(self, run: Run, now: float) -> None:
        """A job that it was given has its turn."""
        run.since, run.cpu_base = now, self.cpu_told

    def drop(self, job_id: int) -> Run | None:
        """A job is done, or was taken back; None when it is not here."""
        run = self.runs.pop(job_id, None)
        if run is not None:
            if run.bundle is not None:  # its last one: the others have begun long ago
                run.bundle.close()
                self.bundles.discard(run.bundle)
            self.load = self.load - run.expected if self.runs else 0.0  # not by subtraction to the end: rounding would add up
        return run

    def dismiss(self) -> None:
        """Let it leave when its jobs are done."""
        self.retired = True
        with contextlib.suppress(OSError):
            self.inbox.shutdown(socket.SHUT_WR)

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
        whole, newline, rest = self.buffer.rpartition(b"\n")
        if not newline:
            return [], over
        self.buffer = rest
        try:  # JSON has no newline but between the lines
            return json.loads(str(b"[" + whole.replace(b"\n", b",") + b"]", "utf-8")), over
        except ValueError:  # an exception came into the middle of a line
            return [fields for line in whole.split(b"\n") if (fields := self._parsed(bytes(line)))], over

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

    def send(self, runs: Sequence[Run]) -> Sequence[Run]:
        """Put jobs that it was given into its inbox. Returns those, the last ones, for which there was no room."""
        start = 0
        while start < len(runs):
            batch = self._batch(runs, start)
            try:
                if len(batch) < FEWEST:
                    wire.send_job(self.inbox, batch[0])
                    start += 1
                else:
                    self._send_bundle(runs[start : start + len(batch)], batch)
                    start += len(batch)
            except (BlockingIOError, ConnectionError):  # it is full, or nobody is there any more
                break
        return runs[start:]

    def _batch(self, runs: Sequence[Run], start: int) -> list[bytes]:
        """Encoded jobs, as many as fit into one datagram; only the first where jobs travel alone."""
        batch = [wire.encode_job(runs[start].job)]
        if self.kind != PROCESS or not bundles.POSSIBLE or len(runs) - start < FEWEST:
            return batch
        size = len(batch[0])
        for run in runs[start + 1 :]:
            data = wire.encode_job(run.job)
            size += len(data) + 1
            if size > wire.INLINE_LIMIT:
                break
            batch.append(data)
        return batch

    def _send_bundle(self, runs: Sequence[Run], batch: Sequence[bytes]) -> None:
        bundle = Bundle([run.job.id for run in runs])
        try:
            bundle.send(self.inbox, batch)
        except BaseException:
            bundle.close()
            raise
        runs[-1].bundle = bundle
        self.bundles.add(bundle)

    def unread(self) -> list[ClaimedJob]:
        """Take back the jobs that it has not begun, in their order."""
        back: set[int] = set()
        for bundle in self.bundles:  # before the inbox is emptied: who reads a bundle without turns has read nothing
            back.update(bundle.recall())
        self.bundles.clear()
        while True:
            try:
                data, turns = wire.receive_jobs(self.inbox_there, socket.MSG_DONTWAIT)
            except (BlockingIOError, ConnectionError):
                break
            if turns is not None:
                os.close(turns)
            elif data:
                back.add(wire.job_id(data))
            else:
                break
        found = [run.job for run in self.runs.values() if run.job.id in back] if back else []
        for job in found:
            self.drop(job.id)
        return found

    def close(self) -> None:
        """Close this side's ends."""
        for bundle in self.bundles:
            bundle.close()
        self.bundles.clear()
        for end in (self.inbox, self.inbox_there, self.outbox, self.orders):
            end.close()
        for descriptor in self.outputs.values():
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self.outputs.clear()
