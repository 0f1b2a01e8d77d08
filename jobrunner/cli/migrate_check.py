"""Owns `jobrunner migrate-check`: what code uses of Celery and other ways to run background work, and what becomes of each use.

It must not import the code, nor need a database or an application.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import click

from jobrunner.cli.failures import Code
from jobrunner.cli.lazy import Command
from jobrunner.cli.output import Column, print_json, print_table, printable, styled, warn
from jobrunner.cli.shared import shared

if TYPE_CHECKING:
    from jobrunner.migrating import Rating, Report, Use

_WIDTH = 100  # columns of what is a sentence; places are never broken
_INDENT = "    "
_COLORS = {"ok": "green", "changed": "yellow", "unsupported": "red"}


class _Names(click.ParamType):  # type: ignore[type-arg]  # generic only in newer releases of click
    """Some of a few words, separated by commas."""

    name = "names"

    def __init__(self, *known: str) -> None:
        self.known = known

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        names = tuple(part.strip() for part in str(value).split(",") if part.strip())
        for name in names:
            if name not in self.known:
                self.fail(f"{name!r} is none of {', '.join(self.known)}", param, ctx)
        return names or self.known


_RATINGS = ("unsupported", "changed", "ok")
_WAYS = ("celery", "executor", "threads", "queue")  # jobrunner.migrating.WAYS, known here so that --help need not import it


@click.command("migrate-check", cls=Command)
@click.argument("paths", nargs=-1, type=click.Path(exists=True), metavar="[PATH]...")
@click.option("--only", type=_Names(*_RATINGS), metavar="RATINGS", help="Show these only: unsupported, changed, ok.  [default: all]")
@click.option("--way", type=_Names(*_WAYS), metavar="WAYS", help="Look for these only: celery, executor, threads, queue.  [default: all]")
@click.option("--include", multiple=True, metavar="PATTERN", help="Look also at paths like this one: 'vendor/ours/*'. May be repeated.")
@click.option("--exclude", multiple=True, metavar="PATTERN", help="Pass over paths like this one: 'tests/*'. May be repeated.")
@click.option("--exit-zero", is_flag=True, help="Leave with 0 also when something is unsupported.")
def migrate_check(
    paths: tuple[str, ...],
    *,
    only: tuple[str, ...] | None,
    way: tuple[str, ...] | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    exit_zero: bool,
) -> None:
    """List what code uses of Celery, Flask-Executor, threads and message queues, and what to do about each.

    Exit 1 when something is unsupported.

    PATH is a file or a directory; default: this directory. The code is read, never imported. Python files and notebooks are looked at,
    and command lines and settings in Procfile, Dockerfile, docker-compose.yml, units, Makefile, shell scripts and the like. Virtual
    environments, node_modules and hidden directories are passed over.
    """
    from jobrunner.migrating import Rating, scan

    report = scan(paths or (".",), ways=way or _WAYS, include=include, exclude=exclude)
    uses = report.only(Rating(name) for name in only or _RATINGS)
    if shared().json:
        print_json(_document(report, uses))
    else:
        _show(report, uses)
    for path, reason in report.unread:
        warn(f"not looked at: {printable(path)} ({printable(reason)})")
    if report.unsupported and not exit_zero:
        click.get_current_context().exit(Code.BAD)


def _document(report: Report, uses: list[Use]) -> dict[str, Any]:
    return {
        "ok": not report.unsupported,
        "files": report.files,
        "lines": report.lines,
        "counts": report.counts(),
        "uses": [
            {
                "path": use.path,
                "cell": use.cell,
                "line": use.line,
                "column": use.column,
                "way": use.rule.way,
                "kind": use.rule.kind,
                "what": use.what,
                "rating": use.rule.rating,
                "advice": use.rule.advice,
                "certain": use.certain,
            }
            for use in uses
        ],
        "unread": [{"path": path, "reason": reason} for path, reason in report.unread],
    }


def _show(report: Report, uses: list[Use]) -> None:
    from jobrunner.migrating import groups

    rating: Rating | None = None
    for group in groups(uses):
        if group.rule.rating is not rating:
            rating = group.rule.rating
            click.echo(styled(rating.value, _COLORS[rating]))
            click.echo()
        count = len(group.uses)
        click.echo(click.style(f"  {printable(group.what)}", bold=True) + f"  ({group.rule.way}, {_times(count)})")
        for line in textwrap.wrap(group.rule.advice, _WIDTH - len(_INDENT), break_long_words=False, break_on_hyphens=False):
            click.echo(_INDENT + line)
        for use in group.uses:
            click.echo(f"{_INDENT}{printable(use.place)}{'' if use.certain else '   (by its name)'}")
        click.echo()
    _sum(report)


def _sum(report: Report) -> None:
    counts = {way: numbers for way, numbers in report.counts().items() if any(numbers.values())}
    if counts:
        columns = [Column("WAY"), *(Column(name.upper(), "right") for name in _RATINGS)]
        print_table(columns, [[way, *(numbers[name] for name in _RATINGS)] for way, numbers in counts.items()])
        click.echo()
    files = len({use.path for use in report.uses})
    found = f"{_uses(len(report.uses))} in {files} of {report.files} files, {report.lines:,} lines"
    click.echo(f"{found}; what the ratings mean: docs/how-to/migrate-check.md" if report.uses else f"nothing found in {report.files} files")


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _uses(count: int) -> str:
    return "1 use" if count == 1 else f"{count:,} uses"
