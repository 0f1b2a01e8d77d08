"""Owns the options of `jobrunner top`, and which way of showing fits: keys, a redrawn screen, text, JSON.

It must not import rich or Textual before it knows.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

import click

from jobrunner.cli.jobs import FilterCommand, filter_text
from jobrunner.cli.output import on_terminal
from jobrunner.cli.shared import shared
from jobrunner.cli.target import checked_database, find_database

if TYPE_CHECKING:
    from jobrunner.inspection import View

VIEWS = ("running", "ready", "failed", "errors", "workers")  # inspection's, known here so that --help need not import it
LEAST_INTERVAL = 0.2  # seconds


@click.command(cls=FilterCommand)
@click.argument("terms", nargs=-1, metavar="[FILTER]...")
@click.option("--view", type=click.Choice(VIEWS), default="running", show_default=True, help="The list below the panels.")
@click.option(
    "--interval", type=click.FloatRange(min=LEAST_INTERVAL), default=2.0, show_default=True, metavar="SECONDS", help="Between two looks."
)
@click.option("--once", "only_once", is_flag=True, help="One look as text, and leave.")
@click.option("--jsonl", is_flag=True, help="One JSON document on a line for each look, until Ctrl-C.")
def top(terms: tuple[str, ...], view: View, interval: float, *, only_once: bool, jsonl: bool) -> None:
    """Live: queues, throughput, and the jobs that run, wait or failed; until q or Ctrl-C.

    FILTER narrows the list, in the language of `jobs list`: queue:mail task:etl.*. On a terminal it is redrawn; with the extra tui
    (pip install "jobrunner-pg[tui]") it has keys, ? shows them. In a pipe it is text, look after look; --json is one look.
    """
    from jobrunner.filters import parse

    if jsonl and shared().json:
        raise click.UsageError("give one of --json and --jsonl")
    wanted_filter = parse(filter_text(terms))
    dsn = find_database()
    database = checked_database(dsn)
    from jobrunner.cli.top import screens
    from jobrunner.cli.top.watching import Wanted

    wanted = Wanted(view, wanted_filter)
    if shared().json or only_once:
        screens.once(database, wanted, dsn.target, jsonl=jsonl)
        return
    try:
        if jsonl or not on_terminal():
            screens.repeated(database, wanted, dsn.target, interval, jsonl=jsonl)
        elif find_spec("textual"):
            from jobrunner.cli.top.app import run

            run(database, wanted, dsn, interval)
        else:
            screens.redrawn(database, wanted, dsn.target, interval)
    except KeyboardInterrupt:
        return  # this is how watching ends
