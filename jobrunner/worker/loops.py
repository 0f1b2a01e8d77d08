"""Owns a child that runs `async def` tasks side by side in one event loop.

It must not run anything that blocks: one such task holds up all others. What holds for threads holds here as well: memory, CPU
and processes are those of the whole child, and a coroutine is ended by cancelling it.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from typing import TYPE_CHECKING, Any, cast

from jobrunner.worker import capture, wire
from jobrunner.worker.executing import WallOnly, context_of, execute_async, flush_streams
from jobrunner.worker.limits import resident_bytes
from jobrunner.worker.voices import LoopEar, Outbox, Voice, pay

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobrunner.app import JobRunner
    from jobrunner.current import JobContext
    from jobrunner.tasks import Task
    from jobrunner.worker.child import Channels, Recycling


def serve(jobs: JobRunner, channels: Channels, recycling: Recycling, capacity: int) -> None:
    """Run up to `capacity` coroutines at once until the inbox closes or this process has had enough of them."""
    asyncio.run(_Child(jobs, channels, recycling, capacity).serve())


class _Child:
    def __init__(self, jobs: JobRunner, channels: Channels, recycling: Recycling, capacity: int) -> None:
        self.jobs, self.inbox, self.recycling, self.capacity = jobs, channels.inbox, recycling, capacity
        self.outbox = Outbox(channels.outbox)
        self.ear = LoopEar(channels.orders)
        self.running: set[asyncio.Task[Any]] = set()
        self.capturing: set[int] = set()
        self.streams = [capture.JobStream(self.outbox, name, self.capturing) for name in capture.LEVELS]
        self.count = 0
        self.listening = False
        self.left: asyncio.Future[None]

    async def serve(self) -> None:
        capture.install(self.outbox)
        sys.stdout, sys.stderr = self.streams
        self.loop = asyncio.get_running_loop()
        self.left = self.loop.create_future()
        self.loop.add_reader(self.ear.orders, self.ear.listen)
        self._take()
        await self.left
        while self.running:
            await asyncio.wait(self.running)

    def _take(self) -> None:
        """Begin what waits while there is room for it; hear of more only when nothing waits."""
        while not self.left.done() and len(self.running) < self.capacity:
            try:
                data = wire.receive_job(self.inbox, socket.MSG_DONTWAIT)
            except BlockingIOError:
                self._listen(wants=True)
                return
            if not data:
                self._leave()
                return
            self._begin(wire.decode_job(data))
        self._listen(wants=False)

    def _begin(self, job: wire.Assignment) -> None:
        self.count += 1
        coroutine = self.loop.create_task(self._run(job))
        self.running.add(coroutine)
        coroutine.add_done_callback(self._ended)
        if (why := self._enough()) is not None:
            self.outbox.send(["retire", why])
            self._leave()

    def _listen(self, *, wants: bool) -> None:
        if wants and not self.listening:
            self.loop.add_reader(self.inbox, self._take)
        elif self.listening and not wants:
            self.loop.remove_reader(self.inbox)
        self.listening = wants

    def _leave(self) -> None:
        self._listen(wants=False)
        if not self.left.done():
            self.left.set_result(None)

    def _ended(self, coroutine: asyncio.Task[Any]) -> None:
        self.running.discard(coroutine)
        if not self.listening:
            self._take()

    def _enough(self) -> str | None:
        if self.recycling.max_jobs is not None and self.count >= self.recycling.max_jobs:
            return "jobs"
        if self.recycling.max_memory is not None and (resident_bytes() or 0) > self.recycling.max_memory:
            return "memory"
        return None

    async def _run(self, job: wire.Assignment) -> None:
        task = self.jobs.registry.find(job.task)
        context = context_of(task, job, Voice(self.outbox, self.ear, job))
        if task is not None and task.running.capture_output:
            self.capturing.add(job.id)
        self.ear.began(context)
        try:
            line = await execute_async(self.jobs, context, job, WallOnly(), self._call(context))
        finally:
            self.ear.ended(context)
        if job.id in self.capturing:
            for stream in self.streams:
                stream.ended(context)
            self.capturing.discard(job.id)
        flush_streams()
        self.outbox.send(line)

    def _call(self, context: JobContext) -> Callable[..., Any]:
        async def call(task: Task[..., Any], /, *args: Any, **kwargs: Any) -> Any:
            self.ear.coroutines[context.id] = cast("asyncio.Task[Any]", asyncio.current_task())
            context.interruptible = True  # from here on a cancel strikes the job's code and not ours around it
            try:
                pay(context)
                return await task.fn(*args, **kwargs)
            except asyncio.CancelledError:
                if (error := self.ear.pending.pop(context.id, None)) is not None:
                    raise error from None
                raise
            finally:
                context.interruptible = False
                self.ear.coroutines.pop(context.id, None)
                self.ear.pending.pop(context.id, None)

        return call
