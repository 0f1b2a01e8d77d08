"""Owns `jobrunner db …`: the schema's version and the embedded PostgreSQL's life.

It must not change a schema except in `upgrade`, nor touch a configured database in `start`, `stop` and `destroy`.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from jobrunner.cli.failures import Code, CommandError
from jobrunner.cli.lazy import Command, Entry, LazyGroup
from jobrunner.cli.output import Column, print_json, print_table, say, size, warn
from jobrunner.cli.shared import shared
from jobrunner.cli.target import announce, find_database, reach

if TYPE_CHECKING:
    from jobrunner.embedded import ClusterStatus
    from jobrunner.migrate import SchemaVersion

_HERE = "jobrunner.cli.db"
ENTRIES = {
    "upgrade": Entry(_HERE, "upgrade", "Bring the schema to what this program needs."),
    "current": Entry(_HERE, "current", "Show the schema's version."),
    "check": Entry(_HERE, "check", "Tell whether the schema is right: exit 0, 1 (differs) or 4 (missing, outdated, too new)."),
    "sql": Entry(_HERE, "sql", "Print the migrations as SQL; needs no connection."),
    "start": Entry(_HERE, "start", "Start the embedded PostgreSQL of this directory."),
    "stop": Entry(_HERE, "stop", "Stop the embedded PostgreSQL of this directory."),
    "status": Entry(_HERE, "status", "Look at the embedded PostgreSQL of this directory."),
    "destroy": Entry(_HERE, "destroy", "Remove the embedded PostgreSQL of this directory with all its data."),
}


@click.group(cls=LazyGroup, entries=ENTRIES)
def db() -> None:
    """The schema, and the embedded PostgreSQL."""


@click.command(cls=Command)
@click.option("--to", "revision", default="head", metavar="REVISION", help="Stop at this revision.  [default: the newest]")
@click.option("--dry-run", is_flag=True, help="Print the SQL that would run, and change nothing.")
@click.option("--all-databases", is_flag=True, help="Each of several databases; one that fails does not keep the others from it.")
def upgrade(revision: str, *, dry_run: bool, all_databases: bool) -> None:
    """Bring the schema to what this program needs.

    Safe while other processes do the same, and safe to repeat. Each revision is one transaction.
    """
    if not all_databases:
        document = _upgrade(revision, dry_run=dry_run)
        if shared().json and document is not None:
            print_json(document)
        return
    from jobrunner.cli import databases

    documents = databases.each(lambda: _upgrade(revision, dry_run=dry_run))
    if shared().json and not dry_run:
        print_json({"databases": documents})
    click.get_current_context().exit(databases.worst(documents))


def _upgrade(revision: str, *, dry_run: bool) -> dict[str, Any] | None:
    """One database; what there is to say of it in JSON."""
    from jobrunner import migrate
    from jobrunner.errors import SchemaTooNew

    dsn = find_database()
    if not dry_run:
        announce(dsn)
    found = migrate.version(reach(dsn).url)
    if found.current is not None and not found.known:
        raise SchemaTooNew(found.current, found.head)
    _known_revision(revision, found)
    if dry_run:
        say(f"{dsn.target} is at {found.current or 'no schema'}; {_pending(found)}", label="dry run")
        if found.pending:
            click.echo(migrate.as_sql(found.current or "base", revision), nl=False)
        return None
    done = migrate.upgrade(dsn.url, revision)
    after = migrate.version(dsn.url)
    if shared().json:
        return {"ran": list(done), **_version_document(after)}
    if done:
        say(f"upgraded: ran {', '.join(done)}; the schema is at {after.current}")
    else:
        say(f"nothing to do: the schema is at {after.current}")
    return None


@click.command(cls=Command)
def current() -> None:
    """Show the schema's version, and which migrations are to run."""
    from jobrunner import migrate

    dsn = find_database()
    found = migrate.version(reach(dsn).url)
    if shared().json:
        print_json(_version_document(found))
        return
    click.echo(f"{found.current or 'none'}  ({_pending(found)})")


@click.command(cls=Command)
def check() -> None:
    """Tell whether the schema is what this program needs.

    Exit 0: it is. Exit 1: the version is right, but tables were changed by hand; each difference is a line on stdout.
    Exit 4: missing, outdated, or newer than this program.
    """
    from jobrunner import migrate

    dsn = find_database()
    found = migrate.check(reach(dsn).url)
    differences = migrate.drift(dsn.url)
    if shared().json:
        print_json({**_version_document(found), "differences": differences})
    else:
        for difference in differences:
            click.echo(difference)
    if differences:
        raise CommandError(
            Code.BAD,
            f'schema "jobrunner" in {dsn.target} is at version {found.current} but has {len(differences)} '
            f"difference{'s' * (len(differences) > 1)}",
            hint="hint: somebody changed the tables by hand; undo that: upgrades expect them as they were made",
        )
    say(f"ok: the schema is at {found.current}, as this program needs it")


@click.command(cls=Command)
@click.option("--from", "start", default="base", metavar="REVISION", help="The version the database has.  [default: no schema]")
@click.option("--to", "end", default="head", metavar="REVISION", help="The version to reach.  [default: the newest]")
def sql(start: str, end: str) -> None:
    """Print the migrations as SQL, for teams that run migrations with another tool. Needs no connection."""
    from alembic.util import CommandError as AlembicError

    from jobrunner import migrate

    try:
        text = migrate.as_sql(start, end)
    except AlembicError as error:
        raise CommandError(Code.USAGE, f"--from {start} --to {end}: {error}", hint="see:   jobrunner db current") from error
    click.echo(text, nl=False)


@click.command(cls=Command)
def start() -> None:
    """Start the embedded PostgreSQL of this directory, make it if there is none, and print its address."""
    from jobrunner.embedded import start_project

    _warn_of_configured()
    _print_status(start_project(), only_address=True)


@click.command(cls=Command)
def stop() -> None:
    """Stop the embedded PostgreSQL of this directory; its data stays."""
    from jobrunner.embedded import project_status, stop_project

    stopped = stop_project()
    if shared().json:
        print_json(_status_document(project_status()) | {"stopped": stopped})
    else:
        say("stopped" if stopped else "it was not running")


@click.command(cls=Command)
def status() -> None:
    """Look at the embedded PostgreSQL of this directory; nothing is started."""
    from jobrunner.embedded import project_status

    _print_status(project_status())


@click.command(cls=Command)
@click.option("--yes", is_flag=True, help="Do not ask.")
def destroy(*, yes: bool) -> None:
    """Stop the embedded PostgreSQL of this directory and remove it with all its data. A configured database is not touched."""
    from jobrunner.embedded import destroy_project, project_status

    found = project_status()
    target = f"{found.data_dir} ({size(found.size_bytes)})"
    say(target, label="target")
    if not yes:
        if not sys.stdin.isatty():
            raise CommandError(Code.REFUSED, f"this removes {target} with every job in it", hint="run:   jobrunner db destroy --yes")
        if not click.confirm("remove it with every job in it?", err=True):
            raise CommandError(Code.REFUSED, "nothing was removed")
    existed = destroy_project()
    if shared().json:
        print_json({"data_dir": found.data_dir, "destroyed": existed})
    else:
        say("removed" if existed else "there was none")


def _warn_of_configured() -> None:
    from jobrunner.settings import find_dsn

    configured = find_dsn(shared().dsn)
    if configured is not None:
        warn(f"{configured.origin} names a database ({configured.target}): commands use that one, not the embedded one")


def _known_revision(revision: str, found: SchemaVersion) -> None:
    if revision != "head" and revision not in {found.current, found.head, *found.pending}:
        known = ", ".join(found.pending) or "none"
        raise CommandError(Code.USAGE, f"--to {revision}: there is no such revision to upgrade to", hint=f"pending: {known}")


def _pending(found: SchemaVersion) -> str:
    if not found.known:
        return f"newer than this program knows: {found.head}"
    if found.up_to_date:
        return "up to date"
    count = len(found.pending)
    return f"{count} migration{'s' * (count > 1)} to run: {', '.join(found.pending)}"


def _version_document(found: SchemaVersion) -> dict[str, Any]:
    return {
        "current": found.current,
        "head": found.head,
        "pending": list(found.pending),
        "known": found.known,
        "up_to_date": found.up_to_date,
    }


def _print_status(found: ClusterStatus, *, only_address: bool = False) -> None:
    if shared().json:
        print_json(_status_document(found))
        return
    if only_address:
        say(f"running, process {found.pid}, data in {found.data_dir}")
        click.echo(found.dsn)
        return
    facts = [
        ("state", f"running, process {found.pid}" if found.running else "stopped" if found.size_bytes else "not made yet"),
        ("dsn", found.dsn),
        ("data", f"{found.data_dir} ({size(found.size_bytes)})"),
        ("postgresql", found.version or "none found"),
        ("binaries", found.binaries),
    ]
    print_table([Column("WHAT"), Column("VALUE", grow=True)], facts)


def _status_document(found: ClusterStatus) -> dict[str, Any]:
    return {
        "running": found.running,
        "pid": found.pid,
        "dsn": found.dsn,
        "data_dir": found.data_dir,
        "version": found.version or None,
        "size_bytes": found.size_bytes,
        "binaries": found.binaries,
    }
