"""Owns `jobrunner doctor`: what keeps jobs from running here, and the crontab line of this project. It must not change anything."""

from __future__ import annotations

import textwrap
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jobrunner.cli.failures import Code, CommandError
from jobrunner.cli.lazy import Command
from jobrunner.cli.output import print_json, printable, styled
from jobrunner.cli.shared import shared
from jobrunner.cli.target import app_spec
from jobrunner.cli.types import DURATION, QUEUES

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobrunner.cli.checkups import Sight
    from jobrunner.cli.crontab import Crontab
    from jobrunner.cli.engine import Queues
    from jobrunner.doctor import Finding

_EVERY = timedelta(minutes=1)  # of the line that is printed when nothing else is asked for
_WIDTH = 80  # columns of what is a sentence; commands are never broken
_INDENT = 8
_COLORS = {"ok": "green", "note": "yellow", "bad": "red"}


@click.command(cls=Command)
@click.argument("names", metavar="[QUEUES]", type=QUEUES, required=False)
@click.option("--setup", is_flag=True, help="Only the address, the schema's version and the import of the app: no look into the database.")
@click.option("--cron", is_flag=True, help="Print the crontab line of this project, try it out, and look at its past runs.")
@click.option("--every", type=DURATION, metavar="DURATION", help="With --cron: how often it is started.  [default: 60s, or as learned]")
@click.option("--pool", metavar="NAME", help="With --cron: as for the command cron.  [default: the queues' names]")
@click.option(
    "--env-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="With --cron: is read before.  [default: .env here, if it has the DSN]",
)
@click.option("--all-databases", is_flag=True, help="Look at each of several databases.")
def doctor(
    names: Queues | None,
    *,
    setup: bool,
    cron: bool,
    every: timedelta | None,
    pool: str | None,
    env_file: Path | None,
    all_databases: bool,
) -> None:
    """Find out what keeps jobs from running or slows them down, and say how to mend it. Exit 1 when something is bad.

    QUEUES, with --cron: those that the line serves. Default: those of the app's tasks.
    """
    if not cron and (names or every or pool or env_file):
        raise CommandError(Code.USAGE, "QUEUES, --every, --pool and --env-file are for --cron", hint="try:   jobrunner doctor --cron …")
    if all_databases:
        if cron:
            raise CommandError(Code.USAGE, "--cron is about one crontab line: leave --all-databases out")
        from jobrunner.cli import databases

        documents = databases.each(lambda: _examine(setup=setup))
        code = databases.worst(documents)
        if shared().json:
            print_json({"ok": code == Code.OK, "databases": documents})
        click.get_current_context().exit(code)
    document = _examine(setup=setup, line=(lambda sight: _crontab(sight, names, every, pool, env_file)) if cron else None, every=every)
    code = document.pop("exit")
    if shared().json:
        print_json(document)
    click.get_current_context().exit(code)


def _examine(*, setup: bool, line: Callable[[Sight], Crontab] | None = None, every: timedelta | None = None) -> dict[str, Any]:
    """Look at one database, print what was found unless it is to be JSON, and give that document, with `exit`."""
    from jobrunner.cli import checkups
    from jobrunner.doctor import examine

    sight = checkups.general()
    crontab = None
    findings = [replace(finding, group="setup") for finding in sight.findings]
    if line is not None:
        crontab = line(sight)
        findings += [replace(finding, group="cron") for finding in _about_cron(sight, crontab, every)]
    elif sight.database is not None and not setup:
        findings += (checkups.of_app(finding, sight.app) for finding in examine(sight.database, schema_fits=sight.schema_fits))
    wrong = any(finding.state == "bad" for finding in findings)
    if not shared().json:
        _show(findings, crontab)
    return {
        "ok": not wrong,
        "target": sight.dsn.target if sight.dsn else None,
        "crontab": crontab.line if crontab else None,
        "checks": [finding.document() for finding in findings],
        "exit": int(Code.BAD if wrong else Code.OK),
    }


def _crontab(sight: Sight, names: Queues | None, every: timedelta | None, pool: str | None, env_file: Path | None) -> Crontab:
    import os

    from jobrunner.cli.crontab import Crontab, assignments, needs_environment, program, schedule
    from jobrunner.settings import DEFAULT_QUEUE

    every = every or _EVERY
    schedule(every)  # refuses what cron cannot keep
    queues = ",".join(f"{name}:{most}" if most else name for name, most in names or ())
    if not queues and sight.app is not None and sight.app.queues != [DEFAULT_QUEUE]:
        queues = ",".join(sight.app.queues)
    here = Path.cwd()
    if env_file is None and {"JOBRUNNER_DSN", "DATABASE_URL"} & assignments(here / ".env").keys():
        env_file = here / ".env"
    dsn = None
    if sight.dsn is not None and needs_environment(sight.dsn) and env_file is None and not _has_password(sight.dsn.url):
        dsn = sight.dsn.url
    app = app_spec() or os.environ.get("JOBRUNNER_APP") or os.environ.get("FLASK_APP")
    return Crontab(here, program(), app, queues, pool, every, dsn, env_file.absolute() if env_file else None)


def _has_password(url: str) -> bool:
    from psycopg.conninfo import conninfo_to_dict

    return bool(conninfo_to_dict(url).get("password"))


def _about_cron(sight: Sight, crontab: Crontab, every: timedelta | None) -> list[Finding]:
    from jobrunner.cli import checkups
    from jobrunner.settings import DEFAULT_QUEUE

    findings = checkups.environment(crontab, sight.dsn) if sight.dsn else []
    findings += checkups.as_cron(crontab, sight.dsn)
    if sight.database is not None and sight.schema_fits:
        names = sorted(part.partition(":")[0] for part in crontab.queues.split(",")) if crontab.queues else [DEFAULT_QUEUE]
        findings.append(checkups.clocks(sight.database))
        findings += checkups.runs(sight.database, crontab, crontab.pool or ",".join(names), every)
    return findings


def _show(findings: list[Finding], crontab: Crontab | None) -> None:
    if crontab is not None:
        click.echo(crontab.line)
        click.echo()
    from jobrunner.doctor import GROUPS

    group = None
    for finding in findings:
        if finding.group != group:
            click.echo(("\n" if group else "") + click.style(GROUPS[finding.group], bold=True))
            group = finding.group
        first, *more = textwrap.wrap(printable(finding.text), _WIDTH - _INDENT, break_long_words=False, break_on_hyphens=False)
        click.echo(f"  {styled(f'{finding.state:<4}', _COLORS[finding.state])}  {first}")
        for line in more:
            click.echo(" " * _INDENT + line)
        _show_fix(finding.fix)
    click.echo()
    click.echo(_summary(findings))


def _show_fix(fix: str) -> None:
    """Each line of it, as it is to be typed: `sql` for a database, `fix` for a shell or in words."""
    label = "sql: " if fix.endswith(";") else "fix: "
    for line in fix.splitlines():
        click.echo(" " * _INDENT + label + printable(line))
        label = "     "


def _summary(findings: list[Finding]) -> str:
    count = {state: sum(finding.state == state for finding in findings) for state in _COLORS}
    if not count["bad"] and not count["note"]:
        return f"all is well: {len(findings)} findings are ok"
    return f"{count['bad']} bad, {count['note']} to note, {count['ok']} ok; what each means: docs/how-to/doctor.md"
