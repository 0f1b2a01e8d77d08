"""Owns a child that runs jobs in threads of one process: cheap for work that waits; the process is what they share.

It must not be used where a job's memory, CPU or processes are to be held: nobody can tell them apart here. A thread cannot be
killed either: a job past its time limit is interrupted at its next Python instruction, else the whole child ends.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import selectors
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from jobrunner.worker import capture, wire
from jobrunner.worker.executing import ThreadSpent, context_of, execute, flush_streams, interruptible
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
    def __init__(self, jobs: JobRunner, channels: Channels, recycling: Recycling, capacity: int) -> None:
        self.jobs, self.inbox, self.recycling = jobs, channels.inbox, recycling
        self.outbox = Outbox(channels.outbox)
        self.ear = ThreadEar(channels.orders)
        self.capacity = capacity
        jobs.pool_size = max(jobs.pool_size, capacity)  # each thread may hold a connection for as long as its transactional job runs
        self.executor = ThreadPoolExecutor(capacity, thread_name_prefix="jobrunner-slot")
        self.busy = 0
        self.capturing: set[int] = set()
        self.streams = [capture.JobStream(self.outbox, name, self.capturing) for name in capture.LEVELS]
        self.done_read, self.done_write = socket.socketpair()

    def serve(self) -> None:
        capture.install(self.outbox)
        sys.stdout, sys.stderr = self.streams
        selector = selectors.DefaultSelector()
        selector.register(self.ear.orders, selectors.EVENT_READ)
        selector.register(self.done_read, selectors.EVENT_READ)
        count, listening, leaving = 0, False, False
        while True:
            wants = self.busy < self.capacity and not leaving
            if wants is not listening:
                selector.register(self.inbox, selectors.EVENT_READ) if wants else selector.unregister(self.inbox)
                listening = wants
            if leaving and not self.busy:
                return
            for key, _ in selector.select():
                if key.fileobj is self.inbox:
                    data = self._receive()
                    if data == b"":
                        leaving = True
                    elif data is not None:
                        count += 1
                        self.busy += 1
                        self.executor.submit(self._run, wire.decode_job(data))
                elif key.fileobj is self.done_read:
                    self.busy -= len(self.done_read.recv(4096))
                else:
                    self.ear.listen()
            if not leaving and (why := self._enough(count)) is not None:
                leaving = True
                self.outbox.send(["retire", why])

    def _receive(self) -> bytes | None:
        try:
            return wire.receive_job(self.inbox, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None  # the worker took it back

    def _enough(self, count: int) -> str | None:
        from jobrunner.worker.limits import resident_bytes

        if self.recycling.max_jobs is not None and count >= self.recycling.max_jobs:
            return "jobs"
        if self.recycling.max_memory is not None and (resident_bytes() or 0) > self.recycling.max_memory:
            return "memory"
        return None

    def _run(self, job: wire.Assignment) -> None:
        task = self.jobs.registry.find(job.task)
        context = context_of(task, job, Voice(self.outbox, self.ear, job))
        if task is not None and task.running.capture_output:
            self.capturing.add(job.id)
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
        self.done_write.send(b".")

    def _call(self, context: JobContext) -> Callable[..., Any]:
        def call(task: Task[..., Any], /, *args: Any, **kwargs: Any) -> Any:
            try:
                value = interruptible(context, task.fn, *args, **kwargs)
                if inspect.isawaitable(value):
                    with asyncio.Runner() as runner:
                        value = interruptible(context, runner.run, _await(value), context=contextvars.copy_context())
            finally:
                self.ear.leave(context)
            return value

        return call


async def _await(value: Any) -> Any:
    return await value
