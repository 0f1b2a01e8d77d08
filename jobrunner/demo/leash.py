"""Owns the tie between the demonstration and the processes it starts: they end when it dies, however it dies.

It must not stay: after the tie is made, this process becomes the command that was asked for.
"""

from __future__ import annotations

import os
import signal
import sys

from jobrunner.worker.limits import die_with_parent


def main() -> None:
    """`python -m jobrunner.demo.leash PARENT ARGUMENTS…`: become `jobrunner ARGUMENTS…`, with a SIGTERM when PARENT dies."""
    die_with_parent(int(sys.argv[1]), signal.SIGTERM)
    os.execv(sys.executable, [sys.executable, "-m", "jobrunner", *sys.argv[2:]])  # noqa: S606  our own program, no shell


if __name__ == "__main__":
    main()
