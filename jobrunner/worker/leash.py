"""Owns the tie between a command and the processes it starts beside itself: they end when it dies, however it dies.

It must not stay: after the tie is made, this process becomes the program that was asked for.
"""

from __future__ import annotations

import os
import signal
import sys

from jobrunner.worker.limits import die_with_parent


def on_leash(module: str, *arguments: str) -> list[str]:
    """The command that runs `python -m module arguments…` and gets a SIGTERM when this process dies."""
    return [sys.executable, "-m", __name__, str(os.getpid()), module, *arguments]


def main() -> None:
    """`python -m jobrunner.worker.leash PARENT MODULE ARGUMENTS…`."""
    die_with_parent(int(sys.argv[1]), signal.SIGTERM)
    os.execv(sys.executable, [sys.executable, "-m", *sys.argv[2:]])  # noqa: S606  our own modules, no shell


if __name__ == "__main__":
    main()
