"""The worker: one supervising process, a template that has imported the app, and children that run task code."""

from __future__ import annotations

from jobrunner.worker.options import WorkerOptions, default_slots


def run(options: WorkerOptions) -> int:
    """Run one worker in this process until it is told to stop (or has drained). Returns its exit code: 0 after a clean end.

    Takes over SIGTERM and SIGINT, and Jobrunner's log, which goes to standard error.

    Raises:
        DatabaseUnreachable, SchemaError, AppImportError: before anything was claimed.
    """
    from jobrunner.worker.log import configure
    from jobrunner.worker.supervisor import Supervisor

    configure(options.log_format, options.log_level)
    return Supervisor(options).run()


__all__ = ["WorkerOptions", "default_slots", "run"]
