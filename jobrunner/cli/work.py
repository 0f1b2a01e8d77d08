"""Owns `jobrunner work`: from options to a running worker. It must not import the application: the worker's own process does."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import click

from jobrunner.cli.engine import Engine, engine_options, worker_options
from jobrunner.cli.failures import Code, CommandError
from jobrunner.cli.lazy import Command
from jobrunner.cli.shared import shared
from jobrunner.cli.target import announce, find_database
from jobrunner.cli.types import QUEUES

if TYPE_CHECKING:
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
@engine_options
def work(
    names: Queues | None,
    queues: Queues | None,
    *,
    drain: bool,
    max_jobs: int | None,
    max_seconds: float | None,
    **engine: Unpack[Engine],
) -> None:
    """Run a worker for QUEUES, such as mail:4,default: at most 4 of mail at once. Default: the queue "default".

    A first SIGTERM or Ctrl-C lets running jobs go on for --grace, then gives them back without using up an attempt; a second gives
    them back at once. Jobs that fail do not make the worker fail: it leaves with 0.
    """
    if names and queues:
        raise CommandError(Code.USAGE, "the queues are given twice: as an argument and as --queues")
    dsn = announce(find_database(of_app=True))
    from jobrunner.worker import run as run_worker
    from jobrunner.worker.log import configure

    kind = "drain" if drain else "daemon"
    options = worker_options(dsn, names or queues, engine, kind=kind, drain=drain, max_jobs=max_jobs, max_seconds=max_seconds)
    values = shared()
    configure(engine["log_format"], "DEBUG" if values.verbose else "ERROR" if values.quiet else "INFO")
    # Until the worker has handlers of its own, SIGTERM ends this process as it ends any other.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    click.get_current_context().exit(run_worker(options).exit_code)
