"""Owns handing out: which of the claimed jobs goes to which child, how many are worth claiming, what is taken back.

It must not know how children come and go nor why attempts end. A lane is a set of like children and the tasks that they run; a
worker has one for its processes or threads, and one more for coroutines when they have slots of their own.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from jobrunner.jobs import ClaimedJob, Ending, Outcome, Unsuccessful
from jobrunner.worker.children import AHEAD, MOVE_AFTER, NO_LIMITS, PROCESS, STALE, Child, Run
from jobrunner.worker.log import logger
from jobrunner.worker.pace import SMOOTHING, Pace

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator

MOST_AHEAD = 0.25  # seconds of work for each slot of a child: more would leave others idle at a backlog's end for longer than one notices
ROUNDS = 2  # of the link that the work in hand has to last for: a claim may just have missed one
REPLACE_AFTER = 1.0  # seconds a child must have lived to be replaced at once when it dies without a job: no storm of forks
MOST_SOLO = 4  # processes for suspects beside a shared child: each of them is one more copy of what the application keeps in memory
MOST_EARLY = STALE / 2  # seconds before the expected end of a job at which the next one may be claimed for its slot; it waits in the worker
_SLACK = 0.05  # of the mean run time that a slot may stay empty so that the next claim serves several


class Opening(NamedTuple):
    """A child that may be given jobs: how many it can begin at once, and how many may wait there besides."""

    child: Child
    free: int
    ahead: int


class Lane:
    """Like children, and the claimed jobs that wait for one of them.

    Args:
        kind: `process`, `threads` or `async`.
        wanted: how many children it should have.
        capacity: jobs at once in each.
        prepare: called with a child and a run just before the job begins; what it sets there holds for that job.
    """

    def __init__(self, kind: str, wanted: int, capacity: int, prepare: Callable[[Child, Run], None]) -> None:
        self.kind, self.wanted, self.capacity = kind, wanted, capacity
        self.children: dict[int, Child] = {}
        self.backlog: deque[ClaimedJob] = deque()
        self.suspects: deque[ClaimedJob] = deque()  # that wait for a process of their own, where children are shared
        self.outcomes: list[Outcome] = []
        self.captured: Container[str] = ()  # tasks whose output goes into their jobs' logs
        self.pace = Pace()
        self.hold = AHEAD  # seconds of work for each slot that a child may have in hand
        self._round_seconds = 0.0
        self._fork_at: list[float] = []  # of children that died young, without a job: when each may be replaced
        self._free_since: float | None = None
        self._early_at: float | None = None  # when the first slot will be about to come free, as none is
        self._prepare = prepare

    @property
    def slots(self) -> int:
        """Jobs it can run at once."""
        return self.wanted * self.capacity

    # -- children that are wanted

    def missing(self, now: float) -> int:
        """How many children should be forked now."""
        self._fork_at = [at for at in self._fork_at if at > now]
        active = sum(1 for child in self.children.values() if not child.retired and not child.solo)
        return max(0, self.wanted - active - len(self._fork_at))

    def wants_solo(self) -> bool:
        """Whether a suspect waits that should get a process of its own."""
        solo = [child for child in self.children.values() if child.solo and not child.retired]
        return len(self.suspects) > sum(1 for child in solo if not child.busy) and len(solo) < MOST_SOLO

    def lost(self, child: Child, now: float) -> None:
        """A child died that had no job. Somebody killed it, and the next will live; or children cannot live here, and nor can the next."""
        if not child.retired and not child.solo:
            self._fork_at.append(max(now, child.forked_at + REPLACE_AFTER))

    # -- what is worth claiming

    def room(self, now: float) -> int:
        """How many more jobs should be claimed now; 0 while a claim would serve more slots a little later: each costs a commit."""
        openings = self._openings(now)
        free = sum([opening.free for opening in openings])
        ahead = sum([opening.ahead for opening in openings])
        self._free_since = (self._free_since or now) if free else None
        if free and not ahead and now < self._claim_at():
            return 0
        return max(0, free + ahead - len(self.backlog) - len(self.suspects))

    def early(self, now: float) -> int:
        """How many jobs more are worth claiming for slots that are about to come free, if many are due: they begin as these end.

        For jobs that are too long to wait in a child. No more than will end by the mean run time, however many are late: run times that
        vary would have more claimed than can begin. Below half of them the backlog is filled up: a few at a time cost less.
        """
        self._early_at = None
        mean, within = self.pace.mean, min(self.hold, MOST_EARLY)
        if mean is None or mean <= self.hold / 2:
            return 0
        ends = [run.since + run.expected for child in self._without_ahead() for run in child.runs.values()]
        ending = sum([-STALE < end - now < within for end in ends])
        if not ending:
            self._early_at = min([end - within for end in ends if end - within > now], default=None)
            return 0
        ending = min(ending, math.ceil(len(ends) * within / mean))
        held = len(self.backlog) + len(self.suspects)
        return ending - held if held * 2 <= ending else 0

    def _without_ahead(self) -> Iterator[Child]:
        """The children whose slots take from the backlog as they come free, as nothing waits there."""
        return (child for child in self.children.values() if not child.solo and not child.retired and len(child.runs) <= child.capacity)

    def is_fed(self, seconds: float) -> bool:
        """Whether every child has work for so long, going by run times, in jobs that wait there."""
        return bool(self.children) and all(child.is_fed(seconds) for child in self.children.values())

    def _claim_at(self) -> float:
        """When the slot that has been free for longest has been so for long enough."""
        return (self._free_since or 0.0) + min(STALE, (self.pace.mean or 0.0) * _SLACK)

    def _openings(self, now: float) -> list[Opening]:
        """The children that may be given jobs, least busy first."""
        children = list(self.children.values())
        if len(children) > 1:
            children.sort(key=lambda child: len(child.runs))
        left = self._left()
        openings: list[Opening] = []
        for child in children:
            if child.solo or not child.open:
                continue
            unused = child.capacity - len(child.runs)
            free = min(unused, left) if unused > 0 and left > 0 else 0
            left -= free
            ahead = child.ahead(self.pace.mean, now, self.hold) if free >= unused else 0
            if free or ahead:
                openings.append(Opening(child, free, ahead))
        return openings

    def in_flight(self) -> Iterator[ClaimedJob]:
        """Every job this lane holds."""
        yield from self.backlog
        yield from self.suspects
        for child in self.children.values():
            for run in child.runs.values():
                yield run.job
            if child.reserved is not None:
                yield child.reserved

    def fetched(self, seconds: float) -> None:
        """It took so long to get work, the wait for others included: where that is long, more work has to be in hand."""
        self._round_seconds += SMOOTHING * (seconds - self._round_seconds)
        self.hold = min(MOST_AHEAD, max(AHEAD, ROUNDS * self._round_seconds))

    # -- handing out

    def hand_out(self, now: float) -> list[ClaimedJob]:
        """Give the backlog to children, idle ones first. Returns suspects that need their start recorded before `begin`."""
        reserved = self._isolate() if self.kind != PROCESS else []
        if not self.backlog:
            return reserved
        openings = self._openings(now)
        waiting: list[ClaimedJob] = []
        for position, opening in enumerate(openings):
            share = max(opening.free, -(-len(self.backlog) // (len(openings) - position)))
            waiting += self._fill(opening, share, reserved, now)
        self.backlog.extendleft(reversed(waiting))
        self._free_since = None
        return reserved

    def _fill(self, opening: Opening, share: int, reserved: list[ClaimedJob], now: float) -> list[ClaimedJob]:
        """Give one child at most `share` jobs from the front of the backlog.

        Returns:
            The job at which it ended because it needs a free slot, if any. This child gets nothing more until it has one, or that
            job's turn would never come; meanwhile the other children go on with what is behind it.
        """
        child, given = opening.child, []
        waiting: list[ClaimedJob] = []
        for place in range(min(share, opening.free + opening.ahead, len(self.backlog))):
            job = self.backlog[0]
            run = self._run(job)
            if place >= opening.free and not child.fits_behind(run, self.hold):
                waiting.append(self.backlog.popleft())
                break
            if job.suspect:
                child.reserved = self.backlog.popleft()
                reserved.append(job)
                break
            self._give(child, run, now)
            given.append(run)
            self.backlog.popleft()
        unsent = child.send(given)
        if not unsent:
            return waiting
        for run in unsent:
            child.drop(run.job.id)
        self.backlog.extendleft(reversed([*(run.job for run in unsent), *waiting]))
        return []

    def _isolate(self) -> list[ClaimedJob]:
        """Take suspects out of the backlog: none may run beside others, whom its crash would cost an attempt at living."""
        if any(job.suspect for job in self.backlog):
            self.suspects.extend(job for job in self.backlog if job.suspect)
            self.backlog = deque(job for job in self.backlog if not job.suspect)
        reserved: list[ClaimedJob] = []
        left = self._left()
        for child in self.children.values():
            if child.solo and child.open and not child.busy and self.suspects and left > 0:
                child.reserved = self.suspects.popleft()
                reserved.append(child.reserved)
                left -= 1
        return reserved

    def begin(self, begun: set[int], asked: set[int], now: float) -> None:
        """Send the suspects whose start is now on record; one that was asked for and is not there belongs to somebody else."""
        for child in self.children.values():
            job = child.reserved
            if job is None or job.id not in asked:
                continue
            child.reserved = None
            run = self._run(job)
            run.recorded = True
            if job.id not in begun:
                logger.warning("job was taken over before it began", extra={"job": job.id, "lease": job.lease})
            else:
                self._give(child, run, now)
                if child.send([run]):
                    child.drop(job.id)
                    self.outcomes.append(Unsuccessful(Ending.RELEASE, job.id, job.lease))

    def _run(self, job: ClaimedJob) -> Run:
        return Run.of(job, self.pace.expected(job.task), self.captured)

    def _give(self, child: Child, run: Run, now: float) -> None:
        if not child.runs:
            child.begins(run, now)
            self.prepare(child, run)
        child.give(run, now)

    def prepare(self, child: Child, run: Run) -> None:
        """A job begins in a child that has it to itself: what an earlier one left there must not stand."""
        if self.kind == PROCESS and (run.limits is not None or child.grouped != NO_LIMITS):
            self._prepare(child, run)

    # -- taking back

    def rebalance(self, now: float) -> None:
        """Take back jobs that wait for long, or behind others while a slot is free; give up those that nobody knows when to start."""
        for child in self.children.values():
            waits = len(child.runs) > child.capacity
            if waits and (child.stuck(now) or (not self.backlog and self._has_free() and child.holds_up(now))):
                self.take_back(child)
        if self.backlog and not self._has_free() and self._stands(now):
            self._release(self.backlog)
        if self.kind != PROCESS:
            self._mind_suspects(now)

    def _has_free(self) -> bool:
        """Whether a job could begin at once."""
        if not any(len(child.runs) < child.capacity and child.open and not child.solo for child in self.children.values()):
            return False
        return self._left() > 0

    def _left(self) -> int:
        """Slots that are not taken. A child that leaves keeps its own until its jobs have ended: its successor gets the others."""
        return self.slots - sum([child.busy for child in self.children.values()])

    def _stands(self, now: float) -> bool:
        """Whether no slot has come free for so long that nobody knows when one will."""
        if not self.children:
            return bool(self._fork_at)
        running = [run for child in self.children.values() for run in child.active()]
        return len(running) >= self.slots and all(now - run.since > STALE and not _ends_about(run, now) for run in running)

    def _mind_suspects(self, now: float) -> None:
        """Let processes for suspects leave that have nothing to do; give up suspects that nobody knows when to start."""
        solo = [child for child in self.children.values() if child.solo]
        for child in solo:
            if not self.suspects and not child.busy and not child.retired:
                child.dismiss()
        if self.suspects and (self._stands(now) or (len(solo) >= MOST_SOLO and all(child.stuck(now) for child in solo))):
            self._release(self.suspects)

    def release_unstarted(self, *, reserved: bool = False) -> None:
        """Give back to the queue everything that no child has begun; no attempt is used up."""
        for child in self.children.values():
            self.take_back(child)
            if reserved:
                self.unreserve(child)
        self._release(self.backlog)
        self._release(self.suspects)

    def _release(self, jobs: deque[ClaimedJob]) -> None:
        while jobs:
            job = jobs.popleft()
            self.outcomes.append(Unsuccessful(Ending.RELEASE, job.id, job.lease))

    def take_back(self, child: Child) -> None:
        """Put what a child has not read back to the front."""
        self.backlog.extendleft(reversed(child.unread()))

    def unreserve(self, child: Child) -> None:
        """Put a suspect that waits for its start to be recorded back to the front."""
        if child.reserved is not None:
            self.backlog.appendleft(child.reserved)
            child.reserved = None

    def drop_waiting(self, job_ids: Container[int]) -> None:
        """Cancel those of the jobs that no child has begun."""
        for waiting in (self.backlog, self.suspects):
            for job in [job for job in waiting if job.id in job_ids]:
                waiting.remove(job)
                self.outcomes.append(Unsuccessful(Ending.ABORT, job.id, job.lease, exit_cause="cancelled"))

    def next_deadline(self, now: float) -> list[float]:
        """When something here is due without an event: a fork, a claim that was put off, jobs that grow stale."""
        times = list(self._fork_at)
        if self._free_since is not None and (at := self._claim_at()) > now:
            times.append(at)
        if self._early_at is not None and self._early_at > now:
            times.append(self._early_at)
        for child in self.children.values():
            waits = len(child.runs) > child.capacity
            if child.runs and (waits or self.backlog or self.suspects):
                times.append(max(child.newest + STALE, now + STALE / 4))
                if waits and self._free_since is not None:
                    times.append(max(child.newest, now) + MOVE_AFTER)
        return times


def _ends_about(run: Run, now: float) -> bool:
    """Whether a job should end about now, by the run times of its task: what was claimed for its slot goes on waiting for that."""
    return abs(run.since + run.expected - now) < STALE
