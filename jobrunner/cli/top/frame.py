"""Owns how a look is drawn: the header, the two panels, the list; the same for rich, for Textual and for a pipe.

It must not ask for anything: what it is given is all there is.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from rich import box
from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from jobrunner.cli.documents import duration_text
from jobrunner.cli.output import printable
from jobrunner.cli.top import lists
from jobrunner.cli.top.drawing import Column, bar, cut, fitting, line, number, sparkline, widths

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from jobrunner.cli.top.drawing import Marks
    from jobrunner.cli.top.watching import Sight
    from jobrunner.inspection import Glance, Percentiles, QueueRow, Throughput

LEAST_WIDTH, LEAST_HEIGHT = 60, 16  # below it nothing more is dropped: the terminal cuts
_APART = 3  # blanks between what is looked at and the numbers, in a header of one line
_WIDE = 80  # columns inside the panel of queues, from which its pictures are larger
_FEWEST_QUEUES = 4  # lines of the panel of queues, which grows with the terminal
_PANEL_SHARE = 4  # the panels may take this part of the height
_LATELY_WIDTH = 32  # of the panel of throughput
_FRAME = 4  # columns of a panel's border and the blanks inside
_BAR = 8  # characters of how busy a queue's slots are
_NAME = 24  # longest name of a queue


class Setting(NamedTuple):
    """What the frame shows beside what was seen.

    Attributes:
        target: the database, without a password.
        rest: seconds between looks; 0 when there is only one.
        paused: whether it looks no more until told to.
        hangs: seconds that a look has been without an answer; None when none is.
        hint, short_hint: at the end of the line of lists; the second where the first does not fit.
        numbered: whether the lists are chosen by number.
    """

    target: str
    rest: float
    paused: bool = False
    hangs: float | None = None
    hint: str = ""
    short_hint: str = ""
    numbered: bool = False


def header(sight: Sight, setting: Setting, width: int, marks: Marks) -> list[Text]:
    """One line, two on a narrow terminal, and one more when there is trouble."""
    found = sight.glance
    at = found.at if found else datetime.now(UTC)
    name = Text("jobrunner top", style="bold") + Text("  ")
    tail = Text("  ") + Text(f"{at.astimezone():%H:%M:%S}") + _pulse(sight, setting)
    target = Text(printable(setting.target))
    numbers = _numbers(found) if found else Text("no answer yet", style="dim")
    if name.cell_len + target.cell_len + tail.cell_len + _APART + numbers.cell_len <= width:
        lines = [name + target + tail + Text(" " * _APART) + numbers]
    else:
        lines = [name + cut(target, width - name.cell_len - tail.cell_len, marks) + tail, numbers]
    if sight.trouble:
        since = f"{sight.since.astimezone():%H:%M:%S}" if sight.since else ""
        told = f"! {printable(sight.trouble)} · since {since}, trying again every {setting.rest:g} s"
        lines.append(cut(Text(told, style="bold red"), width, marks))
    elif found and found.trouble:
        lines.append(Text(f"! the list is left out: {found.trouble}; narrow the filter", style="bold red"))
    return [cut(each, width, marks) for each in lines]


def _pulse(sight: Sight, setting: Setting) -> Text:
    if sight.trouble:
        return Text("  reconnecting", style="bold red")
    if setting.hangs is not None:
        return Text(f"  no answer for {setting.hangs:.0f}s", style="bold red")
    if setting.paused:
        return Text("  paused", style="bold yellow")
    if sight.glance is None:
        return Text("")
    return Text(f"  live {setting.rest:.2g}s", style="green") if setting.rest else Text("")


def _numbers(found: Glance) -> Text:
    lately, throughput = found.lately, found.lately.throughput
    ready = sum(row.ready for row in found.queues)
    since = min((row.oldest_ready_at for row in found.queues if row.oldest_ready_at), default=None)
    oldest = f" (oldest {duration_text(found.at - since)})" if since else ""
    share = throughput.failed_share
    parts = [
        Text(f"ready {number(ready, exact=all(row.exact for row in found.queues))}{oldest}"),
        Text(f"running {lately.running}/{lately.slots}"),
        Text(f"ok {_rate(throughput.succeeded_per_second)}/s"),
        Text(f"fail {'-' if share is None else f'{share:.1%}'}", style="red" if share else ""),
    ]
    if not lately.workers_alive:
        parts.append(Text("no worker is alive", style="bold red"))
    return Text("  ").join(parts)


def _rate(value: float) -> str:
    return f"{value:.0f}" if value >= 10 or not value else f"{value:.1f}"  # noqa: PLR2004  two digits say enough


def panels(found: Glance | None, width: int, height: int, marks: Marks) -> RenderableType:
    """Queues on the left, throughput on the right."""
    queues = found.queues if found else ()
    inside = max(_FEWEST_QUEUES, min(len(queues), height // _PANEL_SHARE - 1)) + 1
    left = width - _LATELY_WIDTH
    grid = Table.grid()
    grid.add_column(width=left)
    grid.add_column(width=_LATELY_WIDTH)
    grid.add_row(
        Panel(_queues(found, left - _FRAME, inside, marks), title="Queues", title_align="left", box=box.SQUARE, height=inside + 2),
        Panel(
            _lately(found.lately.throughput, _LATELY_WIDTH - _FRAME, marks) if found else Text(""),
            title="Last 10 minutes", title_align="left", box=box.SQUARE, height=inside + 2,
        ),
    )  # fmt: skip
    return grid


def panels_height(found: Glance | None, height: int) -> int:
    """Lines that the panels take."""
    return max(_FEWEST_QUEUES, min(len(found.queues) if found else 0, height // _PANEL_SHARE - 1)) + 3


_QUEUE_COLUMNS = (
    Column("queue", grow=True), Column("busy", "right"), Column("", since=56), Column("ready", "right"), Column("oldest", "right"),
    Column("10 min"),
)  # fmt: skip


def _queues(found: Glance | None, width: int, height: int, marks: Marks) -> Text:
    """A line for each queue; of more than there is room for, those with the most to do."""
    if found is None or not found.queues:
        return Text("no job waits and no worker listens" if found else "", style="dim")
    shown = found.queues
    if len(shown) > height - 1:
        busiest = sorted(shown, key=lambda row: (row.running + row.ready, row.slots), reverse=True)[: height - 2]
        shown = tuple(row for row in shown if row in busiest)
    places = fitting(_QUEUE_COLUMNS, width)
    columns = [_QUEUE_COLUMNS[place] for place in places]
    cells = [[_queue_cells(row, found, marks, 2 if width >= _WIDE else 1)[place] for place in places] for row in shown]
    sizes = widths(columns, cells, width)
    lines = [line([Text(column.title, style="dim") for column in columns], columns, sizes, marks)]
    lines += [line(row, columns, sizes, marks) for row in cells]
    if left_out := len(found.queues) - len(shown):
        lines.append(Text(f"{marks.more} and {left_out} more", style="dim"))
    return below(lines)


def _queue_cells(row: QueueRow, found: Glance, marks: Marks, scale: int) -> list[Text]:
    throughput = found.lately.throughput
    quiet = (0,) * len(throughput.per_minute)
    full = row.slots > 0 and row.running >= row.slots
    waits = row.oldest_ready_at and duration_text(found.at - row.oldest_ready_at)
    return [
        cut(Text(printable(row.queue), style="bold"), _NAME, marks),
        Text(f"{row.running}/{row.slots}", style="" if row.workers or not row.ready else "red"),
        Text(bar(row.running, row.slots, _BAR * scale, marks), style="yellow" if full else "green"),
        Text(number(row.ready, exact=row.exact), style="" if row.ready else "dim"),
        Text(waits or "-", style="" if waits else "dim"),
        Text(sparkline(throughput.per_queue.get(row.queue, quiet), marks, scale), style="cyan"),
    ]


def _lately(throughput: Throughput, width: int, marks: Marks) -> Text:
    each = max(1, width // len(throughput.per_minute))
    ended = f"{number(throughput.succeeded)} ok  {number(throughput.failed)} failed"
    lines = [Text(sparkline(throughput.per_minute, marks, each), style="cyan"), cut(Text(ended), width, marks)]
    lines.append(Text(f"{'':<5}{'p50':>7}{'p95':>7}{'p99':>7}", style="dim"))
    lines += [_percentiles(name, values) for name, values in (("run", throughput.run), ("wait", throughput.wait))]
    return below(lines)


def _percentiles(name: str, found: Percentiles | None) -> Text:
    values = (found.p50, found.p95, found.p99) if found else (None, None, None)
    return Text(f"{name:<5}") + Text("".join(f"{duration_text(value) or '-':>7}" for value in values))


def tabs(sight: Sight, setting: Setting, width: int, marks: Marks) -> Text:
    """The lists by name, the one that is shown marked, its filter, and a hint at the end."""
    parts = []
    for place, (view, title) in enumerate(lists.TITLES.items(), start=1):
        label = f" {place} {title} " if setting.numbered else f" {title} "
        if view == sight.wanted.view:
            parts.append(Text(label, style="reverse bold"))
        elif setting.numbered:
            parts.append(Text(label, style="dim"))
    left = Text("").join(parts)
    if sight.wanted.filter:
        left += Text(f" {printable(str(sight.wanted.filter))}", style="yellow")
    for words in (setting.hint, setting.short_hint):
        gap = width - left.cell_len - len(words) - 1
        if gap > 0:
            return left + Text(" " * gap) + Text(words, style="dim")
    return cut(left, width, marks)


def listing(sight: Sight, width: int, height: int, marks: Marks) -> list[Text]:
    """The titles and as many rows as there is room for; the last line says when there are more."""
    found = sight.glance
    if found is None or found.view != sight.wanted.view:
        return []  # another list was asked for, and the answer is not there yet
    rows = lists.rows(found, marks)
    columns, cells, sizes = laid_out(found, rows, width)
    lines = [line([Text(column.title, style="bold") for column in columns], columns, sizes, marks)]
    if not rows:
        nothing = "" if found.trouble else f"{lists.EMPTY[found.view]}{' that matches' if sight.wanted.filter else ''}"
        return [*lines, Text(nothing, style="dim")]
    room = height - 1
    more = found.more or len(rows) > room
    shown = cells[: room - 1] if more else cells
    lines += [line(row, columns, sizes, marks) for row in shown]
    if more:
        left_out = len(rows) - len(shown)
        lines.append(Text(f"{marks.more} and {left_out}{'+' if found.more else ''} more", style="dim"))
    return lines


def laid_out(found: Glance, rows: Sequence[lists.Row], width: int) -> tuple[list[Column], list[list[Text]], list[int]]:
    """The columns that are shown at this width, the cells of every row in them, and how wide each is."""
    every = lists.COLUMNS[found.view]
    places = fitting(every, width)
    columns = [every[place] for place in places]
    cells = [[row.cells[place] for place in places] for row in rows]
    return columns, cells, widths(columns, cells, width)


def frame(sight: Sight, setting: Setting, width: int, height: int, marks: Marks) -> RenderableType:
    """Everything, at most so wide and so high."""
    wide, high = max(LEAST_WIDTH, width), max(LEAST_HEIGHT, height)
    above = header(sight, setting, wide, marks)
    room = high - len(above) - panels_height(sight.glance, high) - 1
    return Group(
        below(above),
        panels(sight.glance, wide, high, marks),
        below([tabs(sight, setting, wide, marks), *listing(sight, wide, max(2, room), marks)]),
    )


def below(lines: Sequence[Text]) -> Text:
    """Lines one below the other; what does not fit into the width is not continued on the next, which is another's."""
    return Text("\n", no_wrap=True, overflow="crop").join(lines)
