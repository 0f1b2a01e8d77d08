"""Owns attempts without a worker: a claimed job, run in this process as a child would run it. Nothing here writes the outcome."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psycopg

from jobrunner.store import Store
from jobrunner.worker import wire
from jobrunner.worker.executing import WallOnly, context_of, execute

if TYPE_CHECKING:
    from jobrunner import JobRunner
    from jobrunner.current import JobContext, Voice
    from jobrunner.tasks import Task

LEASE = timedelta(seconds=30)
WORKER = {"name": "w", "host": "h", "pid": 1, "kind": "test", "version": "0", "queues": ["default"], "tasks": [], "slots": 1}


class Notes:
    """A voice that keeps what it is told."""

    def __init__(self) -> None:
        self.heard: list[tuple[float | None, str | None, str | None]] = []

    def note(self, fraction: float | None, text: str | None, checkpoint: str | None) -> None:
        """Keep it."""
        self.heard.append((fraction, text, checkpoint))

    def listen(self) -> None:
        """Nobody speaks."""


class Attempts:
    """Claims jobs of one application for a worker that exists as a row only.

    Attributes:
        store: on a connection of the worker's.
    """

    def __init__(self, jobs: JobRunner, dsn: str) -> None:
        self.jobs = jobs
        self.connection: psycopg.Connection[Any] = psycopg.connect(dsn, autocommit=True)
        self.store = Store(self.connection)
        worker_id = self.store.register_worker(WORKER, LEASE)
        assert worker_id is not None
        self.worker_id = worker_id

    def claim(self) -> wire.Assignment:
        """The next due job."""
        [job] = self.store.claim(self.worker_id, self.jobs.registry.names(), "default", 0, 1)
        return wire.decode_job(wire.encode_job(job))

    def context(self, job: wire.Assignment, voice: Voice | None = None) -> JobContext:
        """Of an attempt that is about to begin."""
        return context_of(self.jobs.registry.find(job.task), job, voice or Notes())

    def run(self, job: wire.Assignment | None = None, voice: Voice | None = None) -> list[Any]:
        """Run one attempt, of the next due job by default. Returns the line that a worker would get."""
        job = job or self.claim()
        context = self.context(job, voice)

        def call(task: Task[..., Any], /, *args: Any, **kwargs: Any) -> Any:
            context.interruptible = True
            try:
                return task.fn(*args, **kwargs)
            finally:
                context.interruptible = False

        return execute(self.jobs, context, job, WallOnly(), call)

    def supersede(self, job: wire.Assignment) -> None:
        """What a rescue and a claim by somebody else leave behind: the job runs under the next lease."""
        self.connection.execute("UPDATE jobrunner.jobs SET lease = lease + 1 WHERE id = %s", (job.id,))

    def close(self) -> None:
        """Give the connections back."""
        self.connection.close()
        self.jobs.close()
