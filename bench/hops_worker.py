"""Runs `jobrunner` with the arguments given, and notes in the file `BENCH_HOPS` when a job comes by in the worker; see `hops`.

It must not do anything else: what it wraps, it calls.
"""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any

from jobrunner.cli import main
from jobrunner.store import Store
from jobrunner.worker.lanes import Lane
from jobrunner.worker.link import Link
from jobrunner.worker.supervisor import Supervisor

if TYPE_CHECKING:
    from collections.abc import Callable

_FILE = os.open(os.environ["BENCH_HOPS"], os.O_CREAT | os.O_WRONLY | os.O_APPEND)


def hop(name: str) -> None:
    """Note that it was reached now; one line, whole, whoever else writes."""
    os.write(_FILE, f"{time.monotonic():.6f} {name}\n".encode())


def noted(method: Callable[..., Any], before: str, after: str) -> Callable[..., Any]:
    """The same method, with a note before and after."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if before:
            hop(before)
        try:
            return method(*args, **kwargs)
        finally:
            if after:
                hop(after)

    return call


WRAPPED = (
    (Link, "wake", "heard", ""),
    (Store, "find_due", "look", "looked"),
    (Store, "claim", "claim", "claimed"),
    (Supervisor, "_take_in", "taken in", ""),
    (Lane, "_fill", "", "handed out"),
    (Store, "finish", "finish", "finished"),
)

if __name__ == "__main__":
    for owner, name, before, after in WRAPPED:
        setattr(owner, name, noted(getattr(owner, name), before, after))
    sys.argv[0] = "jobrunner"
    main()
