"""Owns `jobrunner retention …`: the rules of how long finished jobs are kept, and what they come to. It must not remove a job."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import click

from jobrunner.cli.failures import Code, CommandError
from jobrunner.cli.lazy import Command, Entry, LazyGroup
from jobrunner.cli.output import Column, iso, print_json, print_table, say, size
from jobrunner.cli.shared import shared
from jobrunner.cli.target import announce, checked_database, find_database
from jobrunner.cli.types import KEEP
from jobrunner.keeping import ALL, STATES, Rule, keep_text

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from jobrunner.history.days import Day, Weight
    from jobrunner.history.rules import RuleRow

_HERE = "jobrunner.cli.retention"
ENTRIES = {
    "set": Entry(_HERE, "set_", "Set how long finished jobs are kept; goes before what the code says."),
    "unset": Entry(_HERE, "unset", "Take a rule that was set away again."),
}


class Overview(NamedTuple):
    """What the database says about retention at one moment."""

    rules: list[RuleRow]
    weights: list[Weight]
    due: list[Day]
    problems: list[tuple[str, str, datetime]]


@click.group(cls=LazyGroup, entries=ENTRIES, invoke_without_command=True)
@click.pass_context
def retention(ctx: click.Context) -> None:
    """List how long finished jobs are kept, what is too old by now, and what kept it from being removed.

    Of two rules the one for task and state goes before that for the task, that before the one for the state; then a rule that was set
    goes before what the code says. Days are UTC; a day goes when all of it is old enough.
    """
    if ctx.invoked_subcommand is not None:
        return
    found = _overview()
    if shared().json:
        print_json(_document(found))
        return
    columns = (
        Column("TASK"), Column("STATE"), Column("KEEP", "right"), Column("FROM"), Column("REMOVES DAYS TO"), Column("NEXT"),
        Column("BY", grow=True),
    )  # fmt: skip
    print_table(columns, [_cells(row) for row in found.rules])
    click.echo()
    for weight in found.weights:
        oldest = f", the oldest of {weight.oldest}" if weight.oldest else ""
        click.echo(f"{weight.parent}: {weight.day_count} days{oldest}; about {weight.row_estimate:,} rows, {size(weight.size)}")
    waiting = [day for day in found.due if not day.is_done]
    if waiting:
        click.echo(f"to be looked into: {len(waiting)} days, the first {waiting[0].part}; workers and cron runs do it, or: jobrunner prune")
    for part, problem, at in found.problems:
        click.echo(f"{click.style('not removed', fg='red')}: {part}: {problem} ({iso(at)})")


@click.command("set", cls=Command)
@click.argument("keep", type=KEEP, metavar="DURATION")
@click.option("--task", default=ALL, metavar="NAME", help="Of this task; * stands for anything: 'mail.*'.  [default: all]")
@click.option("--state", type=click.Choice(STATES), metavar="STATE", help=f"Jobs that ended so: {', '.join(STATES)}.  [default: all]")
def set_(keep: tuple[timedelta | None], task: str, state: str | None) -> None:
    """Set how long finished jobs are kept: DURATION is a day or more, such as 30d, or forever.

    It holds for what is there already, and from the next step of any worker or cron run on. What is removed does not come back.
    """
    from jobrunner.history.rules import set_rule

    rule = Rule(_checked(task), state or ALL, keep[0])
    database = checked_database(announce(find_database()))
    with database.store() as store:
        changed = set_rule(store.connection, rule)
    say(f"{_what(rule)}: kept {_how_long(rule.keep)}{'' if changed else ', as before'}")


@click.command("unset", cls=Command)
@click.option("--task", default=ALL, metavar="NAME", help="The rule of this task.  [default: the one for all]")
@click.option("--state", type=click.Choice(STATES), metavar="STATE", help="The rule of this state.  [default: the one for all]")
def unset(task: str, state: str | None) -> None:
    """Take a rule that was set away; what the code says of the same, or the next more general rule, holds again."""
    from jobrunner.history.rules import unset_rule

    rule = Rule(_checked(task), state or ALL, None)
    database = checked_database(announce(find_database()))
    with database.store() as store:
        if not unset_rule(store.connection, rule.task, rule.state):
            raise CommandError(Code.NOT_FOUND, f"no rule was set for {_what(rule)}", hint="see:   jobrunner retention")
    say(f"{_what(rule)}: the rule is gone")


def _overview() -> Overview:
    from jobrunner.history.days import due_days, problems, weights
    from jobrunner.history.rules import list_rules

    database = checked_database(find_database())
    with database.store() as store, store.connection.transaction():
        store.connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        connection = store.connection
        return Overview(list_rules(connection), weights(connection), due_days(connection), problems(connection))


def _cells(row: RuleRow) -> list[object]:
    by = row.app if row.origin == "code" else row.changed_by
    origin = f"{row.origin} (overridden)" if row.overridden else row.origin
    return [row.task, row.state, keep_text(row.keep), origin, row.through, row.next_at and iso(row.next_at), by]


def _document(found: Overview) -> dict[str, Any]:
    return {
        "items": [
            {**row._asdict(), "keep": keep_text(row.keep), "keep_seconds": None if row.keep is None else row.keep.total_seconds()}
            for row in found.rules
        ],
        "tables": [
            {
                "table": weight.parent, "days": weight.day_count, "oldest": weight.oldest, "row_estimate": weight.row_estimate,
                "size": weight.size,
            }
            for weight in found.weights
        ],
        "due": [
            {
                "partition": day.part, "day": day.day, "whole": day.through, "phase": day.phase, "due_count": day.due_count,
                "kept_count": day.kept_count,
            }
            for day in found.due
            if not day.is_done
        ],
        "problems": [{"partition": part, "problem": problem, "at": at} for part, problem, at in found.problems],
    }  # fmt: skip


def _checked(task: str) -> str:
    from jobrunner.checks import check_name

    try:
        return check_name(task, "a task's name")
    except ValueError as error:
        raise CommandError(Code.USAGE, f"--task {task!r}: {error}", hint="such as --task mail.send or --task 'mail.*'") from None


def _what(rule: Rule) -> str:
    jobs = "jobs of all tasks" if rule.task == ALL else f"jobs of {rule.task}"
    return jobs if rule.state == ALL else f"{rule.state} {jobs}"


def _how_long(keep: timedelta | None) -> str:
    return keep_text(keep) if keep is None else f"for {keep_text(keep)}"
