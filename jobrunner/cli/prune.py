"""Owns `jobrunner prune`: all that retention would do over the next hours, now. It must not decide what is too old."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jobrunner.cli.failures import Code
from jobrunner.cli.lazy import Command
from jobrunner.cli.output import Column, print_json, print_table, say, warn
from jobrunner.cli.shared import shared
from jobrunner.cli.target import announce, checked_database, find_database
from jobrunner.cli.types import KEEP

if TYPE_CHECKING:
    from datetime import date, timedelta

    from jobrunner.database import Database
    from jobrunner.history.steps import Step

_SHOWN = frozenset({"dropped", "replaced", "settled"})


@click.command(cls=Command)
@click.option("--dry-run", is_flag=True, help="Count what would be removed, and change nothing.")
@click.option("--older-than", "older", type=KEEP, metavar="DURATION", help="Instead of what the rules say; what is kept forever stays.")
@click.option(
    "--archive", type=click.Path(path_type=Path), metavar="DIR", help="Write every row to a file there first.  [default: JOBRUNNER_ARCHIVE]"
)
def prune(*, dry_run: bool, older: tuple[timedelta | None] | None, archive: Path | None) -> None:
    """Remove finished jobs that are older than they are kept, day by day: what workers and cron runs do by and by, now.

    Safe while they run. What is in use is left for another time. Exit 1 when something could not be archived or removed.
    """
    from jobrunner.history.archive import directory_from, from_environ

    if older is not None and older[0] is None:
        raise click.UsageError("--older-than forever would remove nothing")
    sink = directory_from(archive, "--archive") if archive is not None else from_environ()
    dsn = find_database()
    database = checked_database(dsn if dry_run else announce(dsn))
    age = None if older is None else older[0]
    if dry_run:
        _show_plan(database, age)
        return
    from jobrunner.maintenance import prune as prune_now

    removed = prune_now(database, sink=sink, older=age, told=_tell)
    if shared().json:
        print_json(removed._asdict() | {"refused": [{"partition": part, "problem": problem} for part, problem in removed.refused]})
    elif not shared().quiet:
        days = f"{len(removed.dropped)} days dropped, {len(removed.replaced)} replaced"
        archived = f", {removed.archived_count:,} archived" if sink is not None else ""
        click.echo(f"about {removed.removed_count:,} rows removed{archived}; {days}")
    for part in removed.in_use:
        warn(f"{part} is in use and was left: the same again later, or see pg_stat_activity for who uses it")
    for part, problem in removed.refused:
        warn(f"{part} could not be changed: {problem}")
    click.get_current_context().exit(Code.BAD if removed.refused else Code.OK)


def _tell(step: Step) -> None:
    if step.did in _SHOWN:
        say(f"{step.part} {step.did}")


def _show_plan(database: Database, age: timedelta | None) -> None:
    from jobrunner.history.days import KEY, count, count_strays, due_days

    rows: list[dict[str, Any]] = []
    with database.store() as store:
        for day in due_days(store.connection, age):
            if not day.is_done:
                found = count(store.connection, day, age)
                rows.append(_planned(day.part, day.day, found.due_count, found.kept_count, whole=day.through))
        strays = [(f"{parent}_default", count_strays(store.connection, parent, age)) for parent in KEY]
    rows += [_planned(part, None, removes, None, whole=False) for part, removes in strays if removes]
    if shared().json:
        print_json({"items": rows})
        return
    columns = (Column("PARTITION"), Column("REMOVES", "right"), Column("KEEPS", "right"), Column("WHOLE DAY"))
    print_table(columns, [[row["partition"], row["removes"], row["keeps"], "yes" if row["whole"] else "no"] for row in rows])
    say(f"rows that would be removed: {sum(row['removes'] for row in rows):,}; nothing was changed")


def _planned(part: str, day: date | None, removes: int, keeps: int | None, *, whole: bool) -> dict[str, Any]:
    return {"partition": part, "day": day, "removes": removes, "keeps": keeps, "whole": whole}
