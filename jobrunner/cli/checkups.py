"""Owns what `jobrunner doctor` looks at on this host: the address, the app, cron. `jobrunner.doctor` looks at the database.

It must not mend anything itself, nor stop at the first thing that is wrong.
"""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from jobrunner import errors
from jobrunner.cli import failures
from jobrunner.cli.output import duration, iso
from jobrunner.cli.target import ask_app, find_database
from jobrunner.doctor import Finding
from jobrunner.texts import redacted

if TYPE_CHECKING:
    from jobrunner.cli.crontab import Crontab
    from jobrunner.cli.target import AppFacts
    from jobrunner.database import Database
    from jobrunner.inspection import CronHistory
    from jobrunner.settings import Dsn

LOOK_BACK = timedelta(hours=1)
SHOWN_GAPS = 3
_SKEW = timedelta(seconds=5)  # between this clock and the database's, above which a minute of cron is not the database's minute
_ZONES = "/zoneinfo/"
_OTHERS = 0o077  # bits of a file's mode for everybody but the owner
_CRONS = frozenset({"cron", "crond", "anacron", "fcron", "dcron", "busybox"})


class Sight(NamedTuple):
    """What the general checks have found; None for what could not be had.

    Attributes:
        schema_fits: its tables can be read by this program.
    """

    findings: list[Finding]
    dsn: Dsn | None
    database: Database | None
    app: AppFacts | None
    schema_fits: bool = False


def general() -> Sight:
    """Whether the database answers, its schema fits and the app can be imported."""
    app, about_import = _app()
    about_app = [about_import, *_embedded_worker(app)]
    try:
        dsn = find_database(of_app=True, starts=False)
    except errors.JobrunnerError as error:
        return Sight([_bad("database", error), *about_app], None, None, app)
    from jobrunner.connecting import connect
    from jobrunner.database import Database

    try:
        with connect(dsn) as connection:
            version, user = connection.info.server_version // 10_000, connection.info.user
    except errors.JobrunnerError as error:
        return Sight([_bad("database", error), *about_app], dsn, None, app)
    answers = Finding("database", "ok", f"{dsn.target} answers: PostgreSQL {version}, found in {dsn.origin}")
    about_schema = _schema(dsn, user)
    return Sight([answers, about_schema, *about_app], dsn, Database(dsn, pool_size=1), app, about_schema.state == "ok")


def _schema(dsn: Dsn, user: str) -> Finding:
    from sqlalchemy.exc import SQLAlchemyError

    from jobrunner import migrate

    try:
        found = migrate.check(dsn.url)
    except errors.JobrunnerError as error:
        if type(error) is errors.SchemaError:  # a missing right; its subclasses are about the schema itself
            return Finding("schema", "note", f"could not look at the schema: {error}", _granting(user, error.hint), {"unseen": str(error)})
        return _bad("schema", error)
    except SQLAlchemyError as error:  # locked by a migration, or the server went away
        reason = redacted(str(getattr(error, "orig", error)).splitlines()[0])
        return Finding("schema", "note", f"could not look at the schema's version: {reason}", "jobrunner db current", {"unseen": reason})
    return Finding("schema", "ok", f"the schema is at {found.current}, as this program needs it", data={"revision": found.current})


def _granting(user: str, hint: str) -> str:
    """The statements of a hint, for this role."""
    from jobrunner.doctor.findings import role

    return hint.replace("that_user", role(user)).replace("; ", ";\n") + ";"


def _app() -> tuple[AppFacts | None, Finding]:
    try:
        app = ask_app()
    except errors.JobrunnerError as error:
        return None, _bad("app", error)
    if app is None:
        text = "there is no application here that uses Jobrunner: nothing can run"
        return None, Finding("app", "bad", text, "jobrunner --app module:app …, or cd to where app.py is")
    if app.queues:
        return app, Finding("app", "ok", f"the app can be imported; its tasks' queues are {', '.join(app.queues)}")
    fix = "if it has tasks: import their modules where the app is made"
    if not app.calls:
        text = "the app can be imported; it registers no task, and no other function may run: nothing can run"
        return app, Finding("app", "bad", text, fix)
    text = "the app can be imported; it registers no task: only functions can run that jobs.background or an executor is given"
    return app, Finding("app", "note", text, fix)


def _embedded_worker(app: AppFacts | None) -> list[Finding]:
    if app is None or not app.refused:
        return []
    error, hint = app.refused
    return [Finding("embedded_worker", "bad", f"the web server starts no embedded worker: {error}", hint)]


def of_app(finding: Finding, app: AppFacts | None) -> Finding:
    """What was found in the database, as it is to be said of this app: its embedded worker is missing when no web server serves it."""
    if app is None or not app.embedded or (finding.code, finding.state) != ("no_worker", "bad"):
        return finding
    text = (
        f"{finding.text}. The app has an embedded worker ({app.embedded}): no web server serves the app, or the server's log says why its "
        "worker does not start"
    )
    return replace(finding, text=text, fix=f"start the web server, or: {finding.fix}", data={**finding.data, "embedded": app.embedded})


def environment(crontab: Crontab, dsn: Dsn) -> list[Finding]:
    """Where cron would find the database's address, and who else can read it there."""
    from jobrunner.cli.crontab import needs_environment

    path = crontab.env_file
    if path is not None and not path.is_file():
        return [Finding("env_file", "bad", f"there is no file {path}", f"put JOBRUNNER_DSN=… into it, then: chmod 600 {path}")]
    if path is not None and path.stat().st_mode & _OTHERS:
        return [Finding("env_file", "bad", f"others than its owner may read {path}", f"chmod 600 {path}")]
    if not needs_environment(dsn) or path is not None or crontab.dsn is not None:
        return []
    text = f"the address in {dsn.origin} has a password, which does not belong into a crontab"
    path = crontab.directory / ".env"
    return [Finding("password", "bad", text, f"put JOBRUNNER_DSN='…' into {path}, chmod 600 {path}, then: jobrunner doctor --cron")]


def as_cron(crontab: Crontab, dsn: Dsn | None) -> list[Finding]:
    """Whether the line works where there is nothing but HOME, LOGNAME, SHELL and a short PATH, begun in another directory."""
    found = crontab.try_out()
    if isinstance(found, str):
        return [
            Finding("as_cron", "bad", f"in cron's environment the line does not start: {found}", "see what the line prints in: env -i sh")
        ]
    wrong = [
        Finding(f"as_cron_{check['code']}", "bad", f"in cron's environment: {check['text']}", check["fix"])
        for check in found["checks"]
        if check["code"] in {"database", "schema", "app"} and check["state"] == "bad"
    ]
    if dsn is not None and found["target"] != dsn.target:
        text = f"in cron's environment the database is {found['target'] or 'not found'}; here it is {dsn.target}"
        fix = f"put JOBRUNNER_DSN into {crontab.directory / '.env'} (chmod 600), or give --dsn"
        wrong.append(Finding("as_cron_target", "bad", text, fix))
    return wrong or [Finding("as_cron", "ok", "the line works in cron's environment: the app is found and imported, the database answers")]


def clocks(database: Database) -> Finding:
    """In which zones cron and the database think, and whether their clocks agree."""
    with database.store() as store:
        row = store.connection.execute("SELECT current_setting('TimeZone'), clock_timestamp()").fetchone()
    zone, at = row if row is not None else ("?", datetime.now(UTC))
    link = os.path.realpath("/etc/localtime")
    own = link.partition(_ZONES)[2] or "UTC"
    text = f"cron reads hours in {own}, whatever TZ is in your shell; the database shows instants in {zone}; all are stored in UTC"
    skew = abs(datetime.now(UTC) - at)
    if skew > _SKEW:
        return Finding(
            "clocks", "note", f"{text}. This clock and the database's are {duration(skew.total_seconds())} apart", "chronyc tracking"
        )
    return Finding("clocks", "ok", text)


def runs(database: Database, crontab: Crontab, pool: str, every: timedelta | None) -> list[Finding]:
    """Whether cron's starts came, and ended well."""
    from jobrunner import inspection

    history = inspection.cron_history(database, pool, since=LOOK_BACK if every is None else max(LOOK_BACK, 3 * every), every=every)
    return [*_starts(history, crontab, pool), *_ends(history, pool)]


def _starts(history: CronHistory, crontab: Crontab, pool: str) -> list[Finding]:
    from shlex import quote

    if history.last_start is None:
        install = f"(crontab -l 2>/dev/null; echo {quote(crontab.line)}) | crontab -"
        return [Finding("never_ran", "bad", f"no run of pool {pool!r} is on record: cron has not started it yet", install), *_daemon()]
    if history.every is None and history.starts:
        text = f"too few runs of pool {pool!r} in the last hour ({history.starts}) to learn how often cron starts it"
        return [Finding("runs", "note", text, "jobrunner doctor --cron --every 60s")]
    if history.missed or not history.starts:
        number = sum(gap.starts for gap in history.missed)
        last = ", ".join(f"{gap.starts} from {iso(gap.since)} to {iso(gap.until)}" for gap in history.missed[-SHOWN_GAPS:])
        what = f"starts did not come ({number}): {last}" if number else f"none came lately; the last run began at {iso(history.last_start)}"
        return [Finding("missed", "bad", f"pool {pool!r}: {what}", "journalctl -u cron --since -1h; crontab -l"), *_daemon()]
    every = duration(history.every.total_seconds()) if history.every else "?"
    return [Finding("runs", "ok", f"{history.starts} runs of pool {pool!r} lately, every {every}, none missed")]


def _ends(history: CronHistory, pool: str) -> list[Finding]:
    if not history.bad:
        return []
    reason, error = history.bad[-1]
    last = f"{reason}: {error.splitlines()[0]}" if error else reason
    number = len(history.bad)
    text = f"{number} {'run' if number == 1 else 'runs'} of pool {pool!r} ended badly; the last: {last}"
    return [Finding("bad_runs", "bad", text, f"jobrunner workers runs --pool {pool}")]


def _daemon() -> list[Finding]:
    """A likely reason for starts that did not come: nobody is there to make them."""
    if not Path("/proc/self/comm").exists() or _processes() & _CRONS:
        return []
    return [Finding("no_cron", "bad", "no cron daemon runs on this host", "service cron start")]


def _processes() -> set[str]:
    names = set()
    for entry in Path("/proc").glob("[0-9]*/comm"):
        try:
            names.add(os.fsdecode(entry.read_bytes()).strip())  # a process may call itself anything
        except OSError:  # it has just ended
            continue
    return names


def _bad(code: str, error: errors.JobrunnerError) -> Finding:
    failure = failures.describe(error)
    fix = "; ".join(" ".join(line.split()) for line in failure.lines) or "jobrunner -v doctor     (shows where it was raised)"
    return Finding(code, "bad", " ".join(failure.message.split()), fix)
