"""Owns the time of a test: the database's, until the test moves it; from then on it stands still between moves.

It must not touch jobs: what is due on this clock, and the times of rows written under it, are its users' business.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from jobrunner.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable


class Clock:
    """When `drain()` thinks it is. Only goes forward.

    The database's `now()` cannot be moved: views and plain SQL keep telling the real time.

    Args:
        read: gives the database's time; within one transaction that is the moment at which it began.
    """

    def __init__(self, read: Callable[[], datetime]) -> None:
        self._read = read
        self._set: datetime | None = None

    @property
    def moved(self) -> bool:
        """Whether the test has moved it; it stands still then."""
        return self._set is not None

    def now(self) -> datetime:
        """The time of the test, aware."""
        return self._read() if self._set is None else self._set

    def advance(self, by: timedelta | None = None, **units: float) -> datetime:
        """Go forward: `advance(hours=1)`, or by a timedelta. Runs nothing; `drain()` does. Returns the new time.

        Args:
            by: how far.
            **units: or the keywords of `timedelta`: days, hours, minutes, seconds, …

        Raises:
            ConfigurationError: nothing or both are given, the keyword is unknown, or it would go back.
        """
        if (by is None) == (not units):
            raise ConfigurationError("clock.advance() takes a timedelta or its keywords", hint="such as clock.advance(hours=1)")
        try:
            step = timedelta(**units) if by is None else by
        except TypeError as error:
            raise ConfigurationError(f"clock.advance({', '.join(units)}): {error}", hint="such as clock.advance(hours=1)") from None
        if step < timedelta(0):
            raise ConfigurationError(f"clock.advance({step!r}): expected a timedelta that is not negative")
        self._set = self.now() + step
        return self._set

    def travel_to(self, moment: datetime) -> datetime:
        """Go forward to a moment. Runs nothing; `drain()` does. Returns it.

        Raises:
            ConfigurationError: it has no time zone, or lies in the past of this clock.
        """
        if moment.utcoffset() is None:
            raise ConfigurationError(f"clock.travel_to({moment!r}): expected a datetime with a time zone")
        now = self.now()
        if moment < now:
            raise ConfigurationError(
                f"clock.travel_to({moment.isoformat()}): that is past, it is {now.isoformat()}",
                hint="the clock of a test only goes forward",
            )
        self._set = moment
        return moment
