"""Owns `jobrunner doctor`: what keeps jobs from running here, and the crontab line of this project. It must not change anything."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from jobrunner.cli import checkups
from jobrunner.cli.failures import Code, CommandError
from jobrunner.cli.lazy import Command
from jobrunner.cli.output import print_json, printable, styled
from jobrunner.cli.shared import shared
from jobrunner.cli.target import app_spec
from jobrunner.cli.types import DURATION, QUEUES

if TYPE_CHECKING:
    from jobrunner.cli.checkups import Finding, Sight
    from jobrunner.cli.crontab import Crontab
    from jobrunner.cli.engine import Queues

_EVERY = timedelta(minutes=1)  # of the line that is printed when nothing else is asked for
_COLORS = {"ok": "green", "note": "yellow", "bad": "red"}


@click.command(cls=Command)
@click.argument("names", metavar="[QUEUES]", type=QUEUES, required=False)
@click.option("--cron", is_flag=True, help="Print the crontab line of this project, try it out, and look at its past runs.")
@click.option("--every", type=DURATION, metavar="DURATION", help="With --cron: how often it is started.  [default: 60s, or as learned]")
@click.option("--pool", metavar="NAME", help="With --cron: as for the command cron.  [default: the queues' names]")
@click.option(
    "--env-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="With --cron: is read before.  [default: .env here, if it has the DSN]",
)
def doctor(names: Queues | None, *, cron: bool, every: timedelta | None, pool: str | None, env_file: Path | None) -> None:
    """Find out what keeps jobs from running, and say how to mend it. Exit 1 when something does.

    QUEUES, with --cron: those that the line serves. Default: those of the app's tasks.
    """
    if not cron and (names or every or pool or env_file):
        raise CommandError(Code.USAGE, "QUEUES, --every, --pool and --env-file are for --cron", hint="try:   jobrunner doctor --cron …")
    sight = checkups.general()
    crontab = None
    if cron:
        crontab = _crontab(sight, names, every, pool, env_file)
        findings = [*sight.findings, *_about_cron(sight, crontab, every)]
    else:
        findings = [*sight.findings, *([*checkups.workers(sight.database), *checkups.history(sight.database)] if sight.database else [])]
    wrong = any(finding.state == "bad" for finding in findings)
    if shared().json:
        document = {
            "ok": not wrong,
            "target": sight.dsn.target if sight.dsn else None,
            "crontab": crontab.line if crontab else None,
            "checks": [finding._asdict() for finding in findings],
        }
        print_json(document)
    else:
        _show(findings, crontab)
    click.get_current_context().exit(Code.BAD if wrong else Code.OK)


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
    from jobrunner.settings import DEFAULT_QUEUE

    findings = checkups.environment(crontab, sight.dsn) if sight.dsn else []
    findings += checkups.as_cron(crontab, sight.dsn)
    if sight.database is not None:
        names = sorted(part.partition(":")[0] for part in crontab.queues.split(",")) if crontab.queues else [DEFAULT_QUEUE]
        findings.append(checkups.clocks(sight.database))
        findings += checkups.runs(sight.database, crontab, crontab.pool or ",".join(names), every)
    return findings


def _show(findings: list[Finding], crontab: Crontab | None) -> None:
    if crontab is not None:
        click.echo(crontab.line)
        click.echo()
    for finding in findings:
        click.echo(f"{styled(f'{finding.state:<4}', _COLORS[finding.state])}  {printable(finding.text)}")
        if finding.fix:
            click.echo(f"      fix: {printable(finding.fix)}")
