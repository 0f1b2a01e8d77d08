"""Owns `jobrunner work`: from options to a running worker. It must not import the application: the worker's own process does."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import click

from jobrunner.cli.failures import Code, CommandError
from jobrunner.cli.lazy import Command
from jobrunner.cli.shared import shared
from jobrunner.cli.target import announce, app_spec, find_database
from jobrunner.cli.types import DURATION, QUEUES, SIZE

if TYPE_CHECKING:
    from datetime import timedelta

    Queues = tuple[tuple[str, int | None], ...]


@click.command(cls=Command)
@click.argument("names", metavar="[QUEUES]", type=QUEUES, required=False)
@click.option("--queues", type=QUEUES, metavar="QUEUES", help="The same as the argument: mail:4,default (a number bounds jobs at once).")
@click.option(
    "-c",
    "--concurrency",
    "slots",
    type=click.IntRange(min=1),
    metavar="NUMBER",
    help="Jobs at once, each in its process.  [default: cores]",
)
@click.option("--threads", type=click.IntRange(min=1), metavar="NUMBER", help="Run jobs in so many threads of one process instead.")
@click.option("--async-slots", type=click.IntRange(min=1), metavar="NUMBER", help="Run async tasks in one event loop, so many at once.")
@click.option("--max-jobs-per-child", type=click.IntRange(min=1), metavar="NUMBER", help="Replace a child process after so many jobs.")
@click.option("--max-memory-per-child", type=SIZE, metavar="SIZE", help="Replace a child that holds more, between jobs: 512MB.")
@click.option("--name", metavar="TEXT", help="As it is shown.  [default: host:pid]")
@click.option("--drain", is_flag=True, help="Leave when nothing is due and nothing runs; for cron.")
@click.option(
    "--grace", type=DURATION, default="30s", show_default=True, metavar="DURATION", help="For running jobs after SIGTERM or Ctrl-C."
)
@click.option(
    "--lease", type=DURATION, default="30s", show_default=True, metavar="DURATION", help="After its death its jobs run again after this."
)
@click.option(
    "--poll", type=DURATION, default="1s", show_default=True, metavar="DURATION", help="Longest pause between looks at the queues."
)
@click.option("--no-listen", is_flag=True, help="No LISTEN connection: find new jobs by polling only.")
@click.option("--max-jobs", type=click.IntRange(min=1), metavar="NUMBER", help="Leave after so many jobs.")
@click.option(
    "--max-seconds", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", help="Take no more jobs after so long, and leave."
)
@click.option("--log-format", type=click.Choice(["logfmt", "json"]), default="logfmt", show_default=True, help="Of the log on stderr.")
def work(
    names: Queues | None,
    queues: Queues | None,
    *,
    slots: int | None,
    threads: int | None,
    async_slots: int | None,
    max_jobs_per_child: int | None,
    max_memory_per_child: int | None,
    name: str | None,
    drain: bool,
    grace: timedelta,
    lease: timedelta,
    poll: timedelta,
    no_listen: bool,
    max_jobs: int | None,
    max_seconds: float | None,
    log_format: str,
) -> None:
    """Run a worker for QUEUES, such as mail:4,default: at most 4 of mail at once. Default: the queue "default".

    A first SIGTERM or Ctrl-C lets running jobs go on for --grace, then gives them back without using up an attempt; a second gives
    them back at once. Jobs that fail do not make the worker fail: it leaves with 0.
    """
    if names and queues:
        raise CommandError(Code.USAGE, "the queues are given twice: as an argument and as --queues")
    if slots and threads:
        raise CommandError(Code.USAGE, "--concurrency is for processes, --threads for threads of one process: give one of them")
    dsn = announce(find_database(of_app=True))
    from jobrunner.settings import DEFAULT_QUEUE
    from jobrunner.worker import WorkerOptions, default_slots
    from jobrunner.worker import run as run_worker

    values = shared()
    options = WorkerOptions(
        dsn=dsn,
        app=app_spec(),
        queues=names or queues or ((DEFAULT_QUEUE, None),),
        slots=slots or default_slots(),
        threads=threads or 0,
        async_slots=async_slots or 0,
        max_jobs_per_child=max_jobs_per_child,
        max_memory_per_child=max_memory_per_child,
        name=name,
        kind="drain" if drain else "daemon",
        drain=drain,
        grace=grace,
        lease=lease,
        poll=poll,
        listen=not no_listen,
        max_jobs=max_jobs,
        max_seconds=max_seconds,
        log_format=log_format,
        log_level="DEBUG" if values.verbose else "ERROR" if values.quiet else "INFO",
    )
    # Until the worker has handlers of its own, SIGTERM ends this process as it ends any other.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    click.get_current_context().exit(run_worker(options))
