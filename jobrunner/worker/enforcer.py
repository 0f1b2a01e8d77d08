"""Owns ending attempts: limits that are exceeded, jobs that are asked to stop, the steps from a word to SIGKILL.

It must not touch other attempts than the one it ends, but for those that share a process with it (threads, coroutines): these are
given time first, then released unharmed. It talks to children through the pool's `signal`.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from jobrunner.jobs import Ending
from jobrunner.worker import procfs
from jobrunner.worker.children import KILL_AFTER, NO_LIMITS, PROCESS, Child, Kill, Run, Stop
from jobrunner.worker.log import logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from jobrunner.worker.cgroups import Group

THREADS = 1000  # that the kernel grants beside `max_processes`, which are without threads: it counts both, and stops a bomb between samples
SAMPLE = 0.1  # seconds between looks at what a limited attempt uses
GLANCE = 1.0  # and at one without limits, for its peak
STOP_PATIENCE = 2.0  # seconds a cancelled attempt may go on after it was told, before it is interrupted
INTERRUPT_PATIENCE = 1.0  # seconds between the exception in the task and SIGTERM
_XCPU = f"signal {int(signal.SIGXCPU)}"  # how a process dies that the kernel ends for its CPU time
NEIGHBOUR_PATIENCE = 10.0  # seconds that jobs in other threads of a child get to end before it is killed for one of them


class Enforcer:
    """Watches the running attempts of one worker; used by its main thread.

    Args:
        signal_child: sends a signal to a child's process group; SIGKILL to everything below it as well.
        interrupt: makes a child look at its orders at once.
        take_back: takes unread jobs back from a child that is about to be killed.
    """

    def __init__(
        self, signal_child: Callable[[Child, int], None], interrupt: Callable[[Child], None], take_back: Callable[[Child], None]
    ) -> None:
        self._signal, self._interrupt, self._take_back = signal_child, interrupt, take_back

    def prepare(self, child: Child, run: Run) -> None:
        """Before a job is sent: what the kernel is asked to hold for the child, and what it has used so far.

        For a job without limits as well, when those of the job before still stand.
        """
        limits = run.limits or {}
        if child.group is not None and child.kind == PROCESS:
            self._prepare_group(child, child.group, limits)
        if limits.get("cpu_ms") is not None and child.pid is not None:
            used = procfs.usage(child.pid)
            run.cpu_base = used.cpu_ms if used is not None else 0

    def _prepare_group(self, child: Child, group: Group, limits: dict[str, int | None]) -> None:
        memory, processes = limits.get("memory"), limits.get("processes")
        wanted = (memory, None if processes is None else processes + THREADS)
        if wanted == child.grouped and processes is None and memory is not None:
            return  # the job before had the same limit, and at its end the group's counts were read
        if wanted != child.grouped:
            if group.set_limits(*wanted):
                child.grouped = wanted
            else:  # no `pids` on this machine, or more memory in use: what the kernel does not hold, sampling does
                child.grouped = (memory, None) if group.set_limits(memory, None) else NO_LIMITS
        # What happened to an earlier job of this child is not held against this one.
        child.oom_kills = group.oom_kills() if memory is not None else 0
        child.refusals = group.process_refusals() if processes is not None else 0

    def check(self, children: Iterable[Child], now: float) -> None:
        """Take the next step with every attempt that is over a limit or asked to stop."""
        for child in children:
            for run in list(child.active()):
                if run.kill is not None:
                    self._press(child, run, run.kill, now)
                    continue
                self._check_time(child, run, now)
                if run.stop is not None and run.kill is None:
                    self._press_stop(child, run, run.stop, now)
            self._sample(child, now)
            if child.kind != PROCESS and child.retired and not (child.killed or child.deaf or child.put_down):
                child.leave_at = None  # who had to go has gone by itself: the others have all the time they want
            if child.leave_at is not None and now >= child.leave_at:
                self._signal(child, signal.SIGKILL)
                child.leave_at, child.put_down = now + KILL_AFTER, True

    def stop(self, child: Child, run: Run, reason: str, ending: Ending, now: float, *, patience: float) -> None:
        """Ask one attempt to end: `should_stop()` is true from now on, after `patience` an exception follows, then the kill."""
        if run.kill is not None or (run.stop is not None and run.stop.interrupt_at <= now + patience):
            return
        run.stop = Stop(reason, ending, now + patience, now + patience + INTERRUPT_PATIENCE)
        child.order(run, reason, interrupt=False)

    def kill(self, child: Child, run: Run, kill: Kill, now: float) -> None:
        """End an attempt by force: SIGTERM to its process group now, SIGKILL to its whole tree when `kill.hard_at` comes.

        One that shares its process is interrupted; a second later its child takes no more jobs and is ended in the end.
        """
        run.kill = kill
        if child.kind == PROCESS:
            self._take_back(child)
            self._signal(child, signal.SIGTERM)
            return
        # A thread cannot be killed: it is interrupted once more, and when that does not help the child must go.
        child.order(run, kill.exit_cause, interrupt=True)
        kill.hard_at = now + KILL_AFTER

    def _press(self, child: Child, run: Run, kill: Kill, now: float) -> None:
        if now < kill.hard_at:
            return
        if child.kind != PROCESS:
            self._press_shared(child, run, now)
        else:
            self._signal(child, signal.SIGKILL)
            kill.hard_at = now + KILL_AFTER

    def _press_shared(self, child: Child, run: Run, now: float) -> None:
        """The interrupt has not helped: the whole child must go, after its other jobs have had time to end."""
        if not child.retired:
            facts = {"job": run.job.id, "kind": child.kind}
            logger.warning("a job cannot be ended alone: its child takes no more jobs and ends", extra=facts)
            self._take_back(child)
            child.dismiss()
        others = any(other.kill is None for other in child.runs.values())
        leave_at = now + (NEIGHBOUR_PATIENCE if others else 0.0)
        child.leave_at = leave_at if child.leave_at is None else min(child.leave_at, leave_at)

    def _press_stop(self, child: Child, run: Run, stop: Stop, now: float) -> None:
        if not stop.interrupted and now >= stop.interrupt_at:
            stop.interrupted = True
            child.order(run, stop.reason, interrupt=True)
            self._interrupt(child)
        elif now >= stop.kill_at:
            self.kill(child, run, Kill(stop.ending, None, None, stop.reason, now + KILL_AFTER), now)

    def _check_time(self, child: Child, run: Run, now: float) -> None:
        elapsed_ms = (now - run.since) * 1000
        limit_ms = run.job.time_limit_ms
        if limit_ms is not None and elapsed_ms > limit_ms:
            message = f"ran longer than its time_limit of {limit_ms / 1000:g} s"
            self._exceeded(child, run, "TimeLimitExceeded", message, "timeout", now)
            return
        soft_ms = run.limits.get("soft_ms") if run.limits is not None else None
        if soft_ms is not None and not run.softened and elapsed_ms > soft_ms:
            run.softened = True
            child.order(run, "timeout", interrupt=True)
            self._interrupt(child)

    def _sample(self, child: Child, now: float) -> None:
        """Look at what a child's process tree uses."""
        run = next(child.active(), None)
        if child.pid is None or run is None:
            return
        limits = run.limits if child.kind == PROCESS and run.kill is None else None
        if now - child.sampled_at < (SAMPLE if limits is not None else GLANCE) or now - run.since < SAMPLE:
            return
        child.sampled_at = now
        used = procfs.usage(child.pid)
        if used is None:
            return
        child.memory = used.rss_bytes
        if child.kind != PROCESS:
            return
        memory = used.rss_bytes
        limit = limits.get("memory") if limits is not None else None
        if limit is not None and memory > limit and used.process_count > 1:
            memory = procfs.proportional_bytes(child.pid) or memory  # forked processes share pages, which the sum counts twice
        run.peak, run.cpu_seen = max(run.peak, memory), max(run.cpu_seen, used.cpu_ms - run.cpu_base)
        if limits is not None:
            self._check_use(child, run, limits, memory, used, now)

    def _check_use(
        self, child: Child, run: Run, limits: dict[str, int | None], memory: int, used: procfs.Usage, now: float
    ) -> None:
        limit, cpu_ms, processes = limits.get("memory"), limits.get("cpu_ms"), limits.get("processes")
        if limit is not None and memory > limit:
            self._exceeded(child, run, "MemoryLimitExceeded", f"held {memory:,} bytes; its memory_limit is {limit:,}", "memory", now)
        elif limit is not None and self._ran_out_of_memory(child, run, limit):
            self._exceeded(child, run, "MemoryLimitExceeded", over_memory(limit), "memory", now)
        elif cpu_ms is not None and used.cpu_ms - run.cpu_base > cpu_ms:
            message = f"used {(used.cpu_ms - run.cpu_base) / 1000:.1f} s of CPU; its cpu_limit is {cpu_ms / 1000:g} s"
            self._exceeded(child, run, "CpuLimitExceeded", message, "cpu", now)
        elif processes is not None and self._is_crowded(child, run, used, processes):
            asked = f"had {used.process_count} processes, or wanted {THREADS:,} more with their threads"
            message = f"{asked}; its max_processes is {processes}"
            self._exceeded(child, run, "ProcessLimitExceeded", message, "processes", now)

    def _ran_out_of_memory(self, child: Child, run: Run, limit: int) -> bool:
        """Whether the kernel has killed a process of the attempt for its memory, whoever asked first."""
        kills = child.group.oom_kills() if child.group is not None else 0
        if kills > child.oom_kills:
            child.oom_kills = kills
            run.peak = max(run.peak, limit)  # so much the group had: that is why
            run.starved = True  # a sample may see it a moment before the task returns, and its end asks again
        return run.starved

    def _is_crowded(self, child: Child, run: Run, used: procfs.Usage, most: int) -> bool:
        """Whether an attempt has more processes than it may, in two samples one after the other.

        A look at a tree is no snapshot: of two short-lived processes that follow each other it may see both.
        """
        if child.group is not None and child.group.process_refusals() > child.refusals:
            return True
        before, run.crowded = run.crowded, used.process_count > most
        return before and run.crowded

    def exceeded_output(self, child: Child, run: Run, limit: int, now: float) -> None:
        """The attempt has printed more than it may."""
        if run.kill is None:
            self._exceeded(child, run, "OutputLimitExceeded", over_output(limit), "output", now)

    def overrun(self, child: Child, run: Run, now: float) -> Kill | None:
        """The limit that an attempt has exceeded which ended before anybody could end it, by its return even.

        Only what is counted exactly or held by the kernel: how such an attempt ends must not depend on who was faster.
        """
        limits = run.limits or {}
        output, memory = limits.get("output"), limits.get("memory")
        if output is not None and run.output_cut:
            return Kill(Ending.RETRY, "jobrunner.errors.OutputLimitExceeded", over_output(output), "output", now)
        if memory is not None and self._ran_out_of_memory(child, run, memory):
            return Kill(Ending.RETRY, "jobrunner.errors.MemoryLimitExceeded", over_memory(memory), "memory", now)
        return None

    def cause_of_death(self, child: Child, run: Run, cause: str, now: float) -> Kill | None:
        """Who else than the job itself ended its process: the kernel for a limit, or we for another job in it; None for nobody."""
        limits = run.limits or {}
        if child.killed or (child.kind != PROCESS and child.put_down and not child.deaf):
            return Kill(Ending.RELEASE, None, None, "neighbour", now)
        if (overrun := self.overrun(child, run, now)) is not None:
            return overrun
        if child.deaf and child.put_down:
            message = f"the job closed the sockets between its process and the worker, which killed it ({cause})"
            return Kill(Ending.CRASH, "jobrunner.errors.WorkerProcessDied", message, cause, now)
        if limits.get("cpu_ms") is not None and cause == _XCPU:
            message = f"used more CPU than its cpu_limit of {(limits['cpu_ms'] or 0) / 1000:g} s"
            return Kill(Ending.RETRY, "jobrunner.errors.CpuLimitExceeded", message, "cpu", now)
        return None

    def _exceeded(self, child: Child, run: Run, error: str, message: str, cause: str, now: float) -> None:
        soft = cause == "timeout"
        # Who is over a limit of memory or processes may do harm while it is asked nicely.
        hard_at = now + KILL_AFTER if soft or cause in {"cpu", "output"} else now
        self.kill(child, run, Kill(Ending.RETRY, f"jobrunner.errors.{error}", message, cause, hard_at), now)

    def next_deadline(self, children: Iterable[Child]) -> list[float]:
        """When something here is due without an event."""
        times: list[float] = []
        for child in children:
            if child.leave_at is not None:
                times.append(child.leave_at)
            for run in child.active():
                times += self._due(child, run)
        return times

    def _due(self, child: Child, run: Run) -> list[float]:
        if run.kill is not None:
            return [run.kill.hard_at] if child.kind == PROCESS or child.leave_at is None else []
        times = [max(child.sampled_at + (SAMPLE if run.limits is not None else GLANCE), run.since + SAMPLE)]
        if run.job.time_limit_ms is not None:
            times.append(run.since + run.job.time_limit_ms / 1000)
        soft_ms = run.limits.get("soft_ms") if run.limits is not None else None
        if soft_ms is not None and not run.softened:
            times.append(run.since + soft_ms / 1000)
        if run.stop is not None:
            times.append(run.stop.kill_at if run.stop.interrupted else run.stop.interrupt_at)
        return times


def over_output(limit: int) -> str:
    """What is said of an attempt that has printed too much."""
    return f"printed more than its output_limit of {limit:,} bytes"


def over_memory(limit: int) -> str:
    """What is said of an attempt whose memory the kernel itself refused."""
    return f"wanted more memory than its memory_limit of {limit:,} bytes"
