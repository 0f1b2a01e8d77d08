"""Owns `jobrunner topics …`: which groups get which events and how far they are, and the verbs of operators on them.

It must not import the application but for `sync`, which is about what its code declares.
"""

from __future__ import annotations

import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from jobrunner.cli.failures import Code, CommandError
from jobrunner.cli.lazy import Command, Entry, LazyGroup
from jobrunner.cli.output import Column, duration, instant, iso, print_json, print_table, say
from jobrunner.cli.shared import shared
from jobrunner.cli.target import announce, checked_database, database_of, find_database, load_app, reading_database
from jobrunner.cli.types import DURATION, INSTANT

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta

    from jobrunner.database import Database
    from jobrunner.inspection.groups import Group

_HERE = "jobrunner.cli.topics"
ENTRIES = {
    "list": Entry(_HERE, "list_", "List the groups of every topic, and how far behind they are."),
    "sync": Entry(_HERE, "sync", "Tell the database what the app's code subscribes to, as a worker does at its start."),
    "publish": Entry(_HERE, "publish", "Publish an event."),
    "rewind": Entry(_HERE, "rewind", "Have a group get events of its log again."),
    "resume": Entry(_HERE, "resume", "Let a group go on that has stopped after a failure."),
    "unsubscribe": Entry(_HERE, "unsubscribe", "Forget a group: it gets no further event."),
}
_GROUP = click.option("--group", required=True, metavar="NAME", help="Of its consumers.")


class _Place(click.ParamType):  # type: ignore[type-arg]  # generic only in newer releases of click
    """A place in the log: `earliest`, `latest`, a position, or an instant."""

    name = "place"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime | int | str:
        text = str(value)
        if text in {"earliest", "latest"}:
            return text
        if text.isascii() and text.isdigit():
            return int(text)
        found: datetime = INSTANT.convert(value, param, ctx)
        return found


@click.group(cls=LazyGroup, entries=ENTRIES)
def topics() -> None:
    """Topics: who gets which events, and how far those are that read the log."""


@click.command("list", cls=Command)
@click.argument("topic", required=False)
def list_(topic: str | None) -> None:
    """List the groups of TOPIC, or of all topics, and how far behind those are that read the log.

    A lag of 10,000+ was not counted to its end. Exit 1 when a group has stopped.
    """
    from jobrunner.topics.groups import groups

    database = reading_database()
    with database.store() as store:
        ((now,),) = store.connection.execute("SELECT now()").fetchall()
    found = [group for group in groups(database) if topic is None or group.topic == topic]
    if shared().json:
        print_json({"items": [{**group._asdict(), "state": group.state} for group in found], "at": now})
    else:
        columns = (
            Column("TOPIC"), Column("GROUP"), Column("MODE"), Column("STATE"), Column("LAG", "right"), Column("BEHIND", "right"),
            Column("POSITION", "right"), Column("TASK"), Column("PATTERNS", grow=True),
        )  # fmt: skip
        print_table(columns, [_cells(group, now) for group in found])
        for group in found:
            _explain(group, now)
    if any(group.stopped_at is not None for group in found):
        raise click.exceptions.Exit(Code.BAD)


@click.command(cls=Command)
def sync() -> None:
    """Tell the database what the app's code subscribes to, as a worker does at its start.

    What the code declares no longer is marked, and goes on getting events until `jobrunner topics unsubscribe`.
    """
    from jobrunner import subscriptions

    runner = load_app()
    database = checked_database(announce(database_of(runner)))
    declared = list(runner.subscriptions.values())
    with database.store() as store:
        changed = subscriptions.declare(
            subscriptions.Direct(store.connection), runner.rules_name, [each.document() for each in declared], complete=True
        )
    if shared().json:
        print_json({"declared": len(declared), "changed": changed})
    else:
        say(f"{len(declared)} subscriptions declared, {changed} changed")


@click.command(cls=Command)
@click.argument("topic")
@click.argument("name")
@click.argument("payload", required=False)
@click.option("--key", metavar="TEXT", help="What the event is about: one after the other in each group.")
@click.option("--header", "headers", multiple=True, metavar="NAME=TEXT", help="Beside the payload; may be given several times.")
@click.option("--in", "delay", type=DURATION, metavar="DURATION", help="Groups in queue mode get it after so long.")
@click.option("--ttl", type=DURATION, metavar="DURATION", help="Groups in queue mode do not begin with it after so long.")
@click.option("--priority", type=int, metavar="NUMBER", help="Of the jobs; lower runs first.  [default: of the subscription]")
def publish(
    topic: str,
    name: str,
    payload: str | None,
    key: str | None,
    headers: tuple[str, ...],
    delay: timedelta | None,
    ttl: timedelta | None,
    priority: int | None,
) -> None:
    """Publish an event NAME to TOPIC with a PAYLOAD in JSON (- reads it from stdin), and print its position in the log. Needs no app."""
    from jobrunner.topics.publishing import Topic

    jobs = _runner()
    given = dict(_header(text) for text in headers)
    position = Topic(jobs, topic).publish(
        name, _json(payload), key=key, headers=given, delay=delay, ttl=ttl, priority=priority, session=None
    )
    if shared().json:
        print_json({"position": position})
    else:
        click.echo(position)


@click.command(cls=Command)
@click.argument("topic")
@_GROUP
@click.option(
    "--to", type=_Place(), required=True, metavar="PLACE", help="An instant, a position, earliest; or latest, to skip what is there."
)
def rewind(topic: str, group: str, to: datetime | int | str) -> None:
    """Have a group that reads the log get events again from PLACE on, also while it delivers; a stopped one goes on."""
    from jobrunner.topics import groups

    database, wake = _database()
    done = groups.rewind(database, topic, group, to, wake)
    if shared().json:
        print_json(done._asdict())
    else:
        since = f", of that what was published from {to.isoformat()} on" if isinstance(to, datetime) else ""
        say(f"group {group} of topic {topic}: position {done.was} → {done.position}{since}")


@click.command(cls=Command)
@click.argument("topic")
@_GROUP
def resume(topic: str, group: str) -> None:
    """Let a group go on that has stopped: it tries the same events again."""
    from jobrunner.topics import groups

    database, wake = _database()
    resumed = groups.resume(database, topic, group, wake)
    if shared().json:
        print_json({"resumed": resumed})
    else:
        say(f"group {group} of topic {topic} {'goes on' if resumed else 'had not stopped'}")


@click.command(cls=Command)
@click.argument("topic")
@_GROUP
def unsubscribe(topic: str, group: str) -> None:
    """Forget a group: it gets no further event; jobs that are written already stay.

    Code that still declares it brings it back, as a new one.
    """
    from jobrunner.errors import GroupNotFound
    from jobrunner.topics import groups

    database, _ = _database()
    if not groups.unsubscribe(database, topic, group):
        raise GroupNotFound(f"no group {group!r} is subscribed to topic {topic!r}")
    if shared().json:
        print_json({"unsubscribed": True})
    else:
        say(f"group {group} of topic {topic} is gone")


def _database() -> tuple[Database, Callable[[str], None]]:
    from jobrunner.wakeups import waker_of

    dsn = announce(find_database())
    return checked_database(dsn), waker_of(dsn).wake


def _runner() -> Any:
    """A JobRunner without tasks, on the database of the command."""
    from jobrunner.app import JobRunner

    dsn = announce(find_database())
    checked_database(dsn).close()
    runner = JobRunner()
    runner.use_dsn(dsn.url, dsn.origin)
    return runner


def _json(payload: str | None) -> Any:
    import json

    if payload is None:
        return None
    text = sys.stdin.read() if payload == "-" else payload
    try:
        return json.loads(text)
    except ValueError as error:
        raise CommandError(Code.USAGE, f"the payload is not JSON: {error}", hint="""such as '{"id": 1}', or '"text"'""") from None


def _header(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise click.UsageError(f"--header {text!r}: expected NAME=TEXT")
    return name, value


def _cells(group: Group, now: datetime) -> list[object]:
    lag = None if group.lag is None else f"{group.lag:,}{'' if group.exact else '+'}"
    behind = duration((now - group.oldest_at).total_seconds()) if group.oldest_at else None
    return [
        group.topic, group.group, group.mode, group.state, lag, behind, group.position, group.task, " ".join(group.patterns),
    ]  # fmt: skip


def _explain(group: Group, now: datetime) -> None:
    """What a word of the table cannot say."""
    where = f"{group.topic}/{group.group}"
    if group.stopped_at is not None:
        what = f"stopped {instant(group.stopped_at, now)}: {group.problem}; jobrunner jobs show {group.job_id}"
        click.echo(f"{click.style(where, fg='red')}: {what}; then: jobrunner topics resume {group.topic} --group {group.group}")
    if group.undeclared_at is not None:
        click.echo(f"{where}: the code of {group.app or 'its application'} declares it no longer since {iso(group.undeclared_at)}")
    if group.state == "waiting":
        click.echo(f"{where}: waits for transaction {group.fence_xid}, or one before it: earlier events may still come")
    if group.skipped_count:
        click.echo(f"{where}: went past {group.skipped_count} failed deliveries; retried, their jobs deliver them")
