"""Owns the policy of a task (where, how often, how long it runs) and the options of one enqueue, with the checks of their values.

It must not know functions, arguments or the database: a policy is the columns that differ from the table's defaults.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any, Literal, TypedDict

from jobrunner.errors import ConfigurationError
from jobrunner.jsonvalues import text_problem
from jobrunner.payload import encode_meta
from jobrunner.settings import DEFAULT_QUEUE, parse_duration

SMALLINT = 32_767  # the largest value of the counting columns
MAX_NAME = 200  # characters of a task or queue name: both are index keys, and the queue is the payload of a NOTIFY
MAX_UNIQUE_KEY = 500  # characters: an index key of PostgreSQL ends at about 2,700 bytes
MAX_INTERVAL = timedelta(days=3650)  # ten years; more is a mistake in a unit

Backoff = Literal["exponential", "linear", "constant"]
Duration = float | str | timedelta


class PolicyOptions(TypedDict, total=False):
    """The keywords of `@jobs.task(...)` beside `name`; `options()` takes them as well."""

    queue: str
    priority: int
    max_attempts: int
    backoff: Backoff
    backoff_base: Duration
    backoff_cap: Duration
    backoff_jitter: float
    max_crashes: int
    time_limit: Duration | None
    tags: Iterable[str]
    unique: bool | str


class EnqueueOptions(PolicyOptions, total=False):
    """The keywords of `task.options(...)`."""

    delay: Duration | None
    run_at: datetime | None
    meta: Mapping[str, Any] | None
    parent_id: int | None
    session: Any
    connection: Any


@dataclasses.dataclass(frozen=True, slots=True)
class Policy:
    """What holds for every job of a task unless `options()` says otherwise.

    Attributes:
        queue: the name workers subscribe to.
        priority: lower runs first, like nice(1); -32,768 to 32,767.
        max_attempts: runs that may end in an error before the job fails; at least 1.
        backoff: how the pause between attempts grows.
        backoff_base: the first pause.
        backoff_cap: the longest pause.
        backoff_jitter: 0 to 1: the part of the pause that is random.
        max_crashes: deaths of its process after which the job is quarantined; at least 1.
        time_limit: wall time of one attempt; None is unlimited.
        tags: words to filter by.
        unique: True: at most one live job with the same arguments; text: at most one live job with that key.
    """

    queue: str = DEFAULT_QUEUE
    priority: int = 0
    max_attempts: int = 5
    backoff: Backoff = "exponential"
    backoff_base: timedelta = timedelta(seconds=5)
    backoff_cap: timedelta = timedelta(hours=1)
    backoff_jitter: float = 1.0
    max_crashes: int = 3
    time_limit: timedelta | None = None
    tags: tuple[str, ...] = ()
    unique: bool | str = False

    def with_values(self, given: Mapping[str, object], where: str) -> Policy:
        """The same policy with checked values in place of some.

        Raises:
            ConfigurationError: the message names `where` and the parameter.
        """
        checked: dict[str, Any] = {}
        for name, value in given.items():
            check = _CHECKS.get(name)
            if check is None:
                guess = difflib.get_close_matches(name, _CHECKS, n=1)
                hint = f"did you mean {guess[0]}?" if guess else f"known: {', '.join(_CHECKS)}"
                raise ConfigurationError(f"{where}({name}=…): there is no such parameter", hint=hint)
            checked[name] = _checked(name, check, value, where)
        return dataclasses.replace(self, **checked) if checked else self

    def columns(self) -> dict[str, object]:
        """The columns of a job row that differ from the table's defaults, in table order."""
        return {
            name: list(value) if name == "tags" else value
            for name in COLUMNS
            if (value := getattr(self, name)) != getattr(DEFAULT_POLICY, name)
        }


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """Everything about one enqueue but its arguments.

    Attributes:
        policy: the task's, with what `options()` changed.
        columns: of the row, beside task, args, unique_key and run_at; only those that differ from the defaults; `meta` as JSON text.
        delay: pause before the first attempt, added to the database's clock.
        run_at: or the moment of the first attempt.
        session: a Session, scoped_session or function that gives one; DEFAULT_SESSION is the app's own default.
        connection: a SQLAlchemy Connection.
    """

    policy: Policy
    columns: Mapping[str, object]
    delay: timedelta | None = None
    run_at: datetime | None = None
    session: Any = None
    connection: Any = None

    def with_values(self, given: Mapping[str, Any]) -> Options:
        """The same options with checked values in place of some. Raises ConfigurationError naming the parameter."""
        rest = {name: value for name, value in given.items() if name not in _OWN}
        policy = self.policy.with_values(rest, "options")
        kept = {name: self.columns[name] for name in ("meta", "parent_id") if name in self.columns}
        if "meta" in given:
            kept["meta"] = _meta(given["meta"])
        if "parent_id" in given:
            kept["parent_id"] = _parent_id(given["parent_id"])
        delay = _delay(given["delay"]) if "delay" in given else self.delay
        run_at = _run_at(given["run_at"]) if "run_at" in given else self.run_at
        if delay is not None and run_at is not None:
            raise ConfigurationError("options(delay=…, run_at=…): give one of the two")
        session, connection = given.get("session", self.session), given.get("connection", self.connection)
        if connection is not None and "session" not in given and session is DEFAULT_SESSION:
            session = None  # the connection named here wins over the app's default session
        if session is not None and connection is not None:
            raise ConfigurationError("options(session=…, connection=…): give one of the two")
        columns = {**policy.columns(), **{name: value for name, value in kept.items() if value is not None}}
        return Options(policy, MappingProxyType(columns), delay, run_at, session, connection)


class _DefaultSession:
    def __repr__(self) -> str:
        return "the app's default session"


DEFAULT_SESSION = _DefaultSession()
DEFAULT_POLICY = Policy()
COLUMNS = tuple(field.name for field in dataclasses.fields(Policy) if field.name != "unique")
_OWN = ("delay", "run_at", "meta", "parent_id", "session", "connection")


def check_name(value: object, what: str) -> str:
    """A task or queue name. Raises ValueError."""
    if not isinstance(value, str) or not value or value != value.strip():
        raise ValueError(f"{what} is text, not empty and without blanks at its ends")
    if len(value) > MAX_NAME:
        raise ValueError(f"{what} is at most {MAX_NAME} characters long")
    problem = text_problem(value)
    if problem:
        raise ValueError(f"{what} {problem}")
    return value


def _queue(_name: str, value: object) -> str:
    return check_name(value, "a queue")


def _between(low: int, high: int) -> Callable[[str, object], int]:
    def check(_name: str, value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(f"expected a whole number from {low:,} to {high:,}")
        return value

    return check


def _backoff(_name: str, value: object) -> str:
    if value not in ("exponential", "linear", "constant"):
        raise ValueError("expected 'exponential', 'linear' or 'constant'")
    return str(value)


def _duration(name: str, value: Any) -> timedelta:
    try:
        duration = parse_duration(value, name)
    except (TypeError, AttributeError, OverflowError, ValueError, ConfigurationError):  # nan is a ValueError
        raise ValueError("expected a duration of 0 or more: seconds, a timedelta, or text such as '90s' or '1h30m'") from None
    if duration > MAX_INTERVAL:
        raise ValueError(f"expected at most {MAX_INTERVAL.days:,} days")
    return duration


def _limit(name: str, value: Any) -> timedelta | None:
    if value is None:
        return None
    duration = _duration(name, value)
    if duration <= timedelta(0):
        raise ValueError("expected more than 0 seconds, or None for no limit")
    return duration


def _jitter(_name: str, value: object) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= 1:
        raise ValueError("expected a number from 0 to 1")
    return float(value)


def _tags(_name: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ValueError("expected a list of words")  # noqa: TRY004  the caller turns ValueError into the message
    return tuple(check_name(tag, "a tag") for tag in value)


def _unique(_name: str, value: object) -> bool | str:
    if isinstance(value, bool):
        return value
    if not isinstance(value, str) or not value or len(value) > MAX_UNIQUE_KEY or text_problem(value):
        raise ValueError(f"expected True (one job per set of arguments) or a key of 1 to {MAX_UNIQUE_KEY} characters")
    return value


def _delay(value: Any) -> timedelta | None:
    return None if value is None else _checked("delay", _duration, value, "options")


def _run_at(value: object) -> datetime | None:
    if value is None:
        return None
    if not isinstance(value, datetime) or value.utcoffset() is None:
        raise ConfigurationError(
            f"options(run_at={value!r}): expected a datetime with a time zone", hint="such as datetime.now(UTC) + timedelta(hours=1)"
        )
    return value


def _meta(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise ConfigurationError(f"options(meta={value!r}): expected a dict")
    return encode_meta(value)


def _parent_id(value: object) -> int | None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise ConfigurationError(f"options(parent_id={value!r}): expected the id of a job")
    return value


def _checked(name: str, check: Callable[[str, Any], Any], value: Any, where: str) -> Any:
    try:
        return check(name, value)
    except ValueError as error:
        raise ConfigurationError(f"{where}({name}={value!r}): {error}") from None


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "queue": _queue,
    "priority": _between(-SMALLINT - 1, SMALLINT),
    "max_attempts": _between(1, SMALLINT),
    "backoff": _backoff,
    "backoff_base": _duration,
    "backoff_cap": _duration,
    "backoff_jitter": _jitter,
    "max_crashes": _between(1, SMALLINT),
    "time_limit": _limit,
    "tags": _tags,
    "unique": _unique,
}
