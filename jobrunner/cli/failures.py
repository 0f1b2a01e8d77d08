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
from typing import TYPE_CHECKING, Any

import click

from jobrunner import errors

if TYPE_CHECKING:
    from jobrunner.cli.shared import Shared

_EXIT_COLUMN = 72  # where `[exit N]` stands when the line before it is shorter
_LABEL = re.compile(r"^[a-z]+:\s")
_LABEL_WIDTH = 7  # of `tried: `, so that what follows the labels stands in one column
_PASSWORD = re.compile(r"(?P<before>://[^\s:/@]*:)[^\s@]+(?=@)|(?P<key>\bpassword\s*=\s*)('[^']*'|[^\s&'\"]+)", re.IGNORECASE)


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
    errors.IllegalTransition: Code.REFUSED,
    errors.DuplicateJob: Code.REFUSED,
    errors.JobFailed: Code.BAD,
    errors.JobCancelled: Code.BAD,
    errors.QueryTimeout: Code.BUSY,
    errors.LeaseLost: Code.BUG,
}


def report(error: BaseException, values: Shared) -> int:  # noqa: PLR0911  a table
    """Say on stderr what went wrong and how to go on. Returns the exit code; never raises for an error of its own."""
    match error:
        case click.UsageError():
            return _usage(error)
        case click.ClickException():
            return _say(Code.BAD, error.format_message())
        case KeyboardInterrupt() | click.Abort() | EOFError():
            click.echo("interrupted", err=True)
            return Code.INTERRUPTED
        case Terminated():
            return Code.TERMINATED
        case BrokenPipeError():
            return _hush()
        case CommandError():
            return _known(error, error.code, values)
        case errors.JobrunnerError():
            return _known(error, _code_of(error), values)
        case _:
            return _driver(error, values) or _bug(error, values)


def redact(text: str) -> str:
    """`text` without passwords, as they stand in addresses and connection strings."""
    return _PASSWORD.sub(lambda match: f"{match['before'] or match['key']}***", text)


def _code_of(error: errors.JobrunnerError) -> Code:
    return next(_CODES[kind] for kind in type(error).__mro__ if kind in _CODES)


def _known(error: errors.JobrunnerError, code: Code, values: Shared) -> int:
    if values.verbose:
        _print_traceback(error)
    lines = [line for line in error.hint.splitlines() if line.strip()]
    message = str(error)
    if isinstance(error, errors.DatabaseUnreachable):
        message, lines = _unreachable(error, lines)
    return _say(code, message, *lines)


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
    lines = []
    if error.ctx is not None:
        lines = [
            f"usage: {' '.join(error.ctx.command.get_usage(error.ctx).split()).removeprefix('Usage: ')}",
            f"see:   {error.ctx.command_path} --help",
        ]
    return _say(Code.USAGE, message[:1].lower() + message[1:], *lines)


def _say(code: Code, message: str, *lines: str) -> int:
    """`error: …`, the labelled lines below it, and the exit code at the end of the last."""
    first, *more = redact(message).splitlines() or [""]
    plain = [*("  " + line for line in more), *("  " + _labelled(redact(line)) for line in lines)]
    if plain:
        plain[-1] = f"{plain[-1]:<{_EXIT_COLUMN}}  [exit {int(code)}]"
    else:
        first = f"{first}  [exit {int(code)}]"
    click.echo(click.style("error:", fg="red", bold=True) + " " + "\n".join([first, *plain]), err=True)
    return code


def _labelled(line: str) -> str:
    if line.startswith(" "):  # goes on from the line before
        return line
    if not _LABEL.match(line):
        return f"{'hint:':<{_LABEL_WIDTH}}{line}"
    label, _, text = line.partition(":")
    return f"{label + ':':<{_LABEL_WIDTH}}{'' if len(label) < _LABEL_WIDTH - 1 else ' '}{text.strip()}"


def _driver(error: BaseException, values: Shared) -> int | None:
    """Errors of the database that reach the command line as they are: a connection lost half-way, a missing right."""
    psycopg = sys.modules.get("psycopg")
    original: Any = getattr(error, "orig", None) or error
    if psycopg is None or not isinstance(original, psycopg.Error):
        return None
    if values.verbose:
        _print_traceback(error)
    text = " ".join(str(original).split())
    state = getattr(original, "sqlstate", None)
    if isinstance(original, psycopg.OperationalError) and (state is None or state[:2] in {"08", "28", "53", "57"}):
        return _say(
            Code.UNREACHABLE, f"the database stopped answering: {text}", "try:   the same command again; nothing half-done was kept"
        )
    if state == "42501":  # insufficient_privilege
        return _say(
            Code.REFUSED, f"the database refused: {text}", "hint:  the login has no right to do that; GRANT it, or use the owner's --dsn"
        )
    if state == "25006":  # read_only_sql_transaction
        return _say(Code.REFUSED, f"the database is read-only: {text}", "hint:  this is a replica; give the primary with --dsn")
    return None


def _bug(error: BaseException, values: Shared) -> int:
    text = redact("".join(traceback.format_exception(error)))
    if values.verbose:
        click.echo(text, err=True, nl=False)
    summary = redact(f"{type(error).__name__}: {error}".splitlines()[0])
    try:
        descriptor, path = tempfile.mkstemp(prefix="jobrunner-", suffix=".traceback", text=True)
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError as problem:
        click.echo(text, err=True, nl=False)
        return _say(Code.BUG, f"unexpected {summary}", f"hint:  the traceback could not be saved ({problem.strerror}); it is above")
    return _say(Code.BUG, f"unexpected {summary}", f"saved: {path}", "hint:  this is a bug in Jobrunner; please report it with that file")


def _print_traceback(error: BaseException) -> None:
    click.echo(redact("".join(traceback.format_exception(error))), err=True, nl=False)


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
