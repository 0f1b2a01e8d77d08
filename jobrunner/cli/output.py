"""Owns how data leaves a command: a rich table on a terminal, aligned text in a pipe, one JSON document with `--json`.

It must not print anything but data on stdout; talk goes to stderr. Text from rows is shown without its control characters:
a job's arguments must not move the cursor of the operator who looks at them.
"""

from __future__ import annotations

import json
import os
import sys
from datetime import UTC, date, datetime, timedelta
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import click

from jobrunner.cli.shared import shared

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import Console

STATE_COLORS = {
    "queued": "cyan", "scheduled": "blue", "retrying": "yellow", "running": "magenta", "succeeded": "green",
    "failed": "red", "cancelled": "bright_black", "quarantined": "red", "alive": "green", "lost": "red", "stopped": "bright_black",
    "released": "blue", "snoozed": "blue", "retried": "yellow", "crashed": "red",
}  # fmt: skip

_GAP = 2  # blanks between columns
_LEAST = 12  # of the growing column: below it says nothing, and a line that the terminal wraps is better
_SECOND, _MINUTE, _HOUR, _DAY = 1, 60, 3600, 86400


class Column(NamedTuple):
    """One column of a table.

    Attributes:
        title: in capitals, as a pipe sees it.
        align: numbers to the right.
        grow: this one is cut when the terminal is too narrow; in a pipe nothing is ever cut.
    """

    title: str
    align: Literal["left", "right"] = "left"
    grow: bool = False


def on_terminal() -> bool:
    """Whether a person looks at stdout."""
    return sys.stdout.isatty()


def say(message: str, *, label: str = "") -> None:
    """Talk on stderr; silent with `--quiet`."""
    if not shared().quiet:
        click.echo((click.style(f"{label}: ", bold=True) if label else "") + message, err=True)


def warn(message: str) -> None:
    """A warning on stderr, also with `--quiet`."""
    click.echo(click.style("warning:", fg="yellow", bold=True) + " " + message, err=True)


class JsonText:
    """JSON that is text already, such as a document from the database: put into the answer with every digit as stored."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


def print_json(document: object) -> None:
    """One JSON document on stdout. Instants are ISO 8601 in UTC."""
    utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    mark = os.urandom(16).hex()  # nobody can have put it into a job before
    pieces: list[str] = []

    def convert(value: Any) -> Any:
        if not isinstance(value, JsonText):
            return _jsonable(value)
        pieces.append(value.text)
        return f"{mark}{len(pieces) - 1}"

    parts = json.dumps(document, indent=2, ensure_ascii=not utf8, default=convert).split(f'"{mark}')
    for index, part in enumerate(parts[1:], start=1):
        number, _, rest = part.partition('"')
        line = parts[index - 1].rpartition("\n")[2]
        indent = " " * (len(line) - len(line.lstrip()))
        parts[index] = pieces[int(number)].replace("\n", f"\n{indent}") + rest
    click.echo("".join(parts))


def print_json_line(document: object) -> None:
    """One JSON document on a line of stdout, for streams."""
    utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    click.echo(json.dumps(document, ensure_ascii=not utf8, default=_jsonable))


def print_table(columns: Sequence[Column], rows: Iterable[Sequence[object]]) -> None:
    """A table of texts on stdout; None is shown as `-`."""
    texts = [["-" if cell is None else printable(str(cell)) for cell in row] for row in rows]
    if on_terminal():
        _rich_table(columns, texts)
        return
    widths = [max([len(column.title), *(len(row[index]) for row in texts)]) for index, column in enumerate(columns)]
    for row in [[column.title for column in columns], *texts]:
        cells = [
            cell.rjust(width) if column.align == "right" else cell.ljust(width)
            for cell, width, column in zip(row, widths, columns, strict=True)
        ]
        click.echo("  ".join(cells).rstrip())


def _rich_table(columns: Sequence[Column], rows: list[list[str]]) -> None:
    """One line for each row: on a narrow terminal the growing column is cut, the others keep what they show."""
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    screen = console()
    widths = [max([cell_len(column.title), *(cell_len(row[index]) for row in rows)]) for index, column in enumerate(columns)]
    taken = sum(width for width, column in zip(widths, columns, strict=True) if not column.grow) + _GAP * (len(columns) - 1)
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    for column, width in zip(columns, widths, strict=True):
        shown = max(_LEAST, min(width, screen.width - taken)) if column.grow else width
        table.add_column(column.title, justify=column.align, no_wrap=True, overflow="ellipsis", width=shown)
    for row in rows:
        table.add_row(*(Text(cell, style=STATE_COLORS.get(cell, "")) for cell in row))
    console(max(screen.width, taken + _LEAST)).print(table)


def console(width: int | None = None) -> Console:
    """A rich console on stdout that obeys `--no-color`; wider than the terminal when asked. Imported late: a pipe need not pay for it."""
    from rich.console import Console

    return Console(width=width, no_color=shared().color is False or None, highlight=False, emoji=False, markup=False)


def styled(text: str, style: str) -> str:
    """`text` in the colour of a state or another of click's colours; plain when it goes into a pipe."""
    return click.style(text, fg=STATE_COLORS.get(style, style))


def printable(text: str) -> str:
    """`text` on one line, with control characters escaped."""
    return "".join(character if character.isprintable() else _escape(character) for character in text)


def printable_block(text: str) -> str:
    """`text` with its line breaks and tabs, other control characters escaped."""
    return "\n".join(printable(line.expandtabs(4)) for line in text.splitlines())


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()


def shorten(text: str, limit: int) -> str:
    """At most `limit` characters in a pipe; on a terminal the table cuts to what fits."""
    return text if on_terminal() or len(text) <= limit else text[: limit - 1] + "…"


def instant(value: datetime | None, now: datetime | None = None) -> str | None:
    """How long ago or until, for a person; ISO 8601 in UTC for a pipe."""
    if value is None:
        return None
    if not on_terminal() or now is None:
        return iso(value)
    seconds = (now - value).total_seconds()
    return f"{duration(seconds)} ago" if seconds >= 0 else f"in {duration(-seconds)}"


def iso(value: datetime) -> str:
    """`2026-11-24T15:03:05Z`."""
    return value.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def duration(seconds: float) -> str:
    """`840ms`, `2.3s`, `4m12s`, `2h04m`, `3d05h`."""
    if seconds < _SECOND:
        return f"{round(seconds * 1000)}ms"
    if seconds < _MINUTE:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < _HOUR:
        return f"{whole // _MINUTE}m{whole % _MINUTE:02}s"
    if whole < _DAY:
        return f"{whole // _HOUR}h{whole % _HOUR // _MINUTE:02}m"
    return f"{whole // _DAY}d{whole % _DAY // _HOUR:02}h"


def milliseconds(value: float | None) -> str | None:
    """A column in milliseconds as a duration."""
    return None if value is None else duration(value / 1000)


def size(value: float) -> str:
    """Bytes for a person: `38.2 MB`."""
    number = float(value)
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:  # noqa: PLR2004  decimal units
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def _jsonable(value: Any) -> Any:  # noqa: PLR0911  a table
    match value:
        case datetime():
            return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
        case date():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case Enum():
            return value.value
        case set() | frozenset():
            return sorted(value)
        case os.PathLike():
            return os.fspath(value)
        case _:
            return str(value)
