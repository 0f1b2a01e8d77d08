"""Owns `jobrunner celery-worker`: Celery's worker command line, translated into `jobrunner work` and run.

It must not import the application in this process, nor pass over in silence what it cannot do.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jobrunner.cli.failures import Code, CommandError
from jobrunner.cli.lazy import Command
from jobrunner.cli.output import say, warn
from jobrunner.cli.shared import shared
from jobrunner.cli.types import DURATION

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import FrameType

    from jobrunner.cli.celery_flags import AppFacts

_WORDS = frozenset({"celery", "worker"})  # that may stand on the line as they did
_INSTEAD = {
    "beat": "schedules are not there yet, they come with Jobrunner's own; go on with `celery beat` or cron",
    "flower": "jobrunner web", "events": "jobrunner top", "inspect": "jobrunner workers, jobrunner status",
    "status": "jobrunner workers", "control": "jobrunner jobs cancel", "purge": "jobrunner celery-worker --purge",
    "call": "jobrunner enqueue", "result": "jobrunner jobs show", "shell": "flask shell",
    "multi": "one command for each worker, started by systemd, supervisor or a container",
}  # fmt: skip
_LONGEST = 10**9  # seconds of a limit: above thirty years nobody meant it
_SHORTEST = 0.001  # seconds of one: `work` takes milliseconds
_FILE_MODE = 0o644  # of pid and log files, before the umask


class _Level(click.ParamType):  # type: ignore[type-arg]  # generic only in newer releases of click
    """A level of logging by its name, in any case, or its number."""

    name = "level"
    known = ("DEBUG", "INFO", "WARNING", "WARN", "ERROR", "CRITICAL", "FATAL")

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        import logging

        text = str(value).upper()
        text = logging.getLevelName(int(text)) if text.isdigit() else text
        if text not in self.known:
            self.fail(f"{value!r} is none of {', '.join(self.known)}", param, ctx)
        return text


class _List(click.ParamType):  # type: ignore[type-arg]  # generic only in newer releases of click
    """Names with commas between them."""

    name = "names"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:  # noqa: ARG002
        return value if isinstance(value, tuple) else tuple(part.strip() for part in str(value).split(",") if part.strip())


class _Autoscale(click.ParamType):  # type: ignore[type-arg]  # generic only in newer releases of click
    """`10,3`: the most and the least processes, in either order."""

    name = "autoscale"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        parts = str(value).split(",")
        if len(parts) > 2 or not all(part.strip().isdigit() for part in parts) or not any(map(int, parts)):  # noqa: PLR2004  max,min
            self.fail(f"{value!r} is not MAX,MIN, such as 10,3", param, ctx)
        return tuple(map(int, parts))


class _Concurrency(click.ParamType):  # type: ignore[type-arg]  # generic only in newer releases of click
    name = "concurrency"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not (str(value).isdigit() or str(value).lower() == "auto"):
            self.fail(f"{value!r} is neither a number nor auto", param, ctx)
        return str(value).lower()


class _Limit(click.FloatRange):
    """Seconds of a time limit; 0 is none."""

    def __init__(self) -> None:
        super().__init__(min=0, max=_LONGEST)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        seconds: float = super().convert(value, param, ctx)
        if 0 < seconds < _SHORTEST:
            self.fail(f"{value} is neither 0, for none, nor {_SHORTEST} at least", param, ctx)
        return seconds


_POSITIVE: dict[str, Any] = {"type": click.IntRange(min=1), "metavar": "NUMBER"}
_SECONDS: dict[str, Any] = {"type": _Limit(), "metavar": "SECONDS"}
_TEXT: dict[str, Any] = {"metavar": "TEXT"}
_FILE: dict[str, Any] = {"metavar": "FILE"}
_NAMES: dict[str, Any] = {"type": _List(), "metavar": "NAMES"}
_IGNORED: dict[str, Any] = {"is_flag": True, "help": "Taken and ignored, with a notice."}
_REFUSED = "Refused, with what to do instead."


@click.command("celery-worker", cls=Command)
@click.argument("words", nargs=-1, metavar="[celery] [worker]")
@click.option("-A", "celery_app", metavar="MODULE:NAME", help="The Celery app, found as Celery finds it. --app is the same here.")
@click.option("-Q", "--queues", **_NAMES, help="Queues to serve.  [default: those that the app declares]")
@click.option("-X", "--exclude-queues", **_NAMES, help="Of the app's queues not these.")
@click.option("-c", "--concurrency", type=_Concurrency(), metavar="NUMBER|auto", help="Jobs at once.  [default: worker_concurrency, cores]")
@click.option("-P", "--pool", **_TEXT, help="prefork, threads or solo.  [default: worker_pool, prefork]")
@click.option("--autoscale", type=_Autoscale(), metavar="MAX,MIN", help="MAX slots, from the start.")
@click.option("-l", "--loglevel", "level", type=_Level(), metavar="LEVEL", help="debug, info, …: of what tasks and the worker log.")
@click.option("-f", "--logfile", **_FILE, help="Append the log to it instead of stderr; %h, %n, %d and %p are replaced.")
@click.option("--pidfile", **_FILE, help="Write the process id into it; leave with 5 when another worker holds it.")
@click.option("-n", "--hostname", **_TEXT, help="Name of the worker, such as w1@%h.  [default: celery@%h]")
@click.option("--max-tasks-per-child", **_POSITIVE, help="Replace a child process after so many jobs.")
@click.option("--max-memory-per-child", type=click.IntRange(min=1), metavar="KIB", help="Replace a child that holds more, between jobs.")
@click.option("--time-limit", **_SECONDS, help="Of tasks that set none: their process is killed.")
@click.option("--soft-time-limit", **_SECONDS, help="Of tasks that set none: SoftTimeLimitExceeded is raised in them.")
@click.option("--purge", "--discard", is_flag=True, help="First cancel what waits in the queues; it stays on record.")
@click.option("--grace", type=DURATION, metavar="DURATION", help="Ours: how long jobs may go on after SIGTERM.  [default: till they end]")
@click.option("-b", "--broker", metavar="URL", help="The database when it is PostgreSQL's; else ignored, with a notice.")
@click.option("--workdir", type=click.Path(exists=True, file_okay=False), metavar="DIR", help="Change to it first.")
@click.option("--umask", **_TEXT, help="Of files that are made; octal.")
@click.option("-C", "plain", is_flag=True, help="No colours, as --no-color.")
@click.option("-E", "--task-events", "--events", **_IGNORED)
@click.option("-O", "--optimization", **_TEXT, help="Taken and ignored, with a notice.")
@click.option("--without-gossip", **_IGNORED)
@click.option("--without-mingle", **_IGNORED)
@click.option("--without-heartbeat", **_IGNORED)
@click.option("--heartbeat-interval", **_TEXT, help="Taken and ignored, with a notice.")
@click.option("--prefetch-multiplier", **_TEXT, help="Taken and ignored, with a notice.")
@click.option("--disable-prefetch", **_IGNORED)
@click.option("-S", "--statedb", **_FILE, help="Taken and ignored, with a notice.")
@click.option("-s", "--schedule-filename", "--schedule", **_FILE, help="Taken and ignored, with a notice.")
@click.option("--result-backend", metavar="URL", help="Taken and ignored, with a notice.")
@click.option("--skip-checks", **_IGNORED)
@click.option("--pool-start-method", type=click.Choice(["fork", "spawn"]), help="fork is what is done; spawn is refused.")
@click.option("-B", "--beat", is_flag=True, help=_REFUSED)
@click.option("--scheduler", **_TEXT, help=_REFUSED)
@click.option("-D", "--detach", is_flag=True, help=_REFUSED)
@click.option("--uid", **_TEXT, help=_REFUSED)
@click.option("--gid", **_TEXT, help=_REFUSED)
@click.option("--executable", **_FILE, help=_REFUSED)
@click.option("-I", "--include", **_NAMES, help=_REFUSED)
@click.option("--loader", **_TEXT, help=_REFUSED)
@click.option("--config", **_TEXT, help=_REFUSED)
def celery_worker(words: tuple[str, ...], celery_app: str | None, workdir: str | None, *, plain: bool, purge: bool, **given: Any) -> None:
    """Run a worker with the command line of `celery worker`: it is translated into `jobrunner work`, printed and run.

    What is not given comes from the app's configuration, as in Celery. SIGTERM is a warm shutdown: running jobs are waited for. SIGQUIT
    is a cold one, after worker_soft_shutdown_timeout: they are given back without using up an attempt.
    """
    from jobrunner.cli import celery_flags

    _check_words(words)
    celery_flags.refuse(given)
    if workdir:
        os.chdir(workdir)
    if plain:
        shared().color = False
    if given["umask"]:
        os.umask(_octal(given["umask"]))
    if given["grace"] is not None:
        given["grace"] = f"{given['grace'].total_seconds():g}s"
    facts = _facts(celery_app)
    found = celery_flags.translate(given, facts)
    _take_broker(given["broker"])
    for label, lines in (("ignored", found.ignored), ("notice", found.notices)):
        for line in lines:
            say(line, label=label)
    node = celery_flags.node_name(given["hostname"])
    arguments = [*_passed_on(), *found.arguments]
    os.environ.update(found.environ)
    _say_native(arguments, found.environ)
    with contextlib.ExitStack() as stack:
        if given["pidfile"]:
            stack.enter_context(_pid_file(Path(celery_flags.file_name(given["pidfile"], node))))
        if given["logfile"]:
            _log_to(Path(celery_flags.file_name(given["logfile"], node)))
        if purge:
            _purge(arguments)
        stack.enter_context(_cold_at_quit(found.soft))
        from jobrunner.cli import run

        code = run(arguments)
    click.get_current_context().exit(code)


def _check_words(words: tuple[str, ...]) -> None:
    for word in words:
        if word not in _WORDS:
            instead = _INSTEAD.get(word, "jobrunner --help")
            raise CommandError(Code.USAGE, f"{word!r} is no part of a worker's command line", hint=f"instead:  {instead}")


def _octal(text: str) -> int:
    try:
        return int(text, 8)
    except ValueError as error:
        raise CommandError(Code.USAGE, f"--umask {text!r} is not an octal number, such as 022") from error


def _facts(celery_app: str | None) -> AppFacts:
    """What the app says; one that is given in a form that only Jobrunner knows is left to the worker."""
    from jobrunner.cli.celery_app import ask
    from jobrunner.cli.celery_flags import AppFacts
    from jobrunner.cli.target import app_spec

    named = shared().app
    if celery_app and named and celery_app != named:
        raise CommandError(Code.USAGE, f"-A {celery_app} and --app {named} name two apps: give one of them")
    spec = celery_app or named or os.environ.get("CELERY_APP") or app_spec() or os.environ.get("JOBRUNNER_APP")
    if not spec:
        raise CommandError(Code.USAGE, "there is no app: -A is missing", hint="try:   jobrunner celery-worker -A module:attribute")
    return AppFacts(spec) if "/" in spec or spec.endswith((".py", ")")) else ask(spec)


def _take_broker(url: str | None) -> None:
    """A PostgreSQL address is the database, unless one is named in our own way."""
    if url is None:
        return
    if not url.startswith(("postgresql:", "postgres:", "postgresql+")):
        say("-b: there is no broker; jobs are rows of the database", label="ignored")
    elif shared().dsn is None and not os.environ.get("JOBRUNNER_DSN"):
        os.environ["JOBRUNNER_DSN"] = url
    else:
        warn("-b names a database, and so does --dsn or JOBRUNNER_DSN: the latter is used")


def _passed_on() -> list[str]:
    """The global options of this command line, for the one that is run."""
    values = shared()
    found = [*(["--dsn", values.dsn] if values.dsn else []), *(["--database", values.database] if values.database else [])]
    return found + [flag for flag, on in (("-q", values.quiet), ("-v", values.verbose), ("--no-color", values.color is False)) if on]


def _say_native(arguments: list[str], environ: Mapping[str, str]) -> None:
    from jobrunner.texts import redacted

    words = [*(f"{name}={value}" for name, value in environ.items()), "jobrunner", *arguments]
    say(redacted(shlex.join(words)), label="native")


@contextlib.contextmanager
def _pid_file(path: Path) -> Iterator[None]:
    """Hold a file with the process id in it for as long as the worker runs; one that was left behind by a dead process is replaced."""
    holder = _holder(path)
    if holder is not None:
        raise CommandError(Code.BUSY, f"process {holder} runs, and has the pid file {path}", hint="see:   jobrunner workers list")
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, _FILE_MODE)
    except FileExistsError as error:
        raise CommandError(Code.BUSY, f"another worker has just taken the pid file {path}") from error
    except OSError as error:
        raise CommandError(Code.USAGE, f"the pid file {path} cannot be written: {error.strerror}") from error
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(f"{os.getpid()}\n")
    try:
        yield
    finally:
        if _holder(path) == os.getpid():
            path.unlink()


def _holder(path: Path) -> int | None:
    """The process that a pid file names, when it is alive."""
    try:
        pid = int(path.read_text(encoding="ascii").strip())
    except (OSError, ValueError):
        return None
    try:
        os.kill(pid, 0)
    except PermissionError:
        return pid  # alive, and another user's
    except (ProcessLookupError, OverflowError):
        return None
    return pid


def _log_to(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, _FILE_MODE)
    except OSError as error:
        raise CommandError(Code.USAGE, f"the log file {path} cannot be written: {error.strerror}") from error
    sys.stderr.flush()
    os.dup2(descriptor, sys.stderr.fileno())
    os.close(descriptor)


@contextlib.contextmanager
def _cold_at_quit(soft: float) -> Iterator[None]:
    """SIGQUIT counts as two SIGTERMs: the second at once, or after the time that Celery's soft shutdown has. Another SIGQUIT ends that."""
    told: list[int] = []

    def quit_(_number: int, frame: FrameType | None) -> None:
        told.append(1)
        _terminate(frame)
        if soft and len(told) == 1:
            timer = threading.Timer(soft, os.kill, (os.getpid(), signal.SIGTERM))
            timer.daemon = True
            timer.start()
        else:
            _terminate(frame)

    before = signal.signal(signal.SIGQUIT, quit_)
    try:
        yield
    finally:
        signal.signal(signal.SIGQUIT, before)


def _terminate(frame: FrameType | None) -> None:
    """What SIGTERM does. The handler is called and no signal sent: two of a kind at once are one to a process."""
    handler = signal.getsignal(signal.SIGTERM)
    if callable(handler):
        handler(signal.SIGTERM, frame)
    else:
        signal.raise_signal(signal.SIGTERM)


def _purge(arguments: list[str]) -> None:
    """Cancel what waits in the queues that are about to be served."""
    from jobrunner.cli.celery_purge import purge

    behind = arguments[arguments.index("work") + 1 :]
    queues = behind[0].split(",") if behind and not behind[0].startswith("-") else []
    say(f"{purge(queues):,} waiting jobs were cancelled", label="purged")
