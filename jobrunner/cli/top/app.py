"""Owns `top` with keys: a Textual application around the same frame, whose list has a cursor.

It must not block on the database: looks, details and verbs run in threads, so that a key answers at once, whatever the server does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import TYPE_CHECKING, ClassVar, TypeVar

import click
from rich.text import Text
from textual.app import App
from textual.binding import Binding
from textual.containers import Vertical
from textual.widgets import DataTable, Input, Static

from jobrunner.cli.failures import Code, Terminated
from jobrunner.cli.shared import shared
from jobrunner.cli.top import lists
from jobrunner.cli.top.dialogs import Confirm, Details, Help
from jobrunner.cli.top.drawing import ASCII, UNICODE, line
from jobrunner.cli.top.frame import LEAST_WIDTH, Setting, below, header, laid_out, panels, tabs
from jobrunner.cli.top.verbs import Refused, Verbs
from jobrunner.cli.top.watching import Wanted, Watcher
from jobrunner.errors import InvalidFilter
from jobrunner.filters import parse
from jobrunner.inspection import VIEWS

if TYPE_CHECKING:
    from collections.abc import Callable

    from textual.app import ComposeResult

    from jobrunner.cli.top.drawing import Marks
    from jobrunner.cli.top.lists import Row
    from jobrunner.database import Database
    from jobrunner.settings import Dsn

T = TypeVar("T")

HINT, SHORT_HINT = "/ filter  enter show  r retry  c cancel  ? help", "/ filter  ? help"
_SCROLLBAR = 2  # columns at the right of the list
_TICK = 1.0  # seconds: how long a look has been without an answer is shown as it grows


def run(database: Database, wanted: Wanted, dsn: Dsn, interval: float) -> None:
    """Show it until q or Ctrl-C. Raises what ended the watching, if something did."""
    if shared().color is False:
        os.environ["NO_COLOR"] = "1"  # how Textual is told
    top = Top(database, wanted, dsn, interval)
    try:
        top.run()
    finally:
        top.verbs.close()
    if top.return_code:  # a bug of ours: Textual has printed it
        click.get_current_context().exit(Code.BUG)
    if top.terminated:
        raise Terminated
    if top.watcher.failure is not None:
        raise top.watcher.failure


class Top(App[None]):
    """The application.

    Args:
        database: where looks are taken.
        wanted: what to look at first.
        dsn: the same database, for the verbs.
        interval: seconds between two looks.
    """

    CSS = """
    #list { height: 1fr; overflow-x: hidden; }
    #notice { height: auto; }
    #filter { display: none; border: none; height: 1; padding: 0; }
    #filter.asked { display: block; }
    """
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar = [
        *(Binding(str(place), f"view('{view}')", lists.TITLES[view], show=False) for place, view in enumerate(VIEWS, start=1)),
        Binding("j", "down", "Down", show=False),
        Binding("k", "up", "Up", show=False),
        Binding("slash", "ask_filter", "Filter", show=False),
        Binding("r", "retry", "Retry", show=False),
        Binding("c", "cancel", "Cancel", show=False),
        Binding("p", "pause", "Pause", show=False),
        Binding("question_mark", "help", "Help", show=False),
        Binding("q", "quit", "Quit", show=False),
        Binding("ctrl+c", "quit", "Quit", show=False, priority=True),
    ]

    def __init__(self, database: Database, wanted: Wanted, dsn: Dsn, interval: float) -> None:
        super().__init__()
        self.wanted = wanted
        self.target = dsn.target
        self.verbs = Verbs(dsn)
        self.watcher = Watcher(database, wanted, interval, self._seen)
        self.pauses = False
        self.terminated = False
        self.rows: list[Row] = []
        self.head, self.panels, self.tabs, self.notice = (Static(id=name) for name in ("header", "panels", "tabs", "notice"))
        self.table: DataTable[Text] = DataTable(id="list", cursor_type="row", cell_padding=0)
        self.asked = Input(id="filter", placeholder="queue:mail task:etl.*  (enter applies, nothing shows all, esc leaves it)")
        self.marks: Marks = ASCII if self.console.options.ascii_only else UNICODE

    def compose(self) -> ComposeResult:
        """Header, panels, the names of the lists, the list, a line for filter and answers."""
        with Vertical():
            yield from (self.head, self.panels, self.tabs, self.table, self.notice, self.asked)

    def on_mount(self) -> None:
        """Begin to look."""
        self.table.focus()
        # The handler of the command line raises where the signal finds it, which is in the middle of the loop: here it leaves in order.
        with contextlib.suppress(RuntimeError, ValueError):  # only the main thread has signals, and tests may run in another
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._terminate)
        self.watcher.start()
        self.set_interval(_TICK, self.draw_above)

    def _terminate(self) -> None:
        self.terminated = True
        self.exit()

    def on_unmount(self) -> None:
        """Look no more."""
        self.watcher.stop()

    def on_resize(self) -> None:
        """Everything has another width."""
        self.draw()

    def _seen(self) -> None:
        """Called by the watcher, in its thread."""
        if self.is_running:
            self.call_later(self._answered)

    def _answered(self) -> None:
        if self.watcher.failure is not None:
            self.exit()
        elif self.table.is_attached:
            self.draw()

    def draw(self) -> None:
        """Everything, as it was seen last."""
        self.draw_above()
        self._draw_list()

    def draw_above(self) -> None:
        """All but the list."""
        width, height = max(LEAST_WIDTH, self.size.width), self.size.height
        sight, marks = self.watcher.sight._replace(wanted=self.wanted), self.marks
        setting = Setting(self.target, self.watcher.rest, self.pauses, self.watcher.hangs, HINT, SHORT_HINT, numbered=True)
        self.head.update(below(header(sight, setting, width, marks)))
        self.panels.update(panels(sight.glance, width, height, marks))
        self.tabs.update(tabs(sight, setting, width, marks))

    def _draw_list(self) -> None:
        """The rows anew; the cursor stays on the same job when it is still there, else at the same place."""
        found, table = self.watcher.sight.glance, self.table
        if found is None or found.view != self.wanted.view:
            return
        before = self.selected()
        place, scrolled = table.cursor_row, table.scroll_y
        self.rows = lists.rows(found, self.marks)
        # The cells are blanks and texts of one line each, as rich draws them: one column, so that both look the same.
        columns, cells, sizes = laid_out(found, self.rows, max(LEAST_WIDTH, self.size.width - _SCROLLBAR))
        with self.batch_update():
            table.clear(columns=True)
            titles = line([Text(column.title) for column in columns], columns, sizes, self.marks)
            table.add_column(titles, width=max(titles.cell_len, self.size.width - _SCROLLBAR))
            for row, texts in zip(self.rows, cells, strict=True):
                table.add_row(line(texts, columns, sizes, self.marks), key=row.key)
            if not self.rows and found.trouble is None:
                table.add_row(Text(f"{lists.EMPTY[found.view]}{' that matches' if self.wanted.filter else ''}", style="dim"))
            if found.more:
                table.add_row(Text(f"{self.marks.more} and more: narrow it with /", style="dim"))
            keys = [row.key for row in self.rows]
            there = keys.index(before.key) if before and before.key in keys else min(place, len(keys) - 1)
            table.move_cursor(row=max(0, there), scroll=False, animate=False)
            table.scroll_to(y=scrolled, animate=False)

    def selected(self) -> Row | None:
        """The row under the cursor."""
        place = self.table.cursor_row
        return self.rows[place] if 0 <= place < len(self.rows) else None

    def say(self, text: str, style: str = "") -> None:
        """An answer, on the line below the list, until the next."""
        self.notice.update(Text(text, style=style))

    def action_view(self, view: str) -> None:
        """Another list."""
        self._look_at(self.wanted._replace(view=next(each for each in VIEWS if each == view)))

    def _look_at(self, wanted: Wanted) -> None:
        if wanted == self.wanted:
            return
        self.wanted, self.rows = wanted, []
        self.table.clear(columns=True)
        self.say("")
        self.draw_above()
        self.watcher.look_at(wanted)

    def action_down(self) -> None:
        """The row below."""
        self.table.action_cursor_down()

    def action_up(self) -> None:
        """The row above."""
        self.table.action_cursor_up()

    def action_pause(self) -> None:
        """Look no more, or again."""
        self.pauses = not self.pauses
        self.watcher.pause(self.pauses)
        self.draw_above()

    def action_help(self) -> None:
        """What the keys do."""
        self.push_screen(Help())

    # -- the filter

    def action_ask_filter(self) -> None:
        """Ask for a filter, beginning with the one that holds."""
        self.asked.value = str(self.wanted.filter)
        self.asked.add_class("asked")
        self.asked.focus()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Take the filter, or say what is wrong with it and leave it there to be changed."""
        try:
            wanted = parse(event.value)
        except InvalidFilter as error:
            self.say(" · ".join(filter(None, [str(error), error.hint])), "red")
            return
        self._leave_filter()
        self._look_at(self.wanted._replace(filter=wanted))

    def on_key(self, event: object) -> None:
        """Escape leaves the filter as it was."""
        if getattr(event, "key", "") == "escape" and self.asked.has_focus:
            self._leave_filter()

    def _leave_filter(self) -> None:
        self.asked.remove_class("asked")
        self.say("")
        self.table.focus()

    # -- one job

    def on_data_table_row_selected(self) -> None:
        """Enter: everything about the job of the row."""
        row = self.selected()
        if row is None or row.job_id is None:
            self.say("" if row is None else "no job in this row", "yellow")
            return
        job_id = row.job_id
        self._in_thread(lambda: self.verbs.detail(job_id), lambda found: self.push_screen(Details(found)))

    def action_retry(self) -> None:
        """Retry the job of the row, without asking: it can be cancelled again."""
        if (row := self._job_row()) is not None:
            self.retry(row)

    def action_cancel(self) -> None:
        """Cancel the job of the row; a running one only after asking."""
        if (row := self._job_row()) is not None:
            self.cancel(row, running=row[1] == "running")

    def _job_row(self) -> tuple[int, str | None] | None:
        """Id and state of the job of the row, when a verb on it would be no guess."""
        row = self.selected()
        if row is None or row.job_id is None:
            self.say("no job in this row", "yellow")
            return None
        if self.wanted.view == "errors":
            self.say(f"a group of errors: enter shows its newest job, {row.job_id}, with r and c", "yellow")
            return None
        return row.job_id, row.state

    def retry(self, job: tuple[int, str | None]) -> None:
        """Do it, and say what came of it."""
        self._in_thread(lambda: self.verbs.retry(job[0]), self._done)

    def cancel(self, job: tuple[int, str | None], *, running: bool) -> None:
        """Do it, after asking when it runs."""

        def answered(yes: bool | None) -> None:  # noqa: FBT001  Textual's signature
            if yes:
                self._in_thread(lambda: self.verbs.cancel(job[0]), self._done)

        if running:
            self.push_screen(Confirm(f"Cancel job {job[0]}, which runs? It is asked to stop, and ended if it does not."), answered)
        else:
            answered(yes=True)

    def _done(self, text: str) -> None:
        self.say(text, "green")
        self.watcher.again()

    def _in_thread(self, ask: Callable[[], T], answer: Callable[[T], object]) -> None:
        """Ask in a thread; the answer, or the line that says why there is none, comes back to this one."""

        def work() -> None:
            try:
                found = ask()
            except Refused as refused:
                self.call_from_thread(self.say, str(refused), "red")
            else:
                self.call_from_thread(answer, found)

        self.run_worker(work, thread=True)
