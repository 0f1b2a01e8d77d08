"""Owns the checks of what a task or an enqueue is given: each turns a value into what is stored, or says what it expected.

It must not know which of them belong together: `policies` does. They raise ValueError; `checked` names the parameter.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

from jobrunner.errors import ConfigurationError
from jobrunner.jsonvalues import text_problem
from jobrunner.keeping import keep_by_state
from jobrunner.payload import encode_meta
from jobrunner.settings import parse_duration, parse_size

SMALLINT = 32_767  # the largest value of the counting columns
MAX_NAME = 200  # characters of a task or queue name: both are index keys, and the queue is the payload of a NOTIFY
MAX_REFERENCE_BYTES = 1000  # of a reference's key: with its space it is an index key as well
MAX_UNIQUE_KEY = 500  # characters: an index key of PostgreSQL ends at about 2,700 bytes
MAX_ORDERING_KEY = 500  # characters; the table's own CHECK has the same
MAX_INTERVAL = timedelta(days=3650)  # ten years; more is a mistake in a unit
MAX_BYTES = 2**50  # a petabyte; more is a mistake in a unit
MIN_MEMORY = 1_000_000  # bytes: no Python process fits into less, so it is a mistake in a unit
MAX_PROCESSES = 1_000_000
MAX_GROWTH = 1000  # times
_TIMES = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*[x×]?\s*$", re.IGNORECASE)


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


def _bytes(name: str, value: Any) -> int | None:
    if value is None:
        return None
    try:
        size = parse_size(value if isinstance(value, (int, str)) else "", name)
    except (ConfigurationError, OverflowError):
        raise ValueError("expected a size above 0: bytes, or text such as '256MB' or '1GiB', or None for no limit") from None
    if size > MAX_BYTES:
        raise ValueError(f"expected at most {MAX_BYTES:,} bytes")
    return size


def _memory(name: str, value: Any) -> int | None:
    size = _bytes(name, value)
    if size is not None and size < MIN_MEMORY:
        raise ValueError(f"expected at least {MIN_MEMORY:,} bytes: no process fits into less")
    return size


def _processes(_name: str, value: Any) -> int | None:
    return None if value is None else _between(1, MAX_PROCESSES)(_name, value)


def _growth(_name: str, value: Any) -> float | None:
    if value is None:
        return None
    match = _TIMES.match(str(value)) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else None
    if match is None or not 1 < float(match[1]) <= MAX_GROWTH:
        raise ValueError(f"expected how many times the limit a retry gets, above 1 and at most {MAX_GROWTH:,}: '2x' or 1.5")
    return float(match[1])


def _truth(_name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("expected True or False")  # noqa: TRY004  the caller turns ValueError into the message
    return value


def _level(_name: str, value: Any) -> int | None:
    if value is None:
        return None
    level = logging.getLevelNamesMapping().get(value.upper()) if isinstance(value, str) else value
    if not isinstance(level, int) or isinstance(level, bool) or not 1 <= level <= logging.CRITICAL:
        raise ValueError("expected a level of logging, such as 'INFO', or None for no job log")
    return level


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


def delay(value: Any) -> timedelta | None:
    """The pause before the first attempt."""
    return None if value is None else checked("delay", _duration, value, "options")


def run_at(value: object) -> datetime | None:
    """The moment of the first attempt."""
    if value is None:
        return None
    if not isinstance(value, datetime) or value.utcoffset() is None:
        raise ConfigurationError(
            f"options(run_at={value!r}): expected a datetime with a time zone", hint="such as datetime.now(UTC) + timedelta(hours=1)"
        )
    return value


def ordering_key(value: object) -> str | None:
    """What jobs have in common that run one after the other."""
    if value is not None and (not isinstance(value, str) or not 1 <= len(value) <= MAX_ORDERING_KEY or text_problem(value)):
        said = f"ordering_key={value!r}: expected text of 1 to {MAX_ORDERING_KEY} characters"
        raise ConfigurationError(said, hint="a message has it as its key")
    return value


def expires_at(value: object) -> datetime | None:
    """The moment from which the job is not begun any more."""
    if value is not None and (not isinstance(value, datetime) or value.utcoffset() is None):
        hint = "or ttl=…, a duration from now by the database's clock"
        raise ConfigurationError(f"options(expires_at={value!r}): expected a datetime with a time zone", hint=hint)
    return value


def ttl(value: Any) -> timedelta | None:
    """How long the job may wait to be begun."""
    duration: timedelta | None = checked("ttl", _limit, value, "options")
    return duration


def meta(value: object) -> str | None:
    """The meta object as JSON text."""
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise ConfigurationError(f"options(meta={value!r}): expected a dict")
    return encode_meta(value)


def parent_id(value: object) -> int | None:
    """The id of the job that this one belongs to."""
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise ConfigurationError(f"options(parent_id={value!r}): expected the id of a job")
    return value


def reference(value: object) -> tuple[str, str] | None:
    """The space and the key by which other processes find the job."""
    return None if value is None else checked("reference", _reference, value, "options")


def _reference(_name: str, value: Any) -> tuple[str, str]:
    if not isinstance(value, tuple) or len(value) != 2:  # noqa: PLR2004
        raise ValueError("expected a tuple of a space and a key, such as ('import', 'file-4711')")
    space, key = value
    if not isinstance(key, str) or not key or text_problem(key) or len(key.encode()) > MAX_REFERENCE_BYTES:
        raise ValueError(f"the key is text of 1 to {MAX_REFERENCE_BYTES:,} bytes without NUL")
    return check_name(space, "the space"), key


def checked(name: str, check: Callable[[str, Any], Any], value: Any, where: str) -> Any:
    """The value as it is stored. Raises ConfigurationError with `where`, the parameter and what was expected."""
    try:
        return check(name, value)
    except ValueError as error:
        raise ConfigurationError(f"{where}({name}={value!r}): {error}") from None


CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "queue": _queue,
    "priority": _between(-SMALLINT - 1, SMALLINT),
    "max_attempts": _between(1, SMALLINT),
    "backoff": _backoff,
    "backoff_base": _duration,
    "backoff_cap": _duration,
    "backoff_jitter": _jitter,
    "max_crashes": _between(1, SMALLINT),
    "time_limit": _limit,
    "soft_time_limit": _limit,
    "cpu_limit": _limit,
    "memory_limit": _memory,
    "memory_limit_on_retry": _growth,
    "output_limit": _bytes,
    "max_processes": _processes,
    "tags": _tags,
    "unique": _unique,
}

# Of how a task is run: they are the code's, not the row's.
RUN_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "transactional": _truth,
    "capture_output": _truth,
    "log_level": _level,
    "keep": keep_by_state,
}
