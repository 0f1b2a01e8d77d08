"""Owns what is printed and which code is returned when a command does not succeed.

It must not import a driver or Flask to recognise their errors: an error whose module was never imported cannot be raised.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import traceback
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from jobrunner import errors
from jobrunner.texts import redacted

if TYPE_CHECKING:
    from jobrunner.cli.shared import Shared

_EXIT_COLUMN = 72  # where `[exit N]` stands when the line before it is shorter
_LABEL = re.compile(r"^[a-z]+:\s")
_LABEL_WIDTH = 7  # of `tried: `, so that what follows the labels stands in one column


class Code(IntEnum):
    """Exit codes, the same for every command."""

    OK = 0
    BAD = 1
    USAGE = 2
    UNREACHABLE = 3
    SCHEMA = 4
    BUSY = 5
    NOT_FOUND = 6
    REFUSED = 7
    BUG = 70
    INTERRUPTED = 130
    TERMINATED = 143


class CommandError(errors.JobrunnerError):
    """A refusal of the command line itself, with its exit code."""

    def __init__(self, code: Code, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code


class Terminated(BaseException):
    """SIGTERM arrived while a command ran that has nothing to finish."""


_CODES: dict[type[BaseException], Code] = {
    errors.JobrunnerError: Code.USAGE,
    errors.DatabaseUnreachable: Code.UNREACHABLE,
    errors.EmbeddedError: Code.UNREACHABLE,
    errors.SchemaError: Code.SCHEMA,
    errors.UnknownTask: Code.NOT_FOUND,
    errors.JobNotFound: Code.NOT_FOUND,
    errors.GroupNotFound: Code.NOT_FOUND,
    errors.IllegalTransition: Code.REFUSED,
    errors.DuplicateJob: Code.REFUSED,
    errors.JobFailed: Code.BAD,
    errors.JobCancelled: Code.BAD,
    errors.ArchiveError: Code.BAD,
    errors.QueryTimeout: Code.BUSY,
    errors.LeaseLost: Code.BUG,
}


class Failure(NamedTuple):
    """What is to be said of an error: the exit code, a sentence without passwords, labelled lines on how to go on."""

    code: int
    message: str
    lines: tuple[str, ...] = ()


def report(error: BaseException, values: Shared) -> int:
    """Say on stderr what went wrong and how to go on. Returns the exit code; never raises for an error of its own."""
    match error:
        case click.UsageError():
            return _usage(error)
        case click.ClickException():
            return _say(Failure(Code.BAD, error.format_message()))
        case KeyboardInterrupt() | click.Abort() | EOFError():
            click.echo("interrupted", err=True)
            return Code.INTERRUPTED
        case Terminated():
            return Code.TERMINATED
        case BrokenPipeError():
            return _hush()
    if values.verbose:
        _print_traceback(error)
    return _say(describe(error))


def code_of(error: BaseException) -> int:
    """The exit code that stands for an error of a command."""
    match error:
        case CommandError():
            return error.code
        case errors.JobrunnerError():
            return next(_CODES[kind] for kind in type(error).__mro__ if kind in _CODES)
        case _:
            driver = _driver(error)
            return Code.BUG if driver is None else driver.code


def describe(error: BaseException) -> Failure:
    """What is to be said of an error. The traceback of one that nobody expected is saved to a file."""
    if not isinstance(error, errors.JobrunnerError):
        return _driver(error) or _bug(error)
    lines = [line for line in error.hint.splitlines() if line.strip()]
    message = str(error)
    if isinstance(error, errors.DatabaseUnreachable):
        message, lines = _unreachable(error, lines)
    return Failure(code_of(error), redacted(message), tuple(map(redacted, lines)))


def _unreachable(error: errors.DatabaseUnreachable, hints: list[str]) -> tuple[str, list[str]]:
    """The address without user and database in the sentence, all of it and its source below."""
    match = re.fullmatch(r"(?:(?P<user>[^@]*)@)?(?P<place>.*?)(?:/(?P<database>[^/]*))?", error.target)
    facts = [error.origin]
    place = error.target
    if match:
        place = match["place"] or error.target
        facts += [f"{name} {match[name]}" for name in ("user", "database") if match[name]]
    return f"cannot reach PostgreSQL at {place} ({error.reason})", [f"tried: {' · '.join(facts)}", *hints]


def _usage(error: click.UsageError) -> int:
    message = error.format_message().rstrip()
    lines: tuple[str, ...] = ()
    if error.ctx is not None:
        lines = (
            f"usage: {' '.join(error.ctx.command.get_usage(error.ctx).split()).removeprefix('Usage: ')}",
            f"see:   {error.ctx.command_path} --help",
        )
    return _say(Failure(Code.USAGE, message[:1].lower() + message[1:], lines))


def _say(failure: Failure) -> int:
    """`error: …`, the labelled lines below it, and the exit code at the end of the last."""
    first, *more = redacted(failure.message).splitlines() or [""]
    plain = [*("  " + line for line in more), *("  " + _labelled(redacted(line)) for line in failure.lines)]
    if plain:
        plain[-1] = f"{plain[-1]:<{_EXIT_COLUMN}}  [exit {int(failure.code)}]"
    else:
        first = f"{first}  [exit {int(failure.code)}]"
    click.echo(click.style("error:", fg="red", bold=True) + " " + "\n".join([first, *plain]), err=True)
    return failure.code


def _labelled(line: str) -> str:
    if line.startswith(" "):  # goes on from the line before
        return line
    if not _LABEL.match(line):
        return f"{'hint:':<{_LABEL_WIDTH}}{line}"
    label, _, text = line.partition(":")
    return f"{label + ':':<{_LABEL_WIDTH}}{'' if len(label) < _LABEL_WIDTH - 1 else ' '}{text.strip()}"


def _driver(error: BaseException) -> Failure | None:
    """Errors of the database that reach the command line as they are: a connection lost half-way, a missing right."""
    psycopg = sys.modules.get("psycopg")
    original: Any = getattr(error, "orig", None) or error
    if psycopg is None or not isinstance(original, psycopg.Error):
        return None
    text = redacted(" ".join(str(original).split()))
    state = getattr(original, "sqlstate", None)
    if isinstance(original, psycopg.OperationalError) and (state is None or state[:2] in {"08", "28", "53", "57"}):
        hint = "try:   the same command again; nothing half-done was kept"
        return Failure(Code.UNREACHABLE, f"the database stopped answering: {text}", (hint,))
    if state == "42501":  # insufficient_privilege
        hint = "hint:  the login has no right to do that; GRANT it, or use the owner's --dsn"
        return Failure(Code.REFUSED, f"the database refused: {text}", (hint,))
    if state == "25006":  # read_only_sql_transaction
        return Failure(Code.REFUSED, f"the database is read-only: {text}", ("hint:  this is a replica; give the primary with --dsn",))
    return None


def _bug(error: BaseException) -> Failure:
    text = redacted("".join(traceback.format_exception(error)))
    summary = redacted(f"{type(error).__name__}: {error}".splitlines()[0])
    try:
        descriptor, path = tempfile.mkstemp(prefix="jobrunner-", suffix=".traceback", text=True)
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError as problem:
        click.echo(text, err=True, nl=False)
        return Failure(Code.BUG, f"unexpected {summary}", (f"hint:  the traceback could not be saved ({problem.strerror}); it is above",))
    lines = (f"saved: {path}", "hint:  this is a bug in Jobrunner; please report it with that file")
    return Failure(Code.BUG, f"unexpected {summary}", lines)


def _print_traceback(error: BaseException) -> None:
    click.echo(redacted("".join(traceback.format_exception(error))), err=True, nl=False)


def _hush() -> int:
    """The reader of our output has left (`| head`): so do we, without a word, also when Python flushes at the end."""
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            os.dup2(null, stream.fileno())
    os.close(null)
    return Code.OK
