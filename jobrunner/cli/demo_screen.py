"""Owns what a person or a program sees of `jobrunner demo`: the introduction, how far it is, the summary.

It must not print anything but the summary on stdout: the rest is talk.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

import click

from jobrunner.cli.output import STATE_COLORS, Column, print_json, print_table, say
from jobrunner.cli.shared import shared
from jobrunner.cli.target import EMBEDDED
from jobrunner.demo import LEASE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.progress import Progress as Bar

    from jobrunner.demo import Demo, Progress, Summary
    from jobrunner.settings import Dsn

LINE_EVERY = 5.0  # seconds between lines where there is no terminal
RATE_OVER = 3.0  # seconds that the shown rate looks back
SHOWN_STATES = ("succeeded", "failed", "quarantined", "retrying", "running")
ALWAYS = ("succeeded", "failed", "quarantined")
_PASSWORD = re.compile(r"(?<=//)([^:/?@]*):[^/?@]*(?=@)|(?<=[?&])password=[^&]*&?")
_LIBRARY = re.compile(r"^.*/(?=(?:site|dist)-packages/|python\d[.\d]*/)")


class Screen(Protocol):
    """Where it is shown."""

    def introduce(self, running: Demo, seconds: float) -> None:
        """Say what there is to do, once it is written."""

    def note(self, text: str) -> None:
        """Say what happened."""

    def progress(self, progress: Progress) -> None:
        """Show how far it is."""

    def conclude(self, running: Demo, summary: Summary, dsn: Dsn) -> None:
        """Show how it went."""


class Lines:
    """For a pipe or a log: a line every few seconds."""

    def __init__(self) -> None:
        self._next = 0.0
        self._looks: deque[tuple[float, int]] = deque()

    def introduce(self, running: Demo, seconds: float) -> None:
        """See Screen."""
        given, count = running.settings, len(running.own.ids)
        few = len(given.sources) < given.found_count
        many = f"{len(given.sources):,} of the {given.found_count:,} Python files found" if few else f"{given.found_count:,} Python files"
        _fact("input", f"{many}, and {len(running.troubles)} that make trouble:")
        for trouble in running.troubles:
            _fact("", f"{trouble.path.name:<17} {trouble.story}")
        _fact("jobs", f"{count:,}, written in one transaction in {seconds:.2f} s; queue {running.name}")
        _fact("pages", running.url)
        _fact("worker", f"process {running.worker.pid}; its jobs are held for {LEASE}. In another terminal:")
        _fact("", f"kill -9 {running.worker.pid}     and watch")
        say("")

    def note(self, text: str) -> None:
        """See Screen."""
        say(text)

    def progress(self, progress: Progress) -> None:
        """See Screen."""
        now = time.monotonic()
        rate = self.rate(now, progress.ended)
        if now < self._next and progress.live:
            return
        self._next = now + LINE_EVERY
        states = ", ".join(f"{count:,} {state}" for state, count in shown(progress))
        say(f"{progress.ended:,}/{progress.jobs:,} jobs ended, {rate:,.0f}/s: {states}")

    def rate(self, now: float, ended: int) -> float:
        """Jobs ended per second, lately."""
        self._looks.append((now, ended))
        while now - self._looks[0][0] > RATE_OVER:
            self._looks.popleft()
        began, before = self._looks[0]
        return (ended - before) / (now - began) if now > began else 0.0

    def conclude(self, running: Demo, summary: Summary, dsn: Dsn) -> None:
        """See Screen."""
        if shared().json:
            print_json(document(summary, dsn))
        else:
            _print_summary(running, summary, dsn)


class Terminal(Lines):
    """For a person: a bar."""

    def __init__(self, bar: Bar) -> None:
        super().__init__()
        self._bar = bar
        self._task: Any = None

    def note(self, text: str) -> None:
        """Above the bar."""
        self._bar.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def progress(self, progress: Progress) -> None:
        """Redrawn by us and not by a thread: processes are started in between."""
        from rich.text import Text

        if self._task is None:
            self._task = self._bar.add_task("", total=progress.jobs, rate="", states="")
            self._bar.start()
        rate = self.rate(time.monotonic(), progress.ended)
        states = Text("  ").join(Text(f"{count:,} {state}", style=STATE_COLORS[state]) for state, count in shown(progress))
        self._bar.update(self._task, completed=progress.ended, rate=f"{rate:,.0f}/s", states=states)
        self._bar.refresh()

    def conclude(self, running: Demo, summary: Summary, dsn: Dsn) -> None:
        """Below the bar."""
        self._bar.stop()
        super().conclude(running, summary, dsn)


@contextlib.contextmanager
def make_screen() -> Iterator[Screen]:
    """A bar where a person looks at stderr, else lines."""
    if not sys.stderr.isatty() or shared().quiet:
        yield Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True, no_color=shared().color is False or None, highlight=False, emoji=False)
    states = TextColumn("{task.fields[states]}")
    bar = Progress(
        BarColumn(bar_width=24), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeElapsedColumn(), states,
        console=console, auto_refresh=False,
    )  # fmt: skip
    try:
        yield Terminal(bar)
    finally:
        bar.stop()


def _fact(label: str, text: str) -> None:
    say(click.style(f"{label:<8}", bold=True) + text)


def shown(progress: Progress) -> list[tuple[str, int]]:
    """The states worth a word, with their counts."""
    counts = ((state, progress.states.get(state, 0)) for state in SHOWN_STATES)
    return [(state, count) for state, count in counts if count or state in ALWAYS]


def document(summary: Summary, dsn: Dsn) -> dict[str, Any]:
    """The summary for programs."""
    return {
        "jobs": summary.jobs,
        "succeeded": summary.succeeded,
        "failed": summary.failed,
        "quarantined": summary.quarantined,
        "retried": summary.retried,
        "seconds": round(summary.seconds, 3),
        "jobs_per_second": round(summary.jobs_per_second, 1),
        "dsn": without_password(dsn.url),
    }


def _print_summary(running: Demo, summary: Summary, dsn: Dsn) -> None:
    counts = [summary.jobs, summary.succeeded, summary.failed, summary.quarantined, summary.retried, summary.returned]
    titles = ["JOBS", "SUCCEEDED", "FAILED", "QUARANTINED", "RETRIED", "TAKEN BACK", "SECONDS", "JOBS/S"]
    cells = [*(f"{number:,}" for number in counts), f"{summary.seconds:.1f}", f"{summary.jobs_per_second:,.0f}"]
    click.echo()
    print_table([Column(title, "right") for title in titles], [cells])
    _heading("What did not succeed, and why")
    reasons = [(reason.state, reason.error_type, f"{reason.count:,}", short(reason.example)) for reason in running.reasons()]
    print_table([Column("STATE"), Column("ERROR"), Column("JOBS", "right"), Column("SUCH AS", grow=True)], reasons)
    _heading("The most complex functions, by one SELECT over the results of the jobs")
    findings = [(f"{finding.complexity:,}", finding.function, finding.line, short(finding.file)) for finding in running.most_complex()]
    print_table([Column("COMPLEXITY", "right"), Column("FUNCTION"), Column("LINE", "right"), Column("FILE", grow=True)], findings)
    _heading("Ask it yourself")
    click.echo(f'{psql(dsn)} -c "{running.query}"')
    click.echo()


def _heading(text: str) -> None:
    click.echo("\n" + click.style(text, bold=True))


def short(path: str) -> str:
    """A place in the libraries without where they are."""
    return _LIBRARY.sub("", path)


def psql(dsn: Dsn) -> str:
    """A command line that opens psql on the database; the password is not in it."""
    program = shutil.which("psql") and "psql"
    if program is None and dsn.origin == EMBEDDED:
        from jobrunner.embedded import project_status

        binaries = project_status().binaries
        program = shlex.quote(str(binaries / "psql")) if binaries is not None else None
    public = without_password(dsn.url)
    shown = '"$JOBRUNNER_DSN"' if public != dsn.url and dsn.origin == "JOBRUNNER_DSN" else shlex.quote(public)
    return f"{program or 'psql'} {shown}"


def without_password(url: str) -> str:
    """The address as it may be shown; psql asks for the password, or finds it in ~/.pgpass."""
    return _PASSWORD.sub(lambda match: match[1] or "", url).rstrip("?&")
