"""Owns handing out: which of the claimed jobs goes to which child, how many are worth claiming, what is taken back.

It must not know how children come and go nor why attempts end. A lane is a set of like children and the tasks that they run; a
worker has one for its processes or threads, and one more for coroutines when they have slots of their own.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from jobrunner.jobs import ClaimedJob, Ending, Outcome, Unsuccessful
from jobrunner.worker import wire
from jobrunner.worker.children import MAX_AHEAD, NO_LIMITS, PROCESS, STALE, Child, Run
from jobrunner.worker.log import logger

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator


class Lane:
    """Like children, and the claimed jobs that wait for one of them.

    Args:
        kind: `process`, `threads` or `async`.
        wanted: how many children it should have.
        capacity: jobs at once in each.
        prepare: called with a child and a run just before the job is sent; what it sets there holds for that job.
    """

    def __init__(self, kind: str, wanted: int, capacity: int, prepare: Callable[[Child, Run], None]) -> None:
        self.kind, self.wanted, self.capacity = kind, wanted, capacity
        self.children: dict[int, Child] = {}
        self.backlog: deque[ClaimedJob] = deque()
        self.outcomes: list[Outcome] = []
        self.captured: Container[str] = ()  # tasks whose output goes into their jobs' logs
        self.fork_at: list[float] = []  # of children that died without a job: when each may be replaced
        self._prepare = prepare

    @property
    def slots(self) -> int:
        """Jobs it can run at once."""
        return self.wanted * self.capacity

    def missing(self, now: float) -> int:
        """How many children should be forked now."""
        self.fork_at = [at for at in self.fork_at if at > now]
        active = sum(1 for child in self.children.values() if not child.retired)
        return max(0, self.wanted - active - len(self.fork_at))

    def room(self, now: float) -> int:
        """How many more jobs should be claimed."""
        return max(0, sum(child.room(now) for child in self.children.values()) - len(self.backlog))

    def claims_now(self, now: float, total: int) -> bool:
        """Whether so many are worth a claim: one commit for every other short job would be the cost."""
        capacity = sum(child.room(now) + len(child.runs) for child in self.children.values())
        return total * 4 >= min(MAX_AHEAD, capacity)

    def in_flight(self) -> Iterator[ClaimedJob]:
        """Every job this lane holds."""
        yield from self.backlog
        for child in self.children.values():
            for run in child.runs.values():
                yield run.job
            if child.reserved is not None:
                yield child.reserved

    def hand_out(self, now: float) -> list[ClaimedJob]:
        """Give the backlog to children, idle ones first. Returns suspects that need their start recorded before `begin`."""
        suspects: list[ClaimedJob] = []
        if not self.backlog:
            return suspects
        for child in sorted(self.children.values(), key=lambda c: len(c.runs)):
            while self.backlog and child.room(now) > 0:
                run = Run.of(self.backlog[0], self.captured)
                if run.alone and not child.idle and (run.job.suspect or child.kind == PROCESS):
                    break
                if run.job.suspect:
                    child.reserved = self.backlog.popleft()
                    suspects.append(run.job)
                    break
                if not self._send(child, run, now):
                    break
                self.backlog.popleft()
        return suspects

    def begin(self, begun: set[int], asked: set[int], now: float) -> None:
        """Send the suspects whose start is now on record; one that was asked for and is not there belongs to somebody else."""
        for child in self.children.values():
            job = child.reserved
            if job is None or job.id not in asked:
                continue
            child.reserved = None
            run = Run.of(job, self.captured)
            run.recorded = True
            if job.id not in begun:
                logger.warning("job was taken over before it began", extra={"job": job.id, "lease": job.lease})
            elif not self._send(child, run, now):
                self.outcomes.append(Unsuccessful(Ending.RELEASE, job.id, job.lease))

    def _send(self, child: Child, run: Run, now: float) -> bool:
        if run.limits is not None or child.grouped != NO_LIMITS:
            self._prepare(child, run)
        try:
            wire.send_job(child.inbox, wire.encode_job(run.job))
        except (BlockingIOError, ConnectionError, BrokenPipeError):
            return False
        if not child.runs or child.kind != PROCESS:
            run.since = now
        child.runs[run.job.id] = run
        return True

    def rebalance(self, now: float) -> None:
        """Take back jobs that wait behind a running one while another child is idle, or for long; give up those nobody can start."""
        if self.kind != PROCESS:
            return
        idle = any(child.idle for child in self.children.values())
        for child in self.children.values():
            if len(child.runs) > 1:
                first = next(iter(child.runs.values()))
                if now - first.since > STALE or (idle and not self.backlog):
                    self.take_back(child)
        if self.backlog and all(_long_busy(child, now) for child in self.children.values()):
            self.release_unstarted()

    def release_unstarted(self, *, reserved: bool = False) -> None:
        """Give back to the queue everything that no child has begun; no attempt is used up."""
        for child in self.children.values():
            self.take_back(child)
            if reserved:
                self.unreserve(child)
        while self.backlog:
            job = self.backlog.popleft()
            self.outcomes.append(Unsuccessful(Ending.RELEASE, job.id, job.lease))

    def take_back(self, child: Child) -> None:
        """Put what a child has not read back to the front."""
        self.backlog.extendleft(reversed(list(child.unread())))

    def unreserve(self, child: Child) -> None:
        """Put a suspect that waits for its start to be recorded back to the front."""
        if child.reserved is not None:
            self.backlog.appendleft(child.reserved)
            child.reserved = None

    def drop_waiting(self, job_ids: Container[int]) -> None:
        """Cancel those of the jobs that no child has begun."""
        for job in [job for job in self.backlog if job.id in job_ids]:
            self.backlog.remove(job)
            self.outcomes.append(Unsuccessful(Ending.ABORT, job.id, job.lease, exit_cause="cancelled"))

    def next_deadline(self, now: float) -> list[float]:
        """When something here is due without an event: a fork, jobs that grow stale."""
        stale = (
            max(next(iter(child.runs.values())).since + STALE, now + STALE / 4)
            for child in self.children.values()
            if self.kind == PROCESS and child.runs and (len(child.runs) > 1 or self.backlog)
        )
        return [*self.fork_at, *stale]


def _long_busy(child: Child, now: float) -> bool:
    first = next(iter(child.runs.values()), None)
    return first is not None and now - first.since > STALE
