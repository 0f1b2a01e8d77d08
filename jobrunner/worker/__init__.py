"""The worker: one supervising process, a template that has imported the app, and children that run task code."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobrunner.worker.options import WorkerOptions, default_slots

if TYPE_CHECKING:
    from jobrunner.worker.registration import Departure


def run(options: WorkerOptions) -> Departure:
    """Run one worker in this process until it is told to stop, has drained or is out of time.

    Takes over SIGTERM and SIGINT. Its log is that of `jobrunner.worker.log.configure`.

    Returns:
        Why it left, with its exit code: 0 after a clean end.

    Raises:
        DatabaseUnreachable, SchemaError, AppImportError: before anything was claimed.
    """
    from jobrunner.worker.supervisor import Supervisor

    return Supervisor(options).run()


__all__ = ["WorkerOptions", "default_slots", "run"]
