"""Owns `jobrunner work`: from options to a running worker. It must not import the application: the worker's own process does."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import click

from jobrunner.cli.engine import Engine, engine_options, serve_all, worker_options
from jobrunner.cli.failures import Code, CommandError
from jobrunner.cli.lazy import Command
from jobrunner.cli.shared import shared
from jobrunner.cli.target import announce, find_database
from jobrunner.cli.types import DURATION, QUEUES

if TYPE_CHECKING:
    from datetime import timedelta
    from typing import Unpack

    from jobrunner.cli.engine import Queues


@click.command(cls=Command)
@click.argument("names", metavar="[QUEUES]", type=QUEUES, required=False)
@click.option("--queues", type=QUEUES, metavar="QUEUES", help="The same as the argument: mail:4,default (a number bounds jobs at once).")
@click.option("--drain", is_flag=True, help="Leave when nothing is due and nothing runs.")
@click.option("--max-jobs", type=click.IntRange(min=1), metavar="NUMBER", help="Leave after so many jobs.")
@click.option(
    "--max-seconds", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", help="Take no more jobs after so long, and leave."
)
@click.option("--time-limit", type=DURATION, metavar="DURATION", help="Of an attempt of jobs that have none of their own.")
@click.option("--soft-time-limit", type=DURATION, metavar="DURATION", help="Likewise: SoftTimeLimitExceeded is raised in the task.")
@engine_options
def work(
    names: Queues | None,
    queues: Queues | None,
    *,
    drain: bool,
    max_jobs: int | None,
    max_seconds: float | None,
    time_limit: timedelta | None,
    soft_time_limit: timedelta | None,
    **engine: Unpack[Engine],
) -> None:
    """Run a worker for QUEUES, such as mail:4,default: at most 4 of mail at once. Default: the queue "default".

    With several databases one worker is started for each that has some of QUEUES, by default for all of them; --concurrency and the
    other options are for each of these workers. One whose database is away does not keep the others from their work.

    A first SIGTERM or Ctrl-C lets running jobs go on for --grace, then gives them back without using up an attempt; a second gives
    them back at once. Jobs that fail do not make the worker fail: it leaves with 0.
    """
    if names and queues:
        raise CommandError(Code.USAGE, "the queues are given twice: as an argument and as --queues")
    from jobrunner.cli.databases import Part, parts

    chosen = names or queues
    found = parts(chosen) or [Part(None, find_database(of_app=True), chosen or ())]
    for part in found:
        announce(part.dsn)
    from jobrunner.worker import run as run_worker
    from jobrunner.worker.log import configure

    values = shared()
    level = "DEBUG" if values.verbose else "ERROR" if values.quiet else "INFO"
    own: dict[str, Any] = {
        "kind": "drain" if drain else "daemon", "drain": drain, "max_jobs": max_jobs, "max_seconds": max_seconds,
        "time_limit": time_limit, "soft_time_limit": soft_time_limit,
    }  # fmt: skip

    def serve(part: Part) -> int:
        options = worker_options(part.dsn, part.queues, engine, **own)
        configure(engine["log_format"], level, database=part.name)
        # Until the worker has handlers of its own, SIGTERM ends this process as it ends any other.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        return run_worker(options).exit_code

    code = serve_all(found, serve, engine, level=level, restarts=not drain and max_jobs is None and max_seconds is None)
    click.get_current_context().exit(code)
