"""Owns which of several databases a command is for: those of a worker's queues, or all of them.

It must not connect, nor start the embedded PostgreSQL.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from jobrunner.cli.failures import Code, CommandError, report
from jobrunner.cli.output import say, warn
from jobrunner.cli.shared import shared
from jobrunner.cli.target import configured_database, routing
from jobrunner.errors import JobrunnerError
from jobrunner.routing import DATABASES, DEFAULT_DATABASE, HOME, no_default

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from jobrunner.cli.engine import Queues
    from jobrunner.routing import Routing
    from jobrunner.settings import Dsn


class Part(NamedTuple):
    """One database, and the queues of it that are to be served.

    Attributes:
        name: None when there is only one.
    """

    name: str | None
    dsn: Dsn
    queues: Queues


def parts(queues: Queues | None) -> list[Part]:
    """The databases that a worker command is to serve; empty when there is only one, which has no name.

    The queues that were given, each where it lives; without any all that have a route, and `default` when there is a default
    database. With `--database` that one only, and there every queue that was given: those that have moved elsewhere may have left
    jobs behind.

    Raises:
        ConfigurationError, AppImportError: as for `jobrunner.cli.target.routing`; or a queue has no database.
        CommandError: no queue lives in the database of `--database`.
    """
    values = shared()
    os.environ.pop(HOME, None)  # of the worker in whose job this command was started
    if values.dsn and os.environ.get(DATABASES):
        raise CommandError(
            Code.USAGE,
            f"{DATABASES} is set, and --dsn is none of them by name: tasks would enqueue into databases that this worker does not know",
            hint="try:   --database NAME",
        )
    known = routing()
    if not known.databases:
        if values.database not in {None, DEFAULT_DATABASE}:
            known.dsn_of(str(values.database))  # says what there is
        return []
    if values.database is not None:
        return [_named(values.database, known, queues)]
    groups: dict[str, list[tuple[str, int | None]]] = {}
    for name, bound in queues or _all_queues(known):
        groups.setdefault(known.name_of(name), []).append((name, bound))
    found = [Part(name, _dsn(name, known, group), tuple(group)) for name, group in groups.items()]
    known.check_apart(next((part.dsn for part in found if part.name == DEFAULT_DATABASE), None))
    return found


def all_databases() -> list[str]:
    """The names of all databases, the default one first when there is one; it alone when there are no others."""
    known = routing()
    if not known.databases:
        return [DEFAULT_DATABASE]
    return ([DEFAULT_DATABASE] if configured_database() is not None else []) + sorted(known.databases)


@contextmanager
def using(name: str) -> Iterator[None]:
    """For the length of a block, as if `--database NAME` had been given."""
    values = shared()
    before, values.database = values.database, name
    try:
        yield
    finally:
        values.database = before


def each(ask: Callable[[], dict[str, Any] | None]) -> list[dict[str, Any]]:
    """Call `ask` for each of all databases, as with `--database`; an error of one is said, and the others follow.

    Returns:
        For each its name as `database`, its exit code as `exit`, and what `ask` gave, which may have an `exit` of its own.
    """
    values = shared()
    if values.database is not None or values.dsn is not None:
        raise CommandError(Code.USAGE, "--all-databases and --database or --dsn contradict each other: give one of them")
    documents: list[dict[str, Any]] = []
    for name in all_databases():
        say(name, label="database")
        with using(name):
            try:
                documents.append({"database": name, "exit": 0, **(ask() or {})})
            except JobrunnerError as error:
                documents.append({"database": name, "exit": report(error, values)})
    return documents


def worst(documents: list[dict[str, Any]]) -> int:
    """The highest exit code of them."""
    return max(int(document["exit"]) for document in documents)


def _named(name: str, known: Routing, queues: Queues | None) -> Part:
    dsn = _dsn(name, known, queues or ())
    own = queues or tuple((queue, bound) for queue, bound in _all_queues(known) if known.name_of(queue) == name)
    if not own:
        raise CommandError(Code.USAGE, f"no queue lives in the database {name!r}", hint=f"name the queues:   --database {name} QUEUES")
    for queue, _ in own:
        if known.name_of(queue) != name and not shared().quiet:
            warn(f"queue {queue} lives in {known.name_of(queue)}: this worker serves what is left of it in {name}")
    return Part(name, dsn, own)


def _all_queues(known: Routing) -> Queues:
    from jobrunner.settings import DEFAULT_QUEUE

    has_default = DEFAULT_QUEUE in known.routes or configured_database(of_app=True) is not None
    return tuple((queue, None) for queue in dict.fromkeys([*([DEFAULT_QUEUE] if has_default else []), *known.routes]))


def _dsn(name: str, known: Routing, queues: Queues | list[tuple[str, int | None]]) -> Dsn:
    if name != DEFAULT_DATABASE:
        return known.dsn_of(name)
    with using(DEFAULT_DATABASE):
        found = configured_database(of_app=True, warns=not shared().quiet)
    if found is None:
        raise no_default(known, f"there is no default database for {', '.join(queue for queue, _ in queues) or 'queues without a route'}")
    return found
