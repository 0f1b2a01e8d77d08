"""Owns `crontab`, `schedule` and `solar` as values that a configuration may hold; nothing runs by them yet.

It must not compute when something is due: whoever asks is told what to keep running until schedules are there.
"""

from __future__ import annotations

import warnings
from datetime import timedelta
from typing import Any, NoReturn

from jobrunner.compat.celery.exceptions import Unsupported, UnsupportedWarning
from jobrunner.compat.celery.options import NAMES

__all__ = ["BaseSchedule", "crontab", "schedule", "solar"]

_NOTE = NAMES["schedules.crontab"].note


class BaseSchedule:
    """A schedule that is kept, and not run."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.arguments = args, kwargs
        warnings.warn(f"{type(self).__name__}: {_NOTE}", UnsupportedWarning, stacklevel=3)

    def is_due(self, *_args: Any) -> NoReturn:
        """Raises Unsupported."""
        raise Unsupported(f"schedules.{type(self).__name__}", _NOTE)

    def remaining_estimate(self, *_args: Any) -> NoReturn:
        """Raises Unsupported."""
        raise Unsupported(f"schedules.{type(self).__name__}", _NOTE)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BaseSchedule) and type(other) is type(self) and other.arguments == self.arguments

    def __hash__(self) -> int:
        return hash((type(self), repr(self.arguments)))

    def __repr__(self) -> str:
        args, kwargs = self.arguments
        words = [*map(repr, args), *(f"{name}={value!r}" for name, value in kwargs.items())]
        return f"<{type(self).__name__}({', '.join(words)})>"


class schedule(BaseSchedule):  # noqa: N801  the name that is imported
    """Every so often: `schedule(run_every, relative)`."""

    def __init__(self, run_every: Any = None, relative: bool = False, nowfun: Any = None, app: Any = None) -> None:  # noqa: FBT001, FBT002
        super().__init__(run_every, relative=relative, nowfun=nowfun)
        self.run_every = timedelta(seconds=run_every) if isinstance(run_every, (int, float)) else run_every
        self.relative, self.app = relative, app


class crontab(BaseSchedule):  # noqa: N801
    """By the clock: `crontab(minute, hour, day_of_week, day_of_month, month_of_year)`."""

    def __init__(
        self, minute: Any = "*", hour: Any = "*", day_of_month: Any = "*", month_of_year: Any = "*", day_of_week: Any = "*", **kwargs: Any
    ) -> None:
        super().__init__(
            minute=minute, hour=hour, day_of_month=day_of_month, month_of_year=month_of_year, day_of_week=day_of_week, **kwargs
        )


def solar(*_args: Any, **_kwargs: Any) -> NoReturn:
    """Raises Unsupported."""
    raise Unsupported("schedules.solar", NAMES["schedules.solar"].note)
