"""Owns which messages a process holds, and until when; and how long a lease may be.

It must not talk to the database, nor wait for a lock: the consumer whose these are calls every method under its own.
"""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from jobrunner.errors import ConfigurationError
from jobrunner.settings import parse_duration

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobrunner.envelopes import Message

ALWAYS = float("inf")  # for as long as this process lives
SHORTEST, LONGEST = 1.0, 43_200.0  # seconds of a lease: below, a busy machine loses it; above 12 hours, ask for None
HOUR = 3600.0  # seconds


class Hold(NamedTuple):
    """One message.

    Attributes:
        until: `clock.monotonic()`; when it is given back, or looked at again.
        going: it is being given back: too late to hold it for longer.
    """

    message: Message
    until: float
    going: bool = False


class Holds(dict[tuple[int, int], Hold]):
    """What is held, by receipt."""

    def add(self, messages: Sequence[Message], until: float) -> None:
        """Hold these as well."""
        self.update({message.receipt: Hold(message, until) for message in messages})

    def extend(self, receipt: tuple[int, int], until: float) -> bool:
        """Hold one until then instead; False when it is not held, or is being given back."""
        hold = self.get(receipt)
        if hold is None or hold.going:
            return False
        self[receipt] = Hold(hold.message, until)
        return True

    def bound(self, receipt: tuple[int, int], until: float) -> None:
        """Hold one that has no end no longer than that."""
        hold = self.get(receipt)
        if hold is not None and hold.until == ALWAYS:
            self[receipt] = Hold(hold.message, until)

    def take_over(self, now: float, again: float) -> list[Message]:
        """Those that were held for long enough, to be given back; those that are here still at `again` are given once more."""
        over = [hold.message for hold in self.values() if hold.until <= now]
        self.update({message.receipt: Hold(message, again, going=True) for message in over})
        return over

    def empty(self) -> list[Message]:
        """Hold nothing any more. Returns what was held."""
        messages = [hold.message for hold in self.values()]
        self.clear()
        return messages


def seconds_of(name: str, value: Any) -> float:
    """Seconds, a timedelta, or text such as '90s' as seconds. Raises ConfigurationError for what is none of these, or negative."""
    given = parse_duration(value, name) if isinstance(value, str) else value
    seconds = given.total_seconds() if isinstance(given, timedelta) else given
    if not isinstance(seconds, (int, float)) or isinstance(seconds, bool) or not seconds >= 0:  # nan is not
        raise ConfigurationError(f"{name}={value!r}: expected seconds, a timedelta, or text such as '90s', not negative")
    return float(min(seconds, sys.float_info.max))  # an int may be larger than any float


def lease_seconds(value: Any, hint: str = "") -> float:
    """The length of a lease in seconds. Raises ConfigurationError for what can be none."""
    seconds = seconds_of("lease", value)
    if not SHORTEST <= seconds <= LONGEST:
        raise ConfigurationError(f"lease={value!r}: expected {SHORTEST:g} s to {LONGEST / HOUR:g} h", hint=hint)
    return seconds
