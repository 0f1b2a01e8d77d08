"""Owns a child that runs jobs in threads of one process: cheap for work that waits; the process is what they share.

It must not be used where a job's memory, CPU or processes are to be held: nobody can tell them apart here. A thread cannot be
killed either: a job past its time limit is interrupted at its next Python instruction, else the whole child ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import selectors
import socket
import sys
import threading
from typing import TYPE_CHECKING, Any

from jobrunner.worker import capture, wire
from jobrunner.worker.executing import ThreadSpent, context_of, execute, flush_streams, never_begin
from jobrunner.worker.limits import resident_bytes
from jobrunner.worker.voices import Outbox, ThreadEar, Voice

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobrunner.app import JobRunner
    from jobrunner.current import JobContext
    from jobrunner.tasks import Task
    from jobrunner.worker.child import Channels, Recycling


def serve(jobs: JobRunner, channels: Channels, recycling: Recycling, capacity: int) -> None:
    """Run up to `capacity` jobs at once until the inbox closes or this process has had enough of them."""
    _Child(jobs, channels, recycling, capacity).serve()


class _Child:
    """Each slot is a thread that takes jobs from the inbox itself; the main thread only hears the worker's orders."""

    def __init__(self, jobs: JobRunner, channels: Channels, recycling: Recycling, capacity: int) -> None:
        self.jobs, self.inbox, self.recycling = jobs, channels.inbox, recycling
        self.outbox = Outbox(channels.outbox)
        self.ear = ThreadEar(channels.orders)
        self.capacity = capacity
        jobs.pool_size = max(jobs.pool_size, capacity)  # each thread may hold a connection for as long as its transactional job runs
        self.capturing: set[int] = set()
        self.streams = [capture.JobStream(self.outbox, name, self.capturing) for name in capture.LEVELS]
        self.done_read, self.done_write = socket.socketpair()
        self.lock = threading.Lock()  # of the two below
        self.count = 0
        self.leaving = False

    def serve(self) -> None:
        capture.install(self.outbox)
        sys.stdout, sys.stderr = self.streams
        for number in range(self.capacity):
            threading.Thread(target=self._slot, name=f"jobrunner-slot-{number + 1}", daemon=True).start()
        with selectors.DefaultSelector() as selector:
            selector.register(self.ear.orders, selectors.EVENT_READ)
            selector.register(self.done_read, selectors.EVENT_READ)
            left = self.capacity
            while left:
                for key, _ in selector.select():
                    if key.fileobj is self.done_read:
                        left -= len(self.done_read.recv(4096))
                    else:
                        self.ear.listen()

    def _slot(self) -> None:
        """Run one job after the other. Once this child retires, the worker closes the inbox, which wakes the slots that wait."""
        with contextlib.suppress(BrokenPipeError, ConnectionError):  # the worker is gone
            while not self.leaving and (data := wire.receive_job(self.inbox)):
                with self.lock:
                    self.count += 1
                    if self.recycling.max_jobs is not None and self.count >= self.recycling.max_jobs:
                        self._retire("jobs")
                self._run(wire.decode_job(data))
                if self.recycling.max_memory is not None and (resident_bytes() or 0) > self.recycling.max_memory:
                    with self.lock:
                        self._retire("memory")
        self.done_write.send(b".")

    def _retire(self, why: str) -> None:
        if not self.leaving:
            self.leaving = True
            self.outbox.send(["retire", why])

    def _run(self, job: wire.Assignment) -> None:
        task = self.jobs.registry.find(job.task)
        context = context_of(task, job, Voice(self.outbox, self.ear, job))
        if task is not None and task.running.capture_output:
            self.capturing.add(job.id)
        with self.ear.lock:
            self.ear.threads[job.id] = threading.get_ident()
            self.ear.began(context)
        try:
            line = execute(self.jobs, context, job, ThreadSpent(), self._call(context))
        finally:
            with self.ear.lock:
                self.ear.ended(context)
                self.ear.threads.pop(job.id, None)
        if job.id in self.capturing:
            for stream in self.streams:
                stream.ended(context)
            self.capturing.discard(job.id)
        flush_streams()
        self.outbox.send(line)

    def _call(self, context: JobContext) -> Callable[..., Any]:
        def call(task: Task[..., Any], /, *args: Any, **kwargs: Any) -> Any:
            try:
                self.ear.enter(context)
                value = task.fn(*args, **kwargs)
            finally:
                self.ear.leave(context)
            if value is not None and inspect.isawaitable(value):
                with asyncio.Runner() as runner:
                    value = runner.run(self._await(context, value), context=contextvars.copy_context())
            return value

        return call

    async def _await(self, context: JobContext, value: Any) -> Any:
        """Run a coroutine to its end. An interrupt cancels it: an exception from nowhere would break its event loop."""
        inner = asyncio.ensure_future(_awaited(value))  # a task of its own, so that what is cancelled is the job's code alone
        with self.ear.lock:
            self.ear.coroutines[context.id] = inner
            context.interruptible = True
            if context.owed is not None:  # it came after the function had given this coroutine, and before anything may interrupt it
                self.ear.pending[context.id], context.owed = context.owed, None
                never_begin(value)
                inner.cancel()
        try:
            return await inner
        except asyncio.CancelledError:
            if (error := self.ear.pending.pop(context.id, None)) is not None:
                raise error from None
            raise
        finally:
            with self.ear.lock:
                context.interruptible = False
                self.ear.coroutines.pop(context.id, None)
                self.ear.pending.pop(context.id, None)


async def _awaited(value: Any) -> Any:
    return await value
