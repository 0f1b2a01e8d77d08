"""Owns the options that every command has which runs a worker, and what becomes of them.

It must not import the worker before such a command runs.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

import click

from jobrunner.cli.failures import Code, CommandError, code_of
from jobrunner.cli.target import app_spec
from jobrunner.cli.types import DURATION, SIZE
from jobrunner.routing import HOME

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta

    from jobrunner.cli.databases import Part
    from jobrunner.settings import Dsn
    from jobrunner.worker import WorkerOptions

    Queues = tuple[tuple[str, int | None], ...]

F = TypeVar("F", bound="Callable[..., Any]")


class Engine(TypedDict):
    """The values of the shared options, as click passes them."""

    slots: int | None
    threads: int | None
    async_slots: int | None
    max_jobs_per_child: int | None
    max_memory_per_child: int | None
    name: str | None
    grace: timedelta
    lease: timedelta
    poll: timedelta
    no_listen: bool
    log_format: str


_NUMBER: dict[str, Any] = {"type": click.IntRange(min=1), "metavar": "NUMBER"}
_DURATION: dict[str, Any] = {"type": DURATION, "metavar": "DURATION", "show_default": True}

_OPTIONS = (
    click.option("-c", "--concurrency", "slots", **_NUMBER, help="Jobs at once, each in its process.  [default: cores]"),
    click.option("--threads", **_NUMBER, help="Run jobs in so many threads of one process instead."),
    click.option("--async-slots", **_NUMBER, help="Run async tasks in one event loop, so many at once."),
    click.option("--max-jobs-per-child", **_NUMBER, help="Replace a child process after so many jobs."),
    click.option("--max-memory-per-child", type=SIZE, metavar="SIZE", help="Replace a child that holds more, between jobs: 512MB."),
    click.option("--name", metavar="TEXT", help="As it is shown.  [default: host:pid]"),
    click.option("--grace", **_DURATION, default="30s", help="For running jobs when the worker has to leave."),
    click.option("--lease", **_DURATION, default="30s", help="After its death its jobs run again after this."),
    click.option("--poll", **_DURATION, default="1s", help="Longest pause between looks at the queues."),
    click.option("--no-listen", is_flag=True, help="No LISTEN connection: find new jobs by polling only."),
    click.option("--log-format", type=click.Choice(["logfmt", "json"]), default="logfmt", show_default=True, help="Of the log on stderr."),
)


def engine_options(command: F) -> F:
    """Give a command the options of a worker, after its own."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def worker_options(dsn: Dsn, queues: Queues | None, engine: Engine, **more: Any) -> WorkerOptions:
    """The options of a worker; `more` are those that the command decides by itself.

    Raises:
        CommandError, ConfigurationError: they contradict each other, or make no sense.
    """
    from jobrunner import keeping
    from jobrunner.maintenance.events import EventPruner, keep_events
    from jobrunner.maintenance.history import HistoryPruner
    from jobrunner.maintenance.pruner import Keep, Pruner
    from jobrunner.maintenance.references import ReferencePruner
    from jobrunner.maintenance.rollups import Settler
    from jobrunner.settings import DEFAULT_QUEUE
    from jobrunner.worker import WorkerOptions, default_slots

    if engine["slots"] and engine["threads"]:
        raise CommandError(Code.USAGE, "--concurrency is for processes, --threads for threads of one process: give one of them")
    keeping.from_environ()  # refused here, before anything is taken; the process that imports the app brings it to the database
    return WorkerOptions(
        dsn=dsn,
        app=app_spec(),
        queues=queues or ((DEFAULT_QUEUE, None),),
        slots=engine["slots"] or default_slots(),
        threads=engine["threads"] or 0,
        async_slots=engine["async_slots"] or 0,
        max_jobs_per_child=engine["max_jobs_per_child"],
        max_memory_per_child=engine["max_memory_per_child"],
        name=engine["name"],
        grace=engine["grace"],
        lease=engine["lease"],
        poll=engine["poll"],
        listen=not engine["no_listen"],
        chores=(Pruner(Keep.from_environ()), *HistoryPruner.from_environ(), Settler(), ReferencePruner(), EventPruner(keep_events())),
        code_of=code_of,
        **more,
    )


def serve_all(found: list[Part], serve: Callable[[Part], int], engine: Engine, *, level: str, restarts: bool) -> int:
    """Run the one worker here, or a fleet of one for each database. Returns the exit code."""
    if len(found) == 1:
        if found[0].name is not None:
            os.environ[HOME] = found[0].name
        return serve(found[0])
    from jobrunner.cli.fleet import run_all
    from jobrunner.worker.log import configure

    for part in found:
        worker_options(part.dsn, part.queues, engine, kind="daemon")  # what contradicts itself is said once, before anything starts
    configure(engine["log_format"], level)
    return run_all(found, serve, restarts=restarts)
