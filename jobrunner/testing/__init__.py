"""Owns what a user's own test suite needs: run jobs here and now, ask what was enqueued, move the clock.

It must not import anything when it is imported: the pytest plugin is a part of it, and every pytest of an environment loads that.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jobrunner.testing.clock import Clock
    from jobrunner.testing.drained import Attempt, Drained
    from jobrunner.testing.helper import Jobs, immediate
    from jobrunner.testing.rollback import rolled_back
    from jobrunner.testing.waiting import Waiting

_HOMES = {
    "Attempt": "jobrunner.testing.drained",
    "Clock": "jobrunner.testing.clock",
    "Drained": "jobrunner.testing.drained",
    "Jobs": "jobrunner.testing.helper",
    "Waiting": "jobrunner.testing.waiting",
    "immediate": "jobrunner.testing.helper",
    "rolled_back": "jobrunner.testing.rollback",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


__all__ = ["Attempt", "Clock", "Drained", "Jobs", "Waiting", "immediate", "rolled_back"]
