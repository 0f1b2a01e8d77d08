"""Owns `jobrunner queue …`: messages put, taken and looked at from the command line. It must not import the application."""

from __future__ import annotations

import json
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from jobrunner.cli.failures import Code, CommandError
from jobrunner.cli.lazy import Command, Entry, LazyGroup
from jobrunner.cli.output import Column, iso, on_terminal, print_json, print_table, say, shorten
from jobrunner.cli.shared import shared
from jobrunner.cli.target import announce, checked_database, find_database
from jobrunner.cli.types import DURATION
from jobrunner.errors import LeaseLost

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import timedelta

    from jobrunner.envelopes import DeadLetter, Message, Waiting
    from jobrunner.messages import MessageQueue

_HERE = "jobrunner.cli.queue"
ENTRIES = {
    "put": Entry(_HERE, "put", "Put a message, or one for each line of stdin."),
    "get": Entry(_HERE, "get", "Take messages: print and acknowledge them, or hold them."),
    "ack": Entry(_HERE, "ack", "Acknowledge messages that are held, by their receipts."),
    "nack": Entry(_HERE, "nack", "Give messages back that are held, by their receipts."),
    "peek": Entry(_HERE, "peek", "Show the messages that wait; nothing happens to them."),
    "purge": Entry(_HERE, "purge", "Cancel all messages that wait."),
    "dead": Entry(_HERE, "dead", "List the messages that are not delivered any more."),
    "redrive": Entry(_HERE, "redrive", "Let dead messages be delivered again."),
}
_MOST = 1000  # messages of one command
_SHOWN = 60  # characters of a body in a table
_PRIORITY = (-32_768, 32_767)  # of a smallint


@click.group(cls=LazyGroup, entries=ENTRIES)
def queue() -> None:
    """Message queues: what programs put, and what waits or is dead."""


@click.command(cls=Command)
@click.argument("name")
@click.argument("body", metavar="[JSON]", required=False)
@click.option("--stdin", "lines", is_flag=True, help="One message for each line of stdin, each any JSON; all or none.")
@click.option("--in", "delay", type=DURATION, metavar="DURATION", help="Not delivered before this time has passed.")
@click.option("--key", metavar="TEXT", help="Ordering key: messages of one key are delivered one after the other.")
@click.option("--priority", type=click.IntRange(*_PRIORITY), default=0, metavar="NUMBER", help="Lower comes first.  [default: 0]")
@click.option("--ttl", type=DURATION, metavar="DURATION", help="Not delivered any more once this time has passed.")
def put(
    name: str, body: str | None, *, lines: bool, delay: timedelta | None, key: str | None, priority: int, ttl: timedelta | None
) -> None:
    """Put a message into the queue NAME and print its id; the body is any JSON."""
    if (body is None) != lines:
        raise CommandError(Code.USAGE, "give the message as JSON, or --stdin for one in each line", hint="""such as '{"to": "ana"}'""")
    bodies = list(_lines()) if lines else [_parsed(str(body), "the message")]
    ids = _queue(name).put_many(bodies, delay=delay, key=key, priority=priority, ttl=ttl, session=None)
    if shared().json:
        print_json({"ids": list(ids)})
        return
    for message_id in ids:
        click.echo(message_id)


@click.command(cls=Command)
@click.argument("name")
@click.option("--count", type=click.IntRange(1, _MOST), default=1, metavar="NUMBER", help="At most so many.  [default: 1]")
@click.option("--wait", type=DURATION, metavar="DURATION", help="For a message to come, when there is none.")
@click.option("--hold", type=DURATION, metavar="DURATION", help="Do not acknowledge: hold them so long, for ack and nack.")
def get(name: str, *, count: int, wait: timedelta | None, hold: timedelta | None) -> None:
    """Take messages of the queue NAME, print one document a line, and acknowledge them. Exit 6 when there is none."""
    if hold is not None and wait is not None:
        raise CommandError(Code.USAGE, "--hold and --wait contradict each other: give one of the two")
    source = _queue(name)
    found = source.pull(count, lease=hold) if hold is not None else source.get_many(count, wait=wait.total_seconds() if wait else 0)
    if not found:
        raise CommandError(Code.NOT_FOUND, f"no message in queue {name!r} can be delivered now", hint=f"see:   jobrunner queue peek {name}")
    if shared().json:
        print_json({"items": [_message(each) for each in found]})
    else:
        for each in found:
            click.echo(json.dumps(_message(each), default=str, ensure_ascii=False))
    sys.stdout.flush()
    if hold is None:
        for each in found:  # not before it is printed: what was not read must come again
            each.ack()


@click.command(cls=Command)
@click.argument("name")
@click.argument("receipts", nargs=-1, required=True, metavar="RECEIPT...")
def ack(name: str, receipts: tuple[str, ...]) -> None:
    """Acknowledge messages of the queue NAME that `get --hold` has given."""
    target = _queue(name)
    for receipt in receipts:
        _settle(partial(target.ack, receipt))
    say(f"{len(receipts)} acknowledged")


@click.command(cls=Command)
@click.argument("name")
@click.argument("receipts", nargs=-1, required=True, metavar="RECEIPT...")
@click.option("--in", "delay", type=DURATION, metavar="DURATION", help="Deliver them after this time.  [default: the queue's backoff]")
@click.option("--dead", metavar="TEXT", help="Not again: they are dead, for this reason.")
def nack(name: str, receipts: tuple[str, ...], *, delay: timedelta | None, dead: str | None) -> None:
    """Give messages of the queue NAME back that `get --hold` has given."""
    target = _queue(name)
    for receipt in receipts:
        _settle(partial(target.nack, receipt, delay=delay) if dead is None else partial(target.dead_letter, receipt, dead))
    say(f"{len(receipts)} {'dead' if dead is not None else 'given back'}")


@click.command(cls=Command)
@click.argument("name")
@click.option("--count", type=click.IntRange(1, _MOST), default=20, metavar="NUMBER", help="At most so many.  [default: 20]")
def peek(name: str, *, count: int) -> None:
    """Show the first messages of the queue NAME that wait, due or not, and how many there are."""
    source = _queue(name)
    found, waiting = source.peek(count), source.size()
    if shared().json:
        print_json({"queue": name, "waiting": waiting, "items": [_waiting(each) for each in found]})
        return
    columns = (Column("ID", "right"), Column("KEY"), Column("DELIVER AT"), Column("DELIVERIES", "right"), Column("BODY", grow=True))
    print_table(columns, [(each.id, each.key or "", iso(each.deliver_at), each.deliveries, _text(each.body)) for each in found])
    say(f"{waiting:,} waiting")


@click.command(cls=Command)
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
def purge(name: str, *, yes: bool) -> None:
    """Cancel all messages of the queue NAME that wait; they stay in the history as cancelled."""
    target = _queue(name)
    if not yes:
        waiting = target.size()
        if not on_terminal():
            raise CommandError(Code.REFUSED, f"this cancels {waiting:,} messages", hint=f"run:   jobrunner queue purge {name} --yes")
        if not click.confirm(f"cancel {waiting:,} messages?", err=True):
            raise CommandError(Code.REFUSED, "nothing was cancelled")
    count = target.purge()
    if shared().json:
        print_json({"purged": count})
    else:
        say(f"{count:,} cancelled")


@click.command(cls=Command)
@click.argument("name")
@click.option("--count", type=click.IntRange(1, _MOST), default=20, metavar="NUMBER", help="At most so many.  [default: 20]")
def dead(name: str, *, count: int) -> None:
    """List the dead messages of the queue NAME, the newest first."""
    found = _queue(name).dead.list(count)
    if shared().json:
        print_json({"items": [_dead(each) for each in found]})
        return
    columns = (Column("ID", "right"), Column("DIED AT"), Column("DELIVERIES", "right"), Column("REASON"), Column("BODY", grow=True))
    rows = [(each.id, iso(each.died_at), each.deliveries, shorten(each.reason or "", _SHOWN), _text(each.body)) for each in found]
    print_table(columns, rows)


@click.command(cls=Command)
@click.argument("name")
@click.argument("ids", nargs=-1, type=int, metavar="[ID]...")
@click.option("--all", "everything", is_flag=True, help="All that are dead, in place of ids.")
def redrive(name: str, ids: tuple[int, ...], *, everything: bool) -> None:
    """Let dead messages of the queue NAME be delivered again, each as often as a new one."""
    if bool(ids) == everything:
        raise CommandError(Code.USAGE, "give ids, or --all", hint=f"see:   jobrunner queue dead {name}")
    count = _queue(name).dead.redrive(ids or None)
    if shared().json:
        print_json({"redriven": count})
    else:
        say(f"{count:,} will be delivered again")


def _queue(name: str) -> MessageQueue:
    from jobrunner.app import JobRunner

    database = checked_database(announce(find_database()))
    runner = JobRunner()
    runner.use_dsn(database.dsn.url, database.dsn.origin)
    return runner.queue(name)


def _settle(call: Callable[[], None]) -> None:
    try:
        call()
    except LeaseLost as error:
        hint = "the message was settled already, or its lease is over and somebody else has it"
        raise CommandError(Code.REFUSED, str(error), hint=hint) from error


def _lines() -> Iterator[Any]:
    for number, line in enumerate(sys.stdin, start=1):
        if line.strip():
            yield _parsed(line, f"line {number} of stdin")


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CommandError(Code.USAGE, f"{where} is not JSON: {error}", hint="""text needs quotes of its own: '"hello"'""") from None


def _text(body: Any) -> str:
    return shorten(json.dumps(body, ensure_ascii=False, default=str), _SHOWN)


def _message(found: Message) -> dict[str, Any]:
    return {
        "id": found.id, "receipt": str(found.receipt), "body": found.body, "headers": found.headers, "key": found.key,
        "attempt": found.attempt, "max_deliveries": found.max_deliveries, "enqueued_at": found.enqueued_at,
    }  # fmt: skip


def _waiting(found: Waiting) -> dict[str, Any]:
    return found._asdict()


def _dead(found: DeadLetter) -> dict[str, Any]:
    return found._asdict()
