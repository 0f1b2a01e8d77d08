"""Owns what may be said about how long finished jobs are kept: durations, "forever", one for all states or one for each.

It must not know which rule wins (the database's `keep_of` does) nor what keeping means for a table.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, NamedTuple

from jobrunner.errors import ConfigurationError
from jobrunner.settings import parse_duration
from jobrunner.states import FINISHED

FOREVER = "forever"
ALL = "*"  # every task, or every state
STATES = tuple(sorted(state.value for state in FINISHED))
LEAST = timedelta(days=1)  # history lies in partitions of a day
MOST = timedelta(days=36_500)  # a century; more is a mistake in a unit, or means forever

# What the environment calls by one word; both are of jobs that need nobody, or somebody.
VARIABLES = {"JOBRUNNER_KEEP_SUCCEEDED": ("succeeded", "cancelled"), "JOBRUNNER_KEEP_FAILED": ("failed", "quarantined")}

_EXPECTED = f"expected a duration from {LEAST.days} to {MOST.days:,} days, such as '30d', or '{FOREVER}'"


class Rule(NamedTuple):
    """How long what is kept.

    Attributes:
        task: a task's name, or a pattern in which `*` stands for anything; `*` alone is all tasks.
        state: a finished state, or `*` for all.
        keep: None is forever.
    """

    task: str
    state: str
    keep: timedelta | None


def keep_for(value: Any) -> timedelta | None:
    """A duration from what somebody wrote; None is forever. Raises ValueError with what was expected."""
    if isinstance(value, str) and value.strip().lower() == FOREVER:
        return None
    try:
        found = parse_duration(value, "keep")
    except (TypeError, AttributeError, OverflowError, ValueError, ConfigurationError):
        raise ValueError(_EXPECTED) from None
    if not LEAST <= found <= MOST:
        raise ValueError(_EXPECTED)
    return found


def keep_by_state(_name: str, value: Any) -> tuple[tuple[str, timedelta | None], ...]:
    """One duration for all states, or a mapping by state, as pairs. None is nothing said. Raises ValueError."""
    if value is None:
        return ()
    if not isinstance(value, Mapping):
        return ((ALL, keep_for(value)),)
    if not value:
        raise ValueError(f"{_EXPECTED}, or one for each of some states: {', '.join(STATES)}")
    pairs = []
    for state, keep in value.items():
        if state not in STATES:
            guess = difflib.get_close_matches(str(state), STATES, n=1)
            meant = f"; did you mean {guess[0]!r}?" if guess else ""
            raise ValueError(f"{state!r} is no state in which a job ends ({', '.join(STATES)}){meant}")
        try:
            pairs.append((str(state), keep_for(keep)))
        except ValueError as error:
            raise ValueError(f"for {state!r}: {error}") from None
    return tuple(sorted(pairs))


def from_environ(environ: Mapping[str, str] | None = None) -> dict[str, timedelta | None]:
    """By state what `JOBRUNNER_KEEP_SUCCEEDED` and `JOBRUNNER_KEEP_FAILED` say.

    Raises:
        ConfigurationError: one of them is no such duration; the message names it.
    """
    found: dict[str, timedelta | None] = {}
    for variable, states in VARIABLES.items():
        text = (os.environ if environ is None else environ).get(variable, "").strip()
        if text:
            try:
                found |= dict.fromkeys(states, keep_for(text))
            except ValueError as error:
                raise ConfigurationError(f"{variable}={text!r}: {error}", hint="try:   30d, or leave it unset") from None
    return found


def keep_text(keep: timedelta | None) -> str:
    """`30d`, `1d12h`, `forever`: as it may be written."""
    if keep is None:
        return FOREVER
    seconds = int(keep.total_seconds())
    parts = []
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)):
        number, seconds = divmod(seconds, size)
        if number:
            parts.append(f"{number}{unit}")
    return "".join(parts) or "0s"
