"""Owns `jobrunner jobs logs`: what the attempts of a job logged, once or as it comes.

It must not trust a line: control characters in it are shown, not obeyed.
"""

from __future__ import annotations

import time
from datetime import UTC
from typing import TYPE_CHECKING, Any

import click

from jobrunner.cli import documents
from jobrunner.cli.failures import Code, CommandError
from jobrunner.cli.lazy import Command
from jobrunner.cli.output import print_json, print_json_line, printable, printable_block, say, styled
from jobrunner.cli.shared import shared
from jobrunner.cli.target import checked_database, find_database
from jobrunner.cli.types import JOB_ID

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jobrunner.database import Database
    from jobrunner.inspection import LogPage, LogRow

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")  # inspection's, known here so that --help need not import it
MAX_TAIL = 1_000  # lines; inspection's as well
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 1.0  # seconds between two looks; a log that stays silent is looked at less often
_GROWTH = 1.5  # of the pause, with each look that finds nothing
_COLORS = {"DEBUG": "bright_black", "WARNING": "yellow", "ERROR": "red", "CRITICAL": "red"}
_LEVEL_WIDTH = max(len(level) for level in LEVELS)


@click.command(cls=Command)
@click.argument("job_id", type=JOB_ID, metavar="ID")
@click.option("--attempt", type=click.IntRange(min=1), metavar="NUMBER", help="Only lines of this attempt.  [default: all attempts]")
@click.option("--tail", type=click.IntRange(1, MAX_TAIL), metavar="NUMBER", help="Only the newest so many lines.  [default: all lines]")
@click.option("--level", type=click.Choice(LEVELS, case_sensitive=False), help="Only lines of this level or a higher one.")
@click.option("-f", "--follow", is_flag=True, help="Go on until the job is finished: exit 0 if it succeeded, 1 if not.")
@click.option("--jsonl", is_flag=True, help="One JSON document for each line.")
def logs(job_id: int, attempt: int | None, tail: int | None, level: str | None, *, follow: bool, jsonl: bool) -> None:
    """What the attempts of a job logged, the oldest line first, also while it runs.

    Each line has when it was logged, in which attempt, its level, its logger and the message.
    """
    if follow and shared().json:
        raise click.UsageError("--json is one document at the end, --follow has no end: give --jsonl")
    if jsonl and shared().json:
        raise click.UsageError("give one of --json and --jsonl")
    database = checked_database(find_database())
    log = _Log(database, job_id, {"attempt": attempt, "level": level}, tail)
    if shared().json:
        rows = [row for page in log.pages() for row in page.items]
        print_json({**_state(log), "items": [documents.log_line(row) for row in rows]})
        return
    printed = 0
    for page in log.followed() if follow else log.pages():
        if page.left_out and not printed:
            say(f"earlier lines left out: jobrunner jobs logs {job_id}")
        for row in page.items:
            if jsonl:
                print_json_line(documents.log_line(row))
            else:
                click.echo(_text(row))
        printed += len(page.items)
    if not printed:
        say(f"job {job_id} has logged nothing{' that matches' if attempt or level else ''}")
    if follow and log.state != "succeeded":
        from jobrunner.cli.jobs import was

        raise CommandError(Code.BAD, f"job {job_id} {was(log.state)}", hint=f"see:   jobrunner jobs show {job_id}")


class _Log:
    """The log of one job, page by page, and what was last seen of the job."""

    def __init__(self, database: Database, job_id: int, wanted: dict[str, Any], tail: int | None) -> None:
        self.database = database
        self.job_id = job_id
        self.wanted = wanted
        self.tail = tail
        self.after: str | None = None
        self.begun = False
        self.state = ""
        self.finished = False

    def pages(self) -> Iterator[LogPage]:
        """Everything there is now."""
        more = True
        while more:
            page = self._read()
            more = page.more
            yield page

    def followed(self) -> Iterator[LogPage]:
        """Everything there is and will be, until the job is finished."""
        from jobrunner.cli.jobs import warn_without_worker

        pause, warned = FIRST_PAUSE, False
        while True:
            found = False
            for page in self.pages():
                found = found or bool(page.items)
                yield page
            if self.finished:
                return
            if not warned:
                warned = True
                warn_without_worker(self.database)
            pause = FIRST_PAUSE if found else min(LONGEST_PAUSE, pause * _GROWTH)
            time.sleep(pause)

    def _read(self) -> LogPage:
        from jobrunner.inspection import MAX_LINES, job_logs

        # --tail is for the first look: nothing that comes later is left out.
        tail = None if self.begun else self.tail
        page = job_logs(self.database, self.job_id, after=self.after, tail=tail, limit=MAX_LINES, **self.wanted)
        self.begun, self.after, self.state, self.finished = True, page.next, page.state, page.finished
        return page


def _state(log: _Log) -> dict[str, Any]:
    return {"job_id": log.job_id, "state": log.state, "finished": log.finished, "next": log.after}


def _text(row: LogRow) -> str:
    """One line for a person; further lines of its message are indented below it."""
    when = row.logged_at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    level = row.level.ljust(_LEVEL_WIDTH)
    first, *rest = printable_block(row.message).split("\n")
    logger = f"{printable(row.logger)}: " if row.logger else ""
    line = f"{when}  {row.attempt}  {styled(level, _COLORS[row.level]) if row.level in _COLORS else level}  {logger}{first}"
    return "\n".join([line.rstrip(), *(f"    {more}" for more in rest)])
