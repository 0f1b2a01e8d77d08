"""Owns a child that runs one job at a time, in a process that has nothing else to do; it may be killed at any moment.

It must not touch our tables (but for the end of a transactional job): what comes out of an attempt goes to the worker as a line.
"""

from __future__ import annotations

import asyncio
import os
import resource
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from jobrunner.worker import capture, limits, wire
from jobrunner.worker.bundles import Inbox
from jobrunner.worker.executing import InProcess, context_of, execute, flush_streams
from jobrunner.worker.voices import Outbox, ProcessEar, Voice

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping

    from jobrunner.app import JobRunner

ADDRESS_SPACE_FACTOR = 4  # times the memory limit that a job may map more than is mapped: threads and files map much, and use little
ADDRESS_SPACE_LEAST = 1 << 30  # bytes more than the memory limit, at least
_DEAD = os.WEXITED | os.WNOHANG
CPU_MARGIN = 1  # seconds after which the kernel's own CPU limit follows ours


class Channels(NamedTuple):
    """The child's ends of what ties it to its worker.

    Attributes:
        inbox: jobs, one a datagram or a bundle of them.
        outbox: lines about them.
        orders: what the worker says about a running job.
        pipes: for file descriptors 1 and 2, where they lead when they are caught.
    """

    inbox: socket.socket
    outbox: socket.socket
    orders: socket.socket
    pipes: Mapping[int, int]


class Recycling(NamedTuple):
    """When a child makes room for a fresh one, between two jobs; None for never."""

    max_jobs: int | None = None
    max_memory: int | None = None


def serve(jobs: JobRunner, channels: Channels, recycling: Recycling) -> None:
    """Run jobs until the inbox closes or this process has had enough of them."""
    outbox = Outbox(channels.outbox)
    capture.install(outbox)
    with asyncio.Runner() as runner:
        child = _Child(jobs, channels, outbox, runner)
        inbox = Inbox(channels.inbox)
        count = 0
        while data := inbox.take():
            count += 1
            last = recycling.max_jobs is not None and count >= recycling.max_jobs
            if last:
                outbox.send(["retire", "jobs"])  # before it runs: meanwhile the next child is forked
            line = child.run(wire.decode_job(data))
            flush_streams()
            reason = child.reason_to_leave(recycling)
            outbox.finish(line)
            if last:
                return
            if reason is not None:
                outbox.send(["retire", reason])
                return


class _Child:
    def __init__(self, jobs: JobRunner, channels: Channels, outbox: Outbox, runner: asyncio.Runner) -> None:
        self.jobs, self.outbox = jobs, outbox
        self.ear = ProcessEar(channels.orders)
        self.calls = InProcess(runner, self.ear)
        self.memory = limits.PeakMemory()
        self.descendants = _Descendants()
        self.redirected = capture.Redirected(outbox, dict(channels.pipes))

    def run(self, job: wire.Assignment) -> list[Any]:
        task = self.jobs.registry.find(job.task)
        context = context_of(task, job, Voice(self.outbox, self.ear, job))
        call = self.calls.call(context)
        keep = task is not None and task.running.capture_output
        caught = keep or (job.limits or {}).get("output") is not None
        if caught:
            self.redirected.begin(context, keep=keep)
        self.ear.began(context)
        try:
            spent = _Spent(self.memory, self.descendants)
            return execute(self.jobs, context, job, spent, _held(call, job.limits, self.memory) if job.limits else call)
        finally:
            limits.stop_timers()
            self.ear.ended(context)
            if caught:
                flush_streams()
                self.redirected.end()

    def reason_to_leave(self, recycling: Recycling) -> str | None:
        """Why a fresh child should take over: too much memory, what the last job left behind or took away."""
        if self.descendants.are_left():
            return "left processes"
        if self.redirected.spoilt():
            return "closed streams"
        if recycling.max_memory is not None and (self.memory.resident_bytes() or 0) > recycling.max_memory:
            return "memory"
        return None


def _held(call: Callable[..., Any], bounds: dict[str, int | None], own: limits.PeakMemory) -> Callable[..., Any]:
    """Have the kernel hold limits around the task, and lift them before anything is said of how it ended: that needs memory as well."""
    cpu_ms, memory = bounds.get("cpu_ms"), bounds.get("memory")

    def held(*args: Any, **kwargs: Any) -> Any:
        try:
            if cpu_ms is not None:
                limits.set_cpu_seconds(-(-cpu_ms // 1000) + CPU_MARGIN)
            if memory is not None and (mapped := own.address_space_bytes()) is not None:
                limits.set_address_space(mapped + max(memory * ADDRESS_SPACE_FACTOR, memory + ADDRESS_SPACE_LEAST))
            return call(*args, **kwargs)
        finally:
            if cpu_ms is not None:
                limits.set_cpu_seconds(None)
            if memory is not None:
                limits.set_address_space(None)

    return held


class _Spent:
    """Wall, CPU and peak memory of an attempt that has the process to itself; the CPU of processes that it waited for included."""

    def __init__(self, memory: limits.PeakMemory, descendants: _Descendants) -> None:
        self._memory, self._descendants = memory, descendants
        memory.reset()
        self._children = descendants.cpu
        self._began, self._cpu = time.monotonic(), time.process_time()

    def read(self) -> tuple[int, int | None, int | None]:
        wall = time.monotonic() - self._began
        self._descendants.look()
        used = resource.getrusage(resource.RUSAGE_SELF)  # one call for both: the same clock as process_time, in microseconds
        cpu = used.ru_utime + used.ru_stime - self._cpu + self._descendants.cpu - self._children
        return round(wall * wire.MICROSECONDS), max(0, round(cpu * 1000)), self._memory.peak_of(used)


class _Descendants:
    """What jobs start beside themselves.

    Attributes:
        cpu: seconds that those have used for whose end somebody here has waited, as of the last look.
    """

    def __init__(self) -> None:
        self.look()

    def look(self) -> None:
        """Read what they have used. Between two jobs nothing is added, so that one look a job is enough."""
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.cpu = used.ru_utime + used.ru_stime

    def are_left(self) -> bool:
        """Collect the dead; whether living ones are left. This process adopts what its own children leave."""
        collected = False
        try:
            while os.waitid(os.P_ALL, 0, _DEAD) is not None:
                collected = True
        except ChildProcessError:
            if collected:
                self.look()  # what they have used is nobody's, and not the next job's
            return False
        return True
