"""Owns the one clock that worker code may read: a monotonic one, for durations only.

It must not be used for anything that is stored: every instant in the database comes from the database's own clock.
"""

from __future__ import annotations

import time

# CLOCK_BOOTTIME goes on while a machine is suspended; a lease does too. macOS has no such clock but its monotonic one.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", None)


def monotonic() -> float:
    """Seconds since an arbitrary start; never goes back, counts suspended time where the system can tell it."""
    return time.monotonic() if _CLOCK is None else time.clock_gettime(_CLOCK)
