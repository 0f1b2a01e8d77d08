"""Owns showing looks without keys: one as text, one after the other as text or JSON, or redrawn on a terminal by rich.

It must leave the terminal as it was, however it ends.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import sys
import time
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.live import Live

from jobrunner.cli.output import print_json, print_json_line
from jobrunner.cli.shared import shared
from jobrunner.cli.top import document
from jobrunner.cli.top.drawing import ASCII, UNICODE
from jobrunner.cli.top.frame import Setting, frame
from jobrunner.cli.top.watching import SHARE, Sight, Watcher, look

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import RenderableType

    from jobrunner.cli.top.drawing import Marks
    from jobrunner.cli.top.watching import Wanted
    from jobrunner.database import Database

WITHOUT_KEYS, SHORT = 'Ctrl-C ends · keys: pip install "jobrunner-pg[tui]"', "Ctrl-C ends"
PIPE_SIZE = (120, 50)  # columns and lines where there is no terminal, and COLUMNS and LINES do not say
REDRAW = 1.0  # seconds: how long a look has been without an answer is shown as it grows


def once(database: Database, wanted: Wanted, target: str, *, jsonl: bool) -> None:
    """One look, as text or as a JSON document. Raises what inspection raises: there is no next look to wait for."""
    from jobrunner.inspection import glance

    sight = Sight(wanted, glance(database, wanted.view, wanted.filter, limit=wanted.limit), None)
    if shared().json:
        print_json(document.look(sight, target))
    elif jsonl:
        print_json_line(document.look(sight, target))
    else:
        _print(sight, Setting(target, rest=0.0))


def repeated(database: Database, wanted: Wanted, target: str, interval: float, *, jsonl: bool) -> None:
    """Look after look into a pipe, until Ctrl-C; when the database is away, that is what is said."""
    sight: Sight | None = None
    while True:
        if sight is not None:
            time.sleep(max(interval, sight.took * SHARE))
            if not jsonl:
                click.echo()
        sight = look(database, wanted, sight)
        if jsonl:
            print_json_line(document.look(sight, target))
        else:
            _print(sight, Setting(target, rest=max(interval, sight.took * SHARE)))
        sys.stdout.flush()


def redrawn(database: Database, wanted: Wanted, target: str, interval: float) -> None:
    """On a terminal, drawn anew with every look and every change of its size, until Ctrl-C."""
    console = Console(no_color=shared().color is False or None, highlight=False, emoji=False, markup=False)
    marks = marks_of(console)
    with _wakings() as (wake, wait):
        watcher = Watcher(database, wanted, interval, wake)

        def drawn() -> RenderableType:
            setting = Setting(target, watcher.rest, hangs=watcher.hangs, hint=WITHOUT_KEYS, short_hint=SHORT)
            # The last line stays free: a terminal scrolls when its last character is written.
            return frame(watcher.sight, setting, console.width, console.height - 1, marks)

        with Live(console=console, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False) as live:
            live.update(drawn(), refresh=True)
            watcher.start()
            try:
                while watcher.failure is None:
                    wait(REDRAW)
                    live.update(drawn(), refresh=True)
            finally:
                watcher.stop()
    raise watcher.failure


def marks_of(console: Console) -> Marks:
    """The characters that the terminal's encoding has."""
    return ASCII if console.options.ascii_only else UNICODE


def _print(sight: Sight, setting: Setting) -> None:
    width, height = shutil.get_terminal_size(PIPE_SIZE)
    console = Console(width=width, no_color=shared().color is False or None, highlight=False, emoji=False, markup=False)
    with console.capture() as capture:
        console.print(frame(sight, setting, width, height, marks_of(console)))
    for line in capture.get().splitlines():
        click.echo(line.rstrip())


@contextlib.contextmanager
def _wakings() -> Iterator[tuple[Callable[[], None], Callable[[float], None]]]:
    """How a thread or a resized terminal wakes the one that draws: a pipe, which a signal handler may write to at any moment."""
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    os.set_blocking(write_end, False)

    def wake() -> None:
        with contextlib.suppress(OSError):  # full: it wakes anyway; closed: nobody draws any more
            os.write(write_end, b".")

    def wait(seconds: float) -> None:
        select.select([read_end], [], [], seconds)
        with contextlib.suppress(BlockingIOError):
            os.read(read_end, 4096)

    before = signal.signal(signal.SIGWINCH, lambda *_: wake())
    try:
        yield wake, wait
    finally:
        signal.signal(signal.SIGWINCH, before)
        os.close(read_end)
        os.close(write_end)
