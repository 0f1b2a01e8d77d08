"""Owns the children of one worker: the template that forks them, what they say, their deaths and what a death means.

It must not talk to the database nor decide what to claim. All of it runs in the worker's main thread.
"""

from __future__ import annotations

import contextlib
import os
import selectors
from typing import TYPE_CHECKING, Any, NamedTuple

from jobrunner import clock
from jobrunner.jobs import Ended, Ending, LogLine, Note
from jobrunner.worker import cgroups, channels
from jobrunner.worker.children import ASYNC, KILL_AFTER, PROCESS, THREADS, Child, Kill, Run
from jobrunner.worker.endings import died, reported
from jobrunner.worker.enforcer import STOP_PATIENCE, Enforcer
from jobrunner.worker.forking import Forking
from jobrunner.worker.lanes import Lane
from jobrunner.worker.log import logger
from jobrunner.worker.outputs import Logbook, Outputs
from jobrunner.worker.wire import MICROSECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from jobrunner.jobs import ClaimedJob

_DEAF_PATIENCE = 0.1  # seconds between the end of what a child says and its kill: one that is dying is gone long before


class Shape(NamedTuple):
    """How a pool runs jobs.

    Attributes:
        processes: children that run one job at a time.
        threads: when above 0, jobs run in so many threads of one child instead.
        coroutines: when above 0, `async def` tasks run in so many slots of one event loop instead.
        max_jobs, max_memory: of one child, after which a fresh one takes its place between jobs; None for no bound.
        name: that the worker was given, for what lives beside the tasks.
    """

    processes: int
    threads: int = 0
    coroutines: int = 0
    max_jobs: int | None = None
    max_memory: int | None = None
    name: str | None = None


class Pool:
    """The children of one worker, forked by its template process.

    Args:
        selector: the main loop's; whatever a child can be heard on is registered there with a function to call.
    """

    def __init__(self, app: str | None, dsn: str, shape: Shape, selector: selectors.BaseSelector) -> None:
        self.app, self.dsn, self.shape = app, dsn, shape
        self.crashed_count = 0
        self.stopping = False
        self.notes: list[Note] = []
        self.template_died = False
        self._warned = False  # that children are replaced after every job
        self._ended: list[Ended] = []
        self._selector = selector
        self._numbers = 0
        self._logbook = Logbook()
        self.enforcer = Enforcer(self._signal, self._interrupt, lambda child: self._lane_of(child).take_back(child))
        self._outputs = Outputs(self._logbook, self.enforcer.exceeded_output)
        self._cgroups = cgroups.detect()
        self._leave_by: float | None = None  # when the worker's time of grace is over
        self._left: list[cgroups.Group] = []  # of dead children, whose processes were not all gone yet
        kinds = [(THREADS, 1, shape.threads) if shape.threads else (PROCESS, shape.processes, 1)]
        if shape.coroutines:
            kinds.append((ASYNC, 1, shape.coroutines))
        self.lanes = [Lane(*kind, self.enforcer.prepare) for kind in kinds]

    # -- the template and its children

    def start(self) -> None:
        """Start the template, which imports the app; then `forking` has the names of its tasks. Raises AppImportError."""
        self.forking = Forking(self.app, self.dsn, self.shape.name)
        for lane in self.lanes:
            lane.captured = self.forking.captured
        self._selector.register(self.forking.control, selectors.EVENT_READ, self._on_control)

    def inherit(self, old: Pool) -> None:
        """Take over what an ended pool has left to tell."""
        self._ended += old.take_ended()
        self.notes, self._logbook.lines = old.take_words()
        self.crashed_count, self.stopping, self._left = old.crashed_count, old.stopping, old._left
        self._leave_by = old._leave_by

    def tasks_of(self, lane: Lane) -> list[str]:
        """The names of the tasks that run in a lane."""
        if lane.kind == ASYNC:
            return list(self.forking.coroutines)
        return sorted(set(self.forking.tasks) - (set(self.forking.coroutines) if len(self.lanes) > 1 else set()))

    def fork_missing(self, now: float) -> None:
        """Ask for a child wherever one is missing; one that died young and without a job is replaced a second after its own start."""
        if self.stopping:
            return
        for lane in self.lanes:
            for _ in range(lane.missing(now)):
                self._fork(lane, now)
            if lane.wants_solo():
                self._fork(lane, now, solo=True)

    def _fork(self, lane: Lane, now: float, *, solo: bool = False) -> None:
        fields, theirs, close = channels.connect()
        self._numbers += 1
        capacity = 1 if solo else lane.capacity
        child = Child(number=self._numbers, kind=lane.kind, capacity=capacity, solo=solo, forked_at=now, **fields)
        if lane.kind == PROCESS and self._cgroups is not None:
            child.group = self._cgroups.group(str(child.number))
        lane.children[child.number] = child
        bounds = {"max_jobs": self.shape.max_jobs, "max_memory": self.shape.max_memory}
        self.forking.say({"do": "fork", "child": child.number, "kind": lane.kind, "capacity": capacity, **bounds}, theirs)
        for close_end in close:
            close_end()
        self._selector.register(child.outbox, selectors.EVENT_READ, lambda: self._on_outbox(child))
        for number, descriptor in child.outputs.items():
            self._selector.register(descriptor, selectors.EVENT_READ, lambda number=number: self._on_output(child, number))

    def halt(self, exit_cause: str, *, blame: bool = False, in_order: bool = False) -> None:
        """End the template and with it every child; returns when they are gone.

        What they finished counts; what they were running is given back, or counts as a crash when they are to `blame`. `in_order`
        lets children that run nothing leave by themselves, with what the application wants done at the end of a process.
        """
        idle = in_order and not any(True for _ in self.in_flight())
        if idle:
            for child in self.children():
                child.dismiss()
        self.forking.end(in_order=idle)
        now = clock.monotonic()
        for lane in self.lanes:
            for child in list(lane.children.values()):
                self._on_outbox(child)
                lane.take_back(child)
                lane.unreserve(child)
                for run in child.runs.values():
                    self._outputs.finish(child, run)
                    kill = None if blame else Kill(Ending.RELEASE, None, None, exit_cause, now)
                    self._ended.append(died(run, run.kill or kill, exit_cause, now))
                self._forget(lane, child)
            lane.release_unstarted()
        self._outputs.close()
        self._selector.unregister(self.forking.control)
        self.forking.close()

    def _forget(self, lane: Lane, child: Child) -> None:
        del lane.children[child.number]
        for end in [child.outbox.fileno(), *child.outputs.values()]:
            with contextlib.suppress(KeyError, ValueError):  # a deaf one is unregistered already
                self._selector.unregister(end)
        child.close()
        if child.group is not None:
            child.group.kill()
            self._left.append(child.group)
        self._left = [group for group in self._left if not group.remove()]

    # -- what children and template say

    def children(self) -> Iterator[Child]:
        """All of them."""
        for lane in self.lanes:
            yield from lane.children.values()

    def _lane_of(self, child: Child) -> Lane:
        return next(lane for lane in self.lanes if child.number in lane.children)

    def _on_control(self) -> None:
        """Handle one message of the template."""
        message = self.forking.hear()
        match message.get("event"):
            case "forked":
                child = next(child for child in self.children() if child.number == message["child"])
                child.pid = message["pid"]
                if child.group is not None and not child.group.add(message["pid"]):
                    child.group = None
            case "exited":
                gone = next((c for c in self.children() if c.pid == message["pid"]), None)
                if gone is not None:
                    self._bury(gone, message["status"], message["cpu_ms"], message["peak_memory"])
            case None:
                self.template_died = True

    def _on_outbox(self, child: Child) -> None:
        """Read what a child has to say."""
        lines, over = child.hear()
        if over and not child.deaf:  # the task closed every file, or the process is going: then it is gone before the patience is over
            child.deaf = True
            self._selector.unregister(child.outbox)
            child.leave_at = clock.monotonic() + _DEAF_PATIENCE
        if not lines:
            return
        now = clock.monotonic()
        lane = self._lane_of(child)
        finished = False
        for fields in lines:
            if isinstance(fields[0], str):
                self._said(child, fields)
            else:
                self._finished(lane, child, fields, now)
                finished = True
        if finished:
            self._advance(lane, child, now)

    def _advance(self, lane: Lane, child: Child, now: float) -> None:
        """Jobs that waited behind others begin."""
        for run in child.active():
            if not run.since:
                child.begins(run, now)
                lane.prepare(child, run)
                if self._leave_by is not None:  # it was in the child's hands already when the others were told
                    self.enforcer.stop(child, run, "deploy", Ending.RELEASE, now, patience=max(0.0, self._leave_by - now))

    def _on_output(self, child: Child, number: int) -> None:
        """Read what a child prints."""
        self._on_outbox(child)  # before a task printed anything, its child said what is to be done with it
        if not self._outputs.read(child, number) and number in child.outputs:
            descriptor = child.outputs.pop(number)
            self._selector.unregister(descriptor)
            os.close(descriptor)

    def _said(self, child: Child, fields: list[Any]) -> None:
        """Something that a running job, or the child itself, says beside the end of a job."""
        kind, *rest = fields
        if kind == "retire":
            if not child.retired:
                logger.debug("child retires", extra={"pid": child.pid, "reason": rest[0]})
                if rest[0] == "memory" and child.done_count <= 1 and not self._warned:
                    self._warned = True
                    logger.warning("a child was above --max-memory-per-child after its first job: each job costs a process if that goes on")
                child.dismiss()
                self._lane_of(child).take_back(child)
            return
        job_id, lease, *words = rest
        run = child.runs.get(job_id)
        if run is None or run.job.lease != lease:
            return
        match kind:
            case "note":
                self.notes.append(Note(job_id, lease, *words))
            case "log":
                self._logbook.add(run, *words)
            case "capture":
                run.keep_output = words[0]

    def _finished(self, lane: Lane, child: Child, fields: list[Any], now: float) -> None:
        job_id, _, ending, *rest, run_us, cpu_ms, peak = fields
        run = child.runs.get(job_id)
        if run is None:
            return
        if run.keep_output is not None:
            self._outputs.finish(child, run)
        child.drop(job_id)
        child.done_count += 1
        lane.pace.learn(run.job.task, run_us / MICROSECONDS)
        child.cpu_told += cpu_ms or 0
        if run.kill is not None and child.kind == PROCESS:
            child.retired, child.leave_at = True, now  # its SIGTERM is on the way, and must not meet the next job
        overrun = None if run.limits is None else self.enforcer.overrun(child, run, now)
        self._ended.append(reported(run, ending, rest, (round(run_us / 1000), cpu_ms, max(run.peak, peak or 0) or None), now, overrun))

    def _bury(self, child: Child, status: int, cpu_ms: int, peak: int) -> None:
        """A child is dead: its finished jobs count, unread ones go back to the front, those it ran end as the cause says."""
        lane = self._lane_of(child)
        self._on_outbox(child)
        lane.take_back(child)
        lane.unreserve(child)
        now = clock.monotonic()
        cause = f"signal {-status}" if status < 0 else f"exit {status}"
        if not child.runs:
            lane.lost(child, now)
        for run in child.runs.values():
            self._outputs.finish(child, run)
            kill = run.kill or self.enforcer.cause_of_death(child, run, cause, now)
            own = child.kind == PROCESS
            self._ended.append(
                died(run, kill, cause, now, cpu_ms=max(0, cpu_ms - child.cpu_told) if own else None, peak=peak if own else None)
            )
            if kill is None or kill.ending is Ending.CRASH:
                self.crashed_count += 1
                facts = {"job": run.job.id, "task": run.job.task, "attempt": run.job.attempt, "lease": run.job.lease, "cause": cause}
                logger.error("job's process died", extra=facts)
        self._forget(lane, child)

    # -- jobs, in all lanes

    def take_ended(self) -> list[Ended]:
        """What ended since this was asked last."""
        ended, self._ended = self._ended, []
        for lane in self.lanes:
            ended += lane.outcomes
            lane.outcomes = []
        return ended

    def take_words(self) -> tuple[list[Note], list[LogLine]]:
        """What running jobs said since this was asked last."""
        notes, self.notes = self.notes, []
        lines, self._logbook.lines = self._logbook.lines, []
        return notes, lines

    @property
    def unwritten(self) -> bool:
        """Whether there are outcomes that nobody has taken."""
        return bool(self._ended) or any(lane.outcomes for lane in self.lanes)

    def in_flight(self) -> Iterator[ClaimedJob]:
        """Every job this worker holds."""
        for lane in self.lanes:
            yield from lane.in_flight()

    def running(self, now: float) -> list[dict[str, Any]]:
        """What each child runs, since when, and what memory its process tree holds, for `v_workers`."""
        return [
            {
                "slot": child.number, "pid": child.pid, "job": run.job.id, "task": run.job.task, "attempt": run.job.attempt,
                "seconds": round(now - run.since, 1), "memory": child.memory or None,
            }
            for child in self.children()
            for run in child.active()
        ]  # fmt: skip

    def is_fed(self, seconds: float) -> bool:
        """Whether every child has work for so long without a word from here."""
        return not self.stopping and all(lane.is_fed(seconds) for lane in self.lanes)

    def release_unstarted(self) -> None:
        """Give back to the queue everything that no child has begun; no attempt is used up."""
        for lane in self.lanes:
            lane.release_unstarted(reserved=self.stopping)

    def begin(self, begun: set[int], asked: set[int], now: float) -> None:
        """Send the suspects whose start is now on record."""
        for lane in self.lanes:
            lane.begin(begun, asked, now)

    def cancel(self, job_ids: Iterable[int], now: float) -> None:
        """End jobs that somebody asked to cancel, begun or not."""
        wanted = set(job_ids)
        for lane in self.lanes:
            for child in lane.children.values():
                running = [run for run in child.active() if run.job.id in wanted]
                for run in running:
                    self.enforcer.stop(child, run, "cancelled", Ending.ABORT, now, patience=STOP_PATIENCE)
                if len(wanted & child.runs.keys()) > len(running):
                    lane.take_back(child)
            lane.drop_waiting(wanted)

    def supersede(self, job_id: int, lease: int, now: float) -> None:
        """Another attempt of this job runs by now: end ours at once; what it says is refused anyway."""
        self._each_run(lambda child, run: self._end_superseded(child, run, now) if (run.job.id, run.job.lease) == (job_id, lease) else None)

    def _end_superseded(self, child: Child, run: Run, now: float) -> None:
        if run.kill is None:
            self.enforcer.kill(child, run, Kill(Ending.RELEASE, None, None, "superseded", now), now)

    def ask_all(self, patience: float, now: float) -> None:
        """Tell every running job that the worker wants to leave; after `patience` seconds they are interrupted, then killed."""
        self._leave_by = now + patience
        self.release_unstarted()
        self._each_run(lambda child, run: self.enforcer.stop(child, run, "deploy", Ending.RELEASE, now, patience=patience))

    def end_all(self, exit_cause: str, now: float) -> None:
        """End every running job by force and give it back without using up an attempt."""
        self.release_unstarted()
        self._each_run(
            lambda child, run: (
                self.enforcer.kill(child, run, Kill(Ending.RELEASE, None, None, exit_cause, now + KILL_AFTER), now)
                if run.kill is None
                else None
            )
        )

    def _each_run(self, do: Callable[[Child, Run], object]) -> None:
        for child in list(self.children()):
            for run in list(child.active()):
                do(child, run)

    def _signal(self, child: Child, number: int) -> None:
        self._tell(child, {"do": "kill", "signal": int(number)})

    def _interrupt(self, child: Child) -> None:
        if child.kind == PROCESS:  # the others listen all the time
            self._tell(child, {"do": "interrupt"})

    def _tell(self, child: Child, message: dict[str, Any]) -> None:
        if child.pid is not None:
            self.forking.say({**message, "pid": child.pid})

    def next_deadline(self, now: float) -> float | None:
        """Seconds until something here is due without an event."""
        times = [*self.enforcer.next_deadline(self.children()), *(at for lane in self.lanes for at in lane.next_deadline(now))]
        return max(0.0, min(times) - now) if times else None
