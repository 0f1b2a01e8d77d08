"""Owns the classes that code imports from `celery.beat`: they can be derived from, and say when they are made that nothing runs by them.

It must not compute when something is due.
"""

from __future__ import annotations

from typing import Any, NoReturn

from jobrunner.compat.celery.exceptions import Unsupported
from jobrunner.compat.celery.options import NAMES

__all__ = ["PersistentScheduler", "ScheduleEntry", "Scheduler", "Service"]


class _Refused:
    def __init__(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        raise Unsupported(f"beat.{type(self).__name__}", NAMES["add_periodic_task"].note)


class ScheduleEntry(_Refused):
    """Raises Unsupported."""


class Scheduler(_Refused):
    """Raises Unsupported."""


class PersistentScheduler(Scheduler):
    """Raises Unsupported."""


class Service(_Refused):
    """Raises Unsupported."""
