"""Owns which database and which application a command works with.

It must not import the application when `--dsn` or the environment names the database, but for commands that need its tasks.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from jobrunner.cli.failures import Code, CommandError
from jobrunner.cli.output import say, warn
from jobrunner.cli.shared import shared

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from jobrunner.app import JobRunner
    from jobrunner.database import Database
    from jobrunner.routing import Routing
    from jobrunner.settings import Dsn

EMBEDDED = "the embedded PostgreSQL"
_FACTS = "jobrunner.cli.facts"
_NEEDS_NO_APP = "try:   --dsn or JOBRUNNER_DSN: commands that only read then need no app"


class AppFacts(NamedTuple):
    """What an application says about itself.

    Attributes:
        dsn: the database of its config; None when it names none.
        origin: where that came from.
        queues: of its tasks.
        has_flask: whether there is a Flask app to be served.
        databases, routes: of an application with several databases.
        calls: whether functions that are no tasks may run.
        embedded: its embedded worker, such as `threads:2`; empty when it has none.
        refused: why what it says of an embedded worker is none, and what to write instead; empty when there is nothing wrong with it.
    """

    dsn: str | None
    origin: str
    queues: list[str]
    has_flask: bool
    databases: dict[str, str]
    routes: dict[str, str]
    calls: bool
    embedded: str
    refused: Sequence[str] = ()


def find_database(*, of_app: bool = False, warns: bool = True, starts: bool = True) -> Dsn:
    """The database of a command that needs no task itself.

    With `--database` the one of that name. Else `--dsn`, then `JOBRUNNER_DSN`; the config of the app that was named by `--app` or
    `flask jobs`; `DATABASE_URL`; the config of an app that is found by itself; the embedded PostgreSQL, which is started. The app is
    imported, in another process, only to ask for its config.

    Args:
        of_app: the app's config goes before `DATABASE_URL` also when the app is found by itself; for commands that run its tasks.
        warns: say that the app's config goes before a `DATABASE_URL` that names another database.
        starts: False for a command that only looks around: the embedded PostgreSQL counts only when it runs already.

    Raises:
        ConfigurationError, EmbeddedError: no address, no database of that name, no PostgreSQL to start, or none that runs.
        AppImportError: the app had to be asked, and could not be imported.
    """
    from jobrunner.routing import no_default

    found = configured_database(of_app=of_app, warns=warns)
    if found is None and (others := routing()).databases:  # nothing is started beside a configured database
        raise no_default(others)
    return found or (start_embedded() if starts else _running_embedded())


def configured_database(*, of_app: bool = False, warns: bool = True) -> Dsn | None:
    """The same, but None when none is configured: nothing is started."""
    from jobrunner.routing import DEFAULT_DATABASE
    from jobrunner.settings import find_dsn

    values = shared()
    if values.database is not None and values.dsn is not None:
        raise CommandError(Code.USAGE, "--dsn and --database both say which database: give one of the two")
    if values.database not in {None, DEFAULT_DATABASE}:
        return routing().dsn_of(str(values.database))
    by_url = find_dsn(environ=_only("DATABASE_URL"))
    named = of_app or values.app is not None or _flask_info() is not None
    found = find_dsn(values.dsn, environ=_only("JOBRUNNER_DSN")) or (None if by_url and not named else _database_of_app())
    if warns and found and by_url and named and found.target != by_url.target and "Flask config" in found.origin:
        warn(
            f"{found.origin} ({found.target}) is used, not DATABASE_URL ({by_url.target}); "
            "commands that only read take DATABASE_URL without --app"
        )
    return found or by_url


def routing() -> Routing:
    """The databases with names, and the queues that live in them: of the environment, else of the app, as the app itself finds them.

    Raises:
        ConfigurationError, AppImportError: they are malformed, or the app had to be asked and could not be imported.
    """
    from jobrunner.routing import DATABASES, ONE_DATABASE, find_routing, make_routing

    if shared().dsn:
        return ONE_DATABASE
    if os.environ.get(DATABASES) or os.environ.get("JOBRUNNER_DSN"):
        return find_routing()
    facts = _asked()
    return make_routing(facts.databases, facts.routes) if facts is not None else ONE_DATABASE


def start_embedded() -> Dsn:
    """Start the embedded PostgreSQL of this directory, and say that it is used."""
    from jobrunner.embedded import start_project
    from jobrunner.settings import Dsn

    status = start_project()
    say(f"no database is configured: using {EMBEDDED}, {status.dsn}")
    return Dsn(status.dsn, EMBEDDED)


def _running_embedded() -> Dsn:
    from jobrunner.embedded import project_status
    from jobrunner.errors import ConfigurationError
    from jobrunner.settings import Dsn

    status = project_status()
    if not status.running:
        raise ConfigurationError(
            f"no database is configured, and {EMBEDDED} of {Path.cwd()} does not run",
            hint="set JOBRUNNER_DSN, or run:   jobrunner db start",
        )
    return Dsn(status.dsn, EMBEDDED)


def announce(dsn: Dsn) -> Dsn:
    """Say where a command is about to write, before it does."""
    say(f"{dsn.target} schema jobrunner", label="target")
    return dsn


def reach(dsn: Dsn) -> Dsn:
    """Make sure that the database answers. Raises DatabaseUnreachable with the reason and where the address came from."""
    from jobrunner.connecting import connect

    connect(dsn).close()
    return dsn


def checked_database(dsn: Dsn) -> Database:
    """A pool for one command, on a database whose schema fits.

    Raises:
        DatabaseUnreachable, SchemaError: it does not answer, or the schema is missing, outdated or too new.
    """
    from jobrunner import migrate
    from jobrunner.database import Database

    migrate.check(reach(dsn).url)
    return Database(dsn, pool_size=1)


def reading_database() -> Database:
    """A pool for a command that only reads: of the replica when one is configured and answers; which one is said on stderr.

    Raises:
        DatabaseUnreachable, SchemaError: it does not answer, or the schema is missing, outdated or too new.
    """
    from jobrunner import migrate

    dsn, replica = find_database(), read_dsn()
    if replica is None:
        return checked_database(dsn)
    from jobrunner.replicas import Reads

    reads = Reads(lambda: dsn, lambda: replica, pool_size=1)
    database = reads()
    standing = reads.standing()
    if standing is not None:
        (warn if standing.warns else say)(str(standing))
    migrate.check(reach(database.dsn).url)
    return database


def is_replica(database: Database) -> bool:
    """Whether that pool is of the configured replica: that it takes no changes is no trouble then."""
    from jobrunner.settings import READ_DSN

    return database.dsn.origin.startswith(READ_DSN)


def read_dsn() -> Dsn | None:
    """The replica of the database that a command finds by itself: none when `--dsn` or `--database` names another one."""
    from jobrunner.routing import DEFAULT_DATABASE
    from jobrunner.settings import find_read_dsn

    values = shared()
    if values.dsn or values.database not in {None, DEFAULT_DATABASE}:
        return None
    return find_read_dsn()


def load_app() -> JobRunner:
    """The application, imported into this process, on the database of `--dsn` when that is given.

    Raises:
        AppImportError: there is none, or its import raised.
    """
    runner = _import_app()
    values = shared()
    if values.dsn:
        runner.use_dsn(values.dsn)
    return runner


def database_of(runner: JobRunner) -> Dsn:
    """The database of an application; the embedded one, started, when it is configured for none."""
    dsn = runner.configured_dsn()
    if dsn is None:
        dsn = start_embedded()
        runner.use_dsn(dsn.url, dsn.origin)
    return dsn


def app_spec() -> str | None:
    """The address of the application for another process; None for its default."""
    values = shared()
    info = _flask_info()
    if values.app is None and info is not None:
        path: str | None = info.app_import_path
        return path
    return values.app


def _import_app() -> JobRunner:
    values = shared()
    info = _flask_info()
    with contextlib.redirect_stdout(sys.stderr):  # what the app prints at import is no answer of ours
        if values.app is None and info is not None:
            from jobrunner.loading import adopt

            return adopt(info.load_app(), info.app_import_path)
        from jobrunner.loading import load

        return load(values.app)


def ask_app() -> AppFacts | None:
    """What the application says about itself; None when there is none that uses Jobrunner, and none was named.

    It is imported in a forked child: threads that it starts and what it leaves open must not stay in this process.

    Raises:
        AppImportError: it was named and does not exist, or its import raised.
    """
    from jobrunner.errors import AppImportError

    with _pipe() as (read_end, write_end):
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            _answer(write_end)
        os.close(write_end)
        with open(read_end, encoding="utf-8", closefd=False) as pipe:
            text = pipe.read()
        os.waitpid(pid, 0)
    answer = json.loads(text or '{"error": "could not import the app: its import ended the process", "hint": ""}')
    if answer is None:
        return None
    if "error" in answer:
        raise AppImportError(answer["error"], hint=answer["hint"])
    return AppFacts(**answer)


def _database_of_app() -> Dsn | None:
    from jobrunner.settings import Dsn

    facts = _asked()
    return None if facts is None or facts.dsn is None else Dsn(facts.dsn, facts.origin)


def _asked() -> AppFacts | None:
    """What the app says, asked once for each command: each question imports it."""
    from jobrunner.errors import AppImportError

    context = click.get_current_context(silent=True)
    known: dict[str, Any] = context.meta if context is not None else {}
    if _FACTS not in known:
        try:
            known[_FACTS] = ask_app()
        except AppImportError as error:
            raise AppImportError(str(error), hint="\n".join(filter(None, [error.hint, _NEEDS_NO_APP]))) from error
    facts: AppFacts | None = known[_FACTS]
    return facts


def _answer(pipe: int) -> None:
    """The child's part: never returns."""
    try:
        os.dup2(2, 1)  # what the app prints at import is no answer of ours
        text = json.dumps(_facts())
    except BaseException as error:  # noqa: BLE001  an app can raise anything at import
        text = json.dumps({"error": str(error), "hint": getattr(error, "hint", "")})
        if shared().verbose:
            import traceback

            traceback.print_exception(error)
    with contextlib.suppress(OSError), open(pipe, "w", encoding="utf-8") as file:
        file.write(text)
    with contextlib.suppress(Exception):
        sys.stderr.flush()
    os._exit(0)


def _facts() -> dict[str, Any] | None:
    from jobrunner.errors import AppImportError, ConfigurationError
    from jobrunner.hosting.setting import is_forbidden

    try:
        runner = _import_app()
    except AppImportError as error:
        # A directory without an app, or with one that does not use Jobrunner, has nothing to say.
        if error.__cause__ is None and app_spec() is None:
            return None
        raise
    dsn = runner.configured_dsn()
    if dsn is not None and dsn.origin == "DATABASE_URL":
        dsn = None  # not the app's word: the caller looks there itself
    databases = {name: other.url for name, other in runner.routing.databases.items()}
    where = dsn.url if dsn else None, dsn.origin if dsn else ""
    embedded, refused = "", list[str]()
    try:
        embedded = "" if is_forbidden() else str(runner.find_embedded_worker() or "")
    except ConfigurationError as error:  # set in the config after `init_app`: no command but the doctor has anything to do with it
        refused = [str(error), error.hint]
    return AppFacts(
        *where, runner.queue_names(), runner.app is not None, databases, dict(runner.routing.routes), runner.calls.are_allowed,
        embedded, refused,
    )._asdict()  # fmt: skip


@contextlib.contextmanager
def _pipe() -> Iterator[tuple[int, int]]:
    read_end, write_end = os.pipe()
    try:
        yield read_end, write_end
    finally:
        for descriptor in (read_end, write_end):
            with contextlib.suppress(OSError):
                os.close(descriptor)


def _only(variable: str) -> dict[str, str]:
    return {variable: os.environ[variable]} if os.environ.get(variable) else {}


def _flask_info() -> Any:
    """Flask's ScriptInfo when the command came through `flask jobs`, else None."""
    if "flask.cli" not in sys.modules:
        return None
    from flask.cli import ScriptInfo

    context = click.get_current_context(silent=True)
    return context.find_object(ScriptInfo) if context is not None else None
