"""Owns the screens that lie over the list: one job, a question, the keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual.binding import Binding
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

from jobrunner.cli.show import lines

if TYPE_CHECKING:
    from textual.app import ComposeResult

    from jobrunner.cli.top.app import Top
    from jobrunner.inspection import JobDetail

KEYS = (
    ("1 2 3 4 5", "Running, Ready, Failed, Errors, Workers"),
    ("↑ ↓  j k", "move; page up and page down, home and end"),
    ("enter", "everything about the job, as jobs show prints it"),
    ("/", "filter the list: queue:mail task:etl.*; nothing: all"),
    ("r", "retry the job, or make it due now"),
    ("c", "cancel the job; asks first when it runs"),
    ("p", "pause; again to go on"),
    ("?", "this"),
    ("esc", "leave what lies over the list"),
    ("q  Ctrl-C", "quit"),
)


class Details(ModalScreen[None]):
    """What `jobs show` prints, with a way to retry and cancel."""

    CSS = """
    Details { align: center middle; }
    Details > VerticalScroll { width: 96%; height: 94%; border: solid $primary; background: $surface; padding: 0 1; }
    """
    BINDINGS: ClassVar = [
        Binding("escape,q,enter", "leave", "Back"),
        Binding("j", "scroll('down')", show=False),
        Binding("k", "scroll('up')", show=False),
        Binding("r", "retry", "Retry"),
        Binding("c", "cancel", "Cancel"),
    ]
    app: Top

    def __init__(self, found: JobDetail) -> None:
        super().__init__()
        self.found = found

    def compose(self) -> ComposeResult:
        """The text, scrolled by the keys."""
        # Texts of the row are without control characters already: what is read as colour here is ours.
        text = Text.from_ansi("\n".join(lines(self.found)))
        with VerticalScroll() as scroll:
            scroll.border_title = f"job {self.found.job.id}"
            scroll.border_subtitle = "esc back  r retry  c cancel"
            yield Static(text)

    def on_mount(self) -> None:
        """So that arrows and page keys scroll."""
        self.query_one(VerticalScroll).focus()

    def action_leave(self) -> None:
        """Back to the list."""
        self.dismiss()

    def action_scroll(self, way: str) -> None:
        """A line up or down."""
        scroll = self.query_one(VerticalScroll)
        (scroll.scroll_down if way == "down" else scroll.scroll_up)(animate=False)

    def action_retry(self) -> None:
        """Retry this job."""
        self.dismiss()
        self.app.retry(self._job)

    def action_cancel(self) -> None:
        """Cancel this job."""
        self.dismiss()
        self.app.cancel(self._job, running=self.found.job.state == "running")

    @property
    def _job(self) -> tuple[int, str | None]:
        return self.found.job.id, self.found.job.state


class Confirm(ModalScreen[bool]):
    """A question with yes and no."""

    CSS = """
    Confirm { align: center middle; }
    Confirm > Static { width: auto; max-width: 90%; height: auto; border: solid $warning; background: $surface; padding: 1 2; }
    """
    BINDINGS: ClassVar = [Binding("y", "answer(True)", "Yes"), Binding("n,escape,q", "answer(False)", "No")]

    def __init__(self, question: str) -> None:
        super().__init__()
        self.question = question

    def compose(self) -> ComposeResult:
        """The question and the two keys."""
        yield Static(Text(self.question) + Text("\n\ny yes   n no", style="bold"))

    def action_answer(self, yes: bool) -> None:  # noqa: FBT001  the answer is the argument
        """Give the answer to whoever asked."""
        self.dismiss(yes)


class Help(ModalScreen[None]):
    """The keys."""

    CSS = """
    Help { align: center middle; }
    Help > Static { width: auto; max-width: 96%; height: auto; border: solid $primary; background: $surface; padding: 1 2; }
    """
    BINDINGS: ClassVar = [Binding("escape,q,enter,question_mark", "leave", "Back")]

    def compose(self) -> ComposeResult:
        """A line for each key."""
        yield Static(Text("\n").join(Text(f"{key:<11}", style="bold") + Text(meaning) for key, meaning in KEYS))

    def action_leave(self) -> None:
        """Back to the list."""
        self.dismiss()
