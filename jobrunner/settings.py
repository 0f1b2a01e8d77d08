"""Owns where each setting comes from: the order of sources, parsing with clear refusals, DSNs without passwords for print.

It must not connect to anything.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from jobrunner.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

SCHEMA = "jobrunner"
CHANNEL = "jobrunner"  # of LISTEN/NOTIFY wake-ups; the payload is the queue's name
DEFAULT_QUEUE = "default"
ON_WORDS, OFF_WORDS = frozenset({"1", "true", "yes", "on"}), frozenset({"0", "false", "no", "off"})  # of a switch, in any case
EMBEDDED = "the embedded PostgreSQL"  # the origin of an address that nobody configured
CALL = "jobrunner.call"  # the task of Jobrunner's own that runs functions which are no tasks
MESSAGE_TASK = "jobrunner.message"  # what the rows of messages are called; no worker runs them
READ_DSN = "JOBRUNNER_READ_DSN"  # of a replica; what is read from is told by where its address comes from
MAX_PAYLOAD_BYTES = 1_000_000  # of one job's arguments as JSON text; above, a file or a row id travels better
MAX_RESULT_BYTES = 1_000_000  # of one job's return value as JSON text
LEASE = timedelta(seconds=30)  # a dead worker's jobs run again after this; the heartbeat goes out every third of it

_SCHEMES = {"postgresql", "postgres", "postgresql+psycopg", "postgresql+psycopg2", "postgresql+asyncpg"}
_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?b?)\s*$", re.IGNORECASE)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)", re.IGNORECASE)
_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


@dataclass(frozen=True, slots=True)
class Dsn:
    """A database address and where it was found.

    Attributes:
        url: `postgresql://…`, as libpq, psycopg and psql take it.
        origin: the source in words, such as `JOBRUNNER_DSN` or `--dsn`.
    """

    url: str
    origin: str

    @property
    def sqlalchemy_url(self) -> str:
        """The same address for `sqlalchemy.create_engine`, with psycopg 3 as driver."""
        return "postgresql+psycopg" + self.url.removeprefix("postgresql")

    @property
    def target(self) -> str:
        """`user@host:port/database` for messages; never a password."""
        return describe_target(self.url)

    def __repr__(self) -> str:  # a dataclass would print the password
        return f"Dsn({self.target!r}, origin={self.origin!r})"


def parse_dsn(value: str, origin: str) -> Dsn:
    """Read a PostgreSQL address in URL or `key=value` form.

    Raises:
        ConfigurationError: another scheme, or no address at all; the message names `origin`, not the password.
    """
    text = value.strip()
    if not text:
        raise ConfigurationError(f"{origin} is empty: expected postgresql://user@host:5432/database")
    if "://" not in text:
        if "=" not in text:
            raise ConfigurationError(f"{origin} is not a PostgreSQL address: expected postgresql://user@host:5432/database")
        return Dsn(_from_keywords(text, origin), origin)
    parts = urlsplit(text)
    if parts.scheme not in _SCHEMES:
        raise ConfigurationError(
            f"{origin} names a {parts.scheme!r} database; Jobrunner needs PostgreSQL",
            hint="set JOBRUNNER_DSN=postgresql://user@host:5432/database to keep jobs in another database than the app's",
        )
    # not urlunsplit: CPython 3.11 drops the empty host of `postgresql:///database?host=/socket`
    return Dsn("postgresql://" + text.partition("://")[2], origin)


def find_dsn(
    explicit: str | None = None, config: Mapping[str, object] | None = None, environ: Mapping[str, str] | None = None
) -> Dsn | None:
    """The configured database, or None when nothing is configured (then the embedded PostgreSQL is the default).

    Order: `explicit` (an argument or `--dsn`), `JOBRUNNER_DSN`, the Flask config's `JOBRUNNER_DSN` or
    `SQLALCHEMY_DATABASE_URI`, `DATABASE_URL`.

    Raises:
        ConfigurationError: the first source that is set does not hold a PostgreSQL address.
    """
    env = os.environ if environ is None else environ
    conf = config or {}
    sources = (
        (explicit, "--dsn"),
        (env.get("JOBRUNNER_DSN"), "JOBRUNNER_DSN"),
        (conf.get("JOBRUNNER_DSN"), "JOBRUNNER_DSN of the Flask config"),
        (conf.get("SQLALCHEMY_DATABASE_URI"), "SQLALCHEMY_DATABASE_URI of the Flask config"),
        (env.get("DATABASE_URL"), "DATABASE_URL"),
    )
    for value, origin in sources:
        if value:
            # SQLAlchemy's URL object masks the password in str(); render_as_string is its way to the whole text.
            render = getattr(value, "render_as_string", None)
            return parse_dsn(render(hide_password=False) if render else str(value), origin)
    return None


def find_read_dsn(config: Mapping[str, object] | None = None, environ: Mapping[str, str] | None = None) -> Dsn | None:
    """The replica that pages and reading commands use, or None: `JOBRUNNER_READ_DSN`, then that key of the Flask config.

    The config's does not count beside a `JOBRUNNER_DSN` in the environment: it is a replica of another database.

    Raises:
        ConfigurationError: it is no PostgreSQL address.
    """
    env = os.environ if environ is None else environ
    if env.get(READ_DSN):
        return parse_dsn(env[READ_DSN], READ_DSN)
    given = None if env.get("JOBRUNNER_DSN") else (config or {}).get(READ_DSN)
    return parse_dsn(str(given), f"{READ_DSN} of the Flask config") if given else None


def describe_target(url: str) -> str:
    """`user@host:port/database` of a DSN, without password and options."""
    from psycopg.conninfo import conninfo_to_dict  # here, so that importing settings stays cheap

    try:
        known = conninfo_to_dict(url)
    except Exception as error:  # noqa: BLE001  a malformed address must still be printable, without its password
        return f"(unreadable address: {type(error).__name__})"
    host = str(known.get("host") or known.get("hostaddr") or "local socket")
    if not re.fullmatch(r"[\d,]*", str(known.get("port") or "")) or "@" in host.lstrip("@"):
        return "(unreadable address: is its password percent-encoded?)"  # parts of the password stand in the host or the port
    port = "" if host.startswith("/") else f":{known.get('port') or 5432}"
    user = f"{known['user']}@" if known.get("user") else ""
    return f"{user}{host}{port}/{known.get('dbname') or known.get('user') or ''}"


def find_duration(
    variable: str, default: timedelta, *, least: timedelta, most: timedelta, environ: Mapping[str, str] | None = None
) -> timedelta:
    """The duration in an environment variable, or `default` when it is not set.

    Raises:
        ConfigurationError: it is no duration, or not between `least` and `most`; the message names the variable.
    """
    value = (os.environ if environ is None else environ).get(variable, "").strip()
    if not value:
        return default
    try:
        found = parse_duration(value, variable)
    except OverflowError:
        found = timedelta.max
    if not least <= found <= most:
        raise ConfigurationError(
            f"{variable}={value!r} is out of range: from {least.days} d to {most.days} d", hint="try:   30d, or leave it unset"
        )
    return found


def parse_duration(value: float | str | timedelta, what: str) -> timedelta:
    """A duration from seconds, a timedelta, or text such as `90`, `250ms`, `5m`, `1h30m`, `2d`.

    Raises:
        ConfigurationError: not a duration, or negative; the message names `what`.
    """
    if isinstance(value, timedelta):
        result = value
    elif isinstance(value, bool):
        raise ConfigurationError(f"{what}={value!r} is not a duration: give seconds, a timedelta or text such as '90s' or '1h30m'")
    elif isinstance(value, (int, float)):
        result = timedelta(seconds=value)
    else:
        result = _parse_duration_text(value, what)
    if result < timedelta(0):
        raise ConfigurationError(f"{what}={value!r} is negative: a duration cannot be")
    return result


def _parse_duration_text(value: str, what: str) -> timedelta:
    text = value.strip()
    try:
        return timedelta(seconds=float(text))
    except (ValueError, OverflowError):
        pass
    if not text or _DURATION.sub("", text).strip():
        raise ConfigurationError(f"{what}={value!r} is not a duration: give seconds or text such as '250ms', '90s', '5m', '1h30m', '2d'")
    return timedelta(seconds=sum(float(number) * _UNITS[unit.lower()] for number, unit in _DURATION.findall(text)))


def parse_size(value: int | str, what: str) -> int:
    """Bytes from an int or text such as `256MB` (decimal) or `256MiB` (binary). Raises ConfigurationError naming `what`."""
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    else:
        match = _SIZE.match(str(value))
        if match is None:
            raise ConfigurationError(f"{what}={value!r} is not a size: give bytes or text such as '256MB' or '1GiB'")
        unit = match[2].lower()
        base = 1024 if "i" in unit else 1000
        size = int(float(match[1]) * base ** _POWERS[unit.rstrip("b").rstrip("i")])
    if size <= 0:
        raise ConfigurationError(f"{what}={value!r} must be above zero")
    return size


def find_size(name: str, default: int, given: int | str | None = None, config: Mapping[str, object] | None = None) -> int:
    """A size in bytes: the argument, else `JOBRUNNER_<NAME>` in the environment, else that key of the Flask config, else `default`.

    Args:
        name: of the argument of `JobRunner`, such as `max_result_bytes`.
        default: bytes.
        given: the argument: bytes or text such as `2MB`; None when there was none.
        config: of the Flask app.

    Raises:
        ConfigurationError: the first source that is set holds no size above zero; the message names it.
    """
    key = f"JOBRUNNER_{name.upper()}"
    if given is not None:
        return parse_size(given, f"JobRunner: {name}")
    if os.environ.get(key):
        return parse_size(os.environ[key], key)
    if config is not None and key in config:
        return parse_size(str(config[key]), f"Flask config {key}")
    return default


def _from_keywords(text: str, origin: str) -> str:
    from urllib.parse import quote, urlencode

    from psycopg import Error
    from psycopg.conninfo import conninfo_to_dict

    try:
        known = {key: str(value) for key, value in conninfo_to_dict(text).items()}
    except Error:
        raise ConfigurationError(f"{origin} is not a PostgreSQL address: expected postgresql://user@host:5432/database") from None
    database = quote(known.pop("dbname", ""), safe="")
    return f"postgresql:///{database}?{urlencode({key: unquote(value) for key, value in known.items()})}"
