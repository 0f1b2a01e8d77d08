"""Owns which queues live in which of several databases: reading it from the environment or a Flask config, with clear refusals.

It must not connect to anything, nor know which database a process works for.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from jobrunner.errors import ConfigurationError
from jobrunner.settings import parse_dsn

if TYPE_CHECKING:
    from jobrunner.settings import Dsn

DEFAULT_DATABASE = "default"  # the one that is found as ever; queues without a route live there
HOME = "JOBRUNNER_WORKER_DATABASE"  # set by a worker for the processes below it: whose jobs they run
DATABASES, ROUTES = "JOBRUNNER_DATABASES", "JOBRUNNER_ROUTES"

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,63}")
_EXAMPLES = {
    DATABASES: 'such as {"mail": "postgresql://user@host:5432/mail"}',
    ROUTES: 'such as {"mail": "mail", "newsletter": "mail"}: queue to name of a database',
}


@dataclass(frozen=True, slots=True)
class Routing:
    """The databases beside the default one, and the queues that live in them.

    Attributes:
        databases: address by name, without the default one.
        routes: name of the database by queue; a queue that is not there lives in the default one.
    """

    databases: Mapping[str, Dsn]
    routes: Mapping[str, str]

    def name_of(self, queue: str) -> str:
        """The name of the database in which a queue lives."""
        return self.routes.get(queue, DEFAULT_DATABASE)

    def dsn_of(self, name: str) -> Dsn:
        """The address of a database other than the default one. Raises ConfigurationError with the names there are."""
        try:
            return self.databases[name]
        except KeyError:
            raise unknown_database(name, self) from None

    def environment(self) -> dict[str, str]:
        """What says the same to another process; empty when there is one database only."""
        if not self.databases:
            return {}
        return {DATABASES: json.dumps({name: dsn.url for name, dsn in self.databases.items()}), ROUTES: json.dumps(dict(self.routes))}

    def check_apart(self, default: Dsn | None) -> None:
        """Refuse a default database that has a second name: its jobs would have two homes."""
        if default is None or not self.databases:
            return
        place = _place(default)
        for name, dsn in self.databases.items():
            if _place(dsn) == place:
                raise _twice(DEFAULT_DATABASE, name, dsn)


ONE_DATABASE = Routing(MappingProxyType({}), MappingProxyType({}))


def find_routing(config: Mapping[str, object] | None = None, environ: Mapping[str, str] | None = None) -> Routing:
    """The configured databases and routes; `ONE_DATABASE` when there are none.

    The environment goes before the Flask config. A `JOBRUNNER_DSN` in the environment means that database for everything, as far as
    the environment does not name others as well: who points an application elsewhere by one variable must not go on writing into a
    database that stands in its config.

    Raises:
        ConfigurationError: a value is malformed, a database is there twice, or a queue is routed to one that is not there.
    """
    env = os.environ if environ is None else environ
    conf = {} if env.get("JOBRUNNER_DSN") or env.get(DATABASES) else config or {}
    databases, routes = (
        _mapping(env[key], key, key) if env.get(key) else _mapping(conf.get(key), key, f"{key} of the Flask config")
        for key in (DATABASES, ROUTES)
    )
    if not databases and not routes:
        return ONE_DATABASE
    return make_routing(databases, routes)


def make_routing(databases: Mapping[str, str], routes: Mapping[str, str]) -> Routing:
    """The same from what was read. Raises ConfigurationError."""
    found: dict[str, Dsn] = {}
    places: dict[tuple[str, ...], str] = {}
    for name, url in databases.items():
        if name == DEFAULT_DATABASE:
            raise ConfigurationError(
                f"{DATABASES} has a database {name!r}: that name stands for the one without a name",
                hint="set JOBRUNNER_DSN for the default database, and leave it out of JOBRUNNER_DATABASES",
            )
        if not _NAME.fullmatch(name):
            raise ConfigurationError(f"{DATABASES}: {name!r} is no name for a database: letters, digits and _ . - only, at most 63")
        found[name] = parse_dsn(url, f"{DATABASES}[{name!r}]")
        known = places.setdefault(_place(found[name]), name)
        if known != name:
            raise _twice(known, name, found[name])
    routing = Routing(MappingProxyType(found), MappingProxyType(dict(routes)))
    for queue, name in routes.items():
        if name != DEFAULT_DATABASE and name not in found:
            raise ConfigurationError(f"{ROUTES} sends queue {queue!r} to a database {name!r}, which is not there", hint=_known(routing))
    return routing


def unknown_database(name: str, routing: Routing) -> ConfigurationError:
    """There is no database of that name."""
    return ConfigurationError(f"there is no database {name!r}", hint=_known(routing))


def no_default(routing: Routing, what: str = "") -> ConfigurationError:
    """Somebody needs the default database, and none is configured: nothing is started beside those that are."""
    return ConfigurationError(
        f"{what or 'there is no default database'}; {DATABASES} has {', '.join(sorted(routing.databases))}",
        hint=f"set JOBRUNNER_DSN for queues without a route, route the queue by {ROUTES}, or name a database: --database NAME",
    )


def _known(routing: Routing) -> str:
    if not routing.databases:
        return f"set {DATABASES}, {_EXAMPLES[DATABASES]}"
    return f"{DATABASES} has {', '.join(sorted(routing.databases))}; {DEFAULT_DATABASE!r} is the one of JOBRUNNER_DSN"


def _twice(one: str, other: str, dsn: Dsn) -> ConfigurationError:
    return ConfigurationError(
        f"the databases {one!r} and {other!r} are the same one, {dsn.target}",
        hint=f"give it one name; several queues may be routed to it: {ROUTES}",
    )


def _mapping(value: object, key: str, origin: str) -> dict[str, str]:
    """A mapping of texts, or one as JSON. What it holds is never printed: addresses have passwords."""
    if value is None or value == "":
        return {}
    if isinstance(value, str):
        try:
            value = json.loads(value, object_pairs_hook=_pairs)
        except ValueError:
            value = None
    if not isinstance(value, Mapping) or not all(isinstance(part, str) and part for pair in value.items() for part in pair):
        raise ConfigurationError(f"{origin} is no JSON object of texts without repeated names", hint=f"expected {_EXAMPLES[key]}")
    return dict(value)


def _pairs(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """JSON lets a name stand twice, and the last one would win in silence."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError
    return found


def _place(dsn: Dsn) -> tuple[str, ...]:
    from psycopg import Error
    from psycopg.conninfo import conninfo_to_dict  # here, so that importing this stays cheap

    try:
        known = conninfo_to_dict(dsn.url)
    except Error:
        return (dsn.url,)  # whoever connects says what is wrong with it
    host = known.get("host") or known.get("hostaddr") or ""
    return str(host), str(known.get("port") or 5432), str(known.get("dbname") or known.get("user") or "")
