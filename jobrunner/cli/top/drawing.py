"""Owns small pictures made of characters: sparklines, bars, short numbers; and cutting a table to a width.

It must not know what the numbers mean.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from rich.cells import cell_len
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Sequence

_THOUSAND, _EXACT = 1_000, 10_000  # below the second a number is shown with every digit
_GAP = 2  # blanks between columns
_LEAST = 8  # columns of the growing column: with fewer it says nothing


class Marks(NamedTuple):
    """The characters of pictures.

    Attributes:
        spark: from nothing to the most.
        full, empty: of a bar.
        more: where a text was cut.
    """

    spark: str
    full: str
    empty: str
    more: str


UNICODE = Marks("▁▂▃▄▅▆▇█", "█", "░", "…")
ASCII = Marks("_.:-=+*#", "#", ".", "~")


class Column(NamedTuple):
    """One column of a list.

    Attributes:
        title: in capitals.
        align: numbers to the right.
        grow: it gets what is left of the width; a list has one.
        most: characters; longer texts are cut.
        since: shown when the list is so wide, or wider.
    """

    title: str
    align: Literal["left", "right"] = "left"
    grow: bool = False
    most: int = 40
    since: int = 0


def sparkline(values: Sequence[int], marks: Marks, each: int = 1) -> str:
    """One character for each value, repeated `each` times: nothing at all is the lowest, anything is above it."""
    top = max(values, default=0)
    levels = len(marks.spark) - 1
    drawn = [marks.spark[max(1, round(levels * value / top)) if value else 0] for value in values]
    return "".join(mark * each for mark in drawn)


def bar(part: float, whole: float, width: int, marks: Marks) -> str:
    """How much of the whole a part is; anything fills at least one character, and only all of it fills the last."""
    if whole <= 0:
        return marks.empty * width
    filled = int(width * min(1.0, part / whole))
    if part > 0:
        filled = max(1, filled)
    return marks.full * filled + marks.empty * (width - filled)


def number(value: float, *, exact: bool = True) -> str:
    """`9876`, `12.3k`, `4.5M`; a lower bound has a plus behind it."""
    more = "" if exact else "+"
    if value < _EXACT:
        return f"{value:.0f}{more}"
    for unit in ("k", "M"):
        value /= _THOUSAND
        if value < _THOUSAND or unit == "M":
            return f"{value:.1f}".removesuffix(".0") + unit + more
    raise AssertionError("unreachable")  # pragma: no cover


def cut(text: Text, width: int, marks: Marks) -> Text:
    """The text, at most so wide; what is left out shows as one mark at the end."""
    if text.cell_len <= width:
        return text
    short = text.copy()
    short.truncate(max(0, width - 1))
    short.append(marks.more if width > 0 else "")
    return short


def fitting(columns: Sequence[Column], width: int) -> list[int]:
    """The columns that are shown in a list of this width, by place."""
    return [place for place, column in enumerate(columns) if width >= column.since]


def widths(columns: Sequence[Column], rows: Sequence[Sequence[Text]], width: int) -> list[int]:
    """How wide each column is, so that all of them together are at most `width`, if there is any way."""
    found = [
        min(column.most, max([cell_len(column.title), *(row[place].cell_len for row in rows)])) for place, column in enumerate(columns)
    ]
    grows = next(place for place, column in enumerate(columns) if column.grow)
    taken = sum(size for place, size in enumerate(found) if place != grows) + _GAP * (len(columns) - 1)
    found[grows] = max(_LEAST, width - taken)
    return found


def line(cells: Sequence[Text], columns: Sequence[Column], sizes: Sequence[int], marks: Marks) -> Text:
    """One row of a list."""
    parts = []
    for cell, column, size in zip(cells, columns, sizes, strict=True):
        shown = cut(cell, size, marks)
        blank = Text(" " * (size - shown.cell_len))
        parts.append(blank + shown if column.align == "right" else shown + blank)
    return Text(" " * _GAP).join(parts)
