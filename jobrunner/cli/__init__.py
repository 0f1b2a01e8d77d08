"""Owns the command line: `jobrunner …`, and the same group as `flask jobs …`.

It must not import a command before that command is called, nor the application for a command that only reads.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from typing import TYPE_CHECKING, Any, NoReturn

import click

from jobrunner.cli.lazy import Entry, LazyGroup
from jobrunner.cli.shared import Shared, shared

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

__all__ = ["cli", "main"]

ENTRIES = {
    "demo": Entry("jobrunner.cli.demo", "demo", "See it work: embedded PostgreSQL, a worker, traffic, the dashboard.", optional=True),
    "dev": Entry("jobrunner.cli.dev", "dev", "Develop: web server and worker in one terminal."),
    "work": Entry("jobrunner.cli.work", "work", "Run a worker."),
    "cron": Entry("jobrunner.cli.cron", "cron", "Run what is due and leave: for crontab."),
    "enqueue": Entry("jobrunner.cli.enqueue", "enqueue", "Write a job, or one per line of stdin."),
    "run": Entry("jobrunner.cli.run", "run", "Run a task here and now, without a job."),
    "jobs": Entry("jobrunner.cli.jobs", "jobs", "List, show, read the logs of, wait for, retry and cancel jobs."),
    "queue": Entry("jobrunner.cli.queue", "queue", "Message queues: put, get, look, and what is dead."),
    "topics": Entry("jobrunner.cli.topics", "topics", "Who gets the events of a topic; rewind and resume groups."),
    "workers": Entry("jobrunner.cli.workers", "workers", "List workers, and the runs of those that have ended."),
    "retention": Entry("jobrunner.cli.retention", "retention", "List and set how long finished jobs are kept."),
    "prune": Entry("jobrunner.cli.prune", "prune", "Remove finished jobs that are older than they are kept, now."),
    "status": Entry("jobrunner.cli.status", "status", "One screen: queues, workers, what is wrong."),
    "top": Entry("jobrunner.cli.top.command", "top", "Live: queues, throughput, and what runs, waits or failed."),
    "doctor": Entry("jobrunner.cli.doctor", "doctor", "Find out what keeps jobs from running; the crontab line."),
    "web": Entry("jobrunner.cli.web", "web", "Serve the dashboard."),
    "celery-worker": Entry("jobrunner.cli.celery_worker", "celery_worker", "Run a worker with the flags of celery worker."),
    "migrate-check": Entry("jobrunner.cli.migrate_check", "migrate_check", "List what code uses of Celery and the like, and what to do."),
    "db": Entry("jobrunner.cli.db", "db", "The schema, and the embedded PostgreSQL."),
}


class _Root(LazyGroup):
    """Turns every error below it into a text and an exit code, whichever door the command came through."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except (click.exceptions.Exit, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001  what a command raises, also an interrupt, ends as text and code
            ctx.exit(_report(error, shared(ctx)))
        return result


@click.group(
    cls=_Root,
    entries=ENTRIES,
    name="jobs",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Exit codes: 0 done, 1 what was asked about is bad, 2 usage, 3 no database, 4 schema, 5 busy, 6 not found, 7 refused, 70 bug.",
)
def cli() -> None:
    """Background jobs for Flask in PostgreSQL."""


def run(arguments: Sequence[str] | None = None) -> int:
    """The exit code of one command line; everything is printed."""
    with _own_streams_and_signals():
        try:
            # Not standalone: click's own way out ends in other exit codes and texts than ours.
            result = cli.main(args=None if arguments is None else list(arguments), prog_name="jobrunner", standalone_mode=False)
            sys.stdout.flush()
        except click.exceptions.Exit as exit_:
            return exit_.exit_code
        except BaseException as error:  # errors of the group's own options, an interrupt while it parses
            if isinstance(error, SystemExit):
                raise
            return _report(error, Shared(verbose="-v" in sys.argv or "--verbose" in sys.argv))
        return result if isinstance(result, int) else 0


def main() -> NoReturn:
    """The program."""
    code = run()
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.flush()
    sys.exit(code)


def _report(error: BaseException, values: Shared) -> int:
    from jobrunner.cli.failures import report

    return report(error, values)


@contextlib.contextmanager
def _own_streams_and_signals() -> Any:
    """Text that the terminal's encoding lacks is shown as escapes; SIGTERM unwinds the command."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(_number: int, _frame: FrameType | None) -> None:
    from jobrunner.cli.failures import Terminated

    raise Terminated
