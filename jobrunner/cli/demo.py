"""Owns `jobrunner demo`: its options, its exit code, and where it looks for a database.

It must not do the demonstration (`jobrunner.demo` does) nor format it (`jobrunner.cli.demo_screen` does).
"""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import click

from jobrunner.cli.failures import Code, CommandError
from jobrunner.cli.lazy import Command
from jobrunner.cli.output import say, warn
from jobrunner.cli.ports import require_port
from jobrunner.cli.shared import shared
from jobrunner.cli.target import EMBEDDED, announce, reach, start_embedded

if TYPE_CHECKING:
    from jobrunner.cli.demo_screen import Screen
    from jobrunner.demo import Demo
    from jobrunner.settings import Dsn

HOST = "127.0.0.1"
FIRST_PORT = 5000
PORTS = 100  # tried from the first on
LIMIT = 2000  # files: less than half a minute of work for two cores


@click.command(cls=Command)
@click.option("--path", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="DIR", help="Analyse the files below it.")
@click.option("--limit", type=click.IntRange(min=1), default=LIMIT, show_default=True, metavar="NUMBER", help="At most so many files.")
@click.option("-c", "--workers", "slots", type=click.IntRange(min=1), metavar="NUMBER", help="Jobs at once.  [default: cores]")
@click.option("--port", type=click.IntRange(1, 65_535), metavar="NUMBER", help=f"Of the pages.  [default: {FIRST_PORT} or the next free]")
@click.option("--exit-when-done", is_flag=True, help="Do not go on serving the pages.")
def demo(path: Path | None, limit: int, slots: int | None, port: int | None, *, exit_when_done: bool) -> None:
    """See it work: a job for each Python file on this machine, in a real PostgreSQL, by a real worker, with real failures.

    The files of the standard library and of the installed packages are only read. Uses --dsn, JOBRUNNER_DSN or DATABASE_URL, else the
    embedded PostgreSQL, and a queue of its own; an app that is here is left alone. Ctrl-C ends everything but the embedded PostgreSQL.

    Exit 0: every job has ended, and those that make trouble ended as they had to. Exit 1: not so.
    """
    from jobrunner.cli.demo_screen import make_screen
    from jobrunner.demo import Demo, Interrupted, Settings, WorkerGone, find_sources, spread

    found = find_sources(path)
    if not found:
        raise CommandError(Code.USAGE, f"there is no Python file below {path}", hint="try:   jobrunner demo     (without --path)")
    free = _free_port(port)
    dsn = _database()
    code: int = Code.OK
    try:
        with contextlib.ExitStack() as stack:
            screen = stack.enter_context(make_screen())
            settings = Settings(dsn, spread(found, limit), len(found), free, slots, note=screen.note, progress=screen.progress)
            running = stack.enter_context(Demo(settings))
            code = _show(running, screen, dsn)
            if not exit_when_done:
                _serve(running)
    except WorkerGone as error:
        raise CommandError(Code.BAD, str(error), hint="hint:  jobs that still waited are cancelled; worker and pages have ended") from error
    except Interrupted as stopped:
        code = Code.INTERRUPTED if stopped.number == signal.SIGINT else Code.TERMINATED
        say("stopped before the end; jobs that still waited are cancelled")
    _take_leave(dsn)
    click.get_current_context().exit(code)


def _database() -> Dsn:
    """What was named outright, else the embedded one: somebody's app is not asked for its database to show a demonstration."""
    from jobrunner import migrate
    from jobrunner.settings import find_dsn

    dsn = announce(reach(find_dsn(shared().dsn) or start_embedded()))
    if done := migrate.upgrade(dsn.url):
        say(f"schema upgraded: ran {', '.join(done)}")
    return dsn


def _free_port(wanted: int | None) -> int:
    if wanted is not None:
        require_port(HOST, wanted)
        return wanted
    for port in range(FIRST_PORT, FIRST_PORT + PORTS):
        with contextlib.suppress(CommandError):
            require_port(HOST, port)
            return port
    raise CommandError(Code.BUSY, f"all ports from {FIRST_PORT} to {FIRST_PORT + PORTS - 1} are in use", hint="try:   --port 8800")


def _show(running: Demo, screen: Screen, dsn: Dsn) -> int:
    """From the start to the summary. Returns the exit code."""
    running.start()
    screen.introduce(running, running.write_jobs())
    summary = running.watch()
    surprises = running.surprises(summary)
    screen.conclude(running, summary, dsn)
    for surprise in surprises:
        warn(surprise)
    return Code.BAD if surprises else Code.OK


def _serve(running: Demo) -> None:
    from jobrunner.demo import Interrupted

    with contextlib.suppress(Interrupted):  # the way out, not a failure
        if running.pages_answer():
            say(f"Look around:  {running.url}     Worker {running.worker.pid} goes on: retry a job there, and it runs.     Ctrl-C ends")
            running.serve()
        else:
            warn(f"the pages do not answer: {running.pages.last_words()}")
    say("stopping …")


def _take_leave(dsn: Dsn) -> None:
    if dsn.origin == EMBEDDED:
        say("worker and pages have ended. The embedded PostgreSQL goes on, with the jobs in it; to stop it:  jobrunner db stop")
    else:
        say("worker and pages have ended; the jobs are in the database")
