"""The tasks, in a module that worker processes import by name."""

from __future__ import annotations

import marks


def noop(argument: float) -> None:  # noqa: ARG001
    """Nothing."""
    marks.mark()


def kept(argument: float) -> float:
    """Nothing, with a result."""
    marks.mark()
    return argument


def nap(argument: float) -> None:
    """Waits."""
    marks.nap(argument)


def spin(argument: float) -> None:
    """Uses the CPU."""
    marks.spin(argument)


def stamp(argument: float) -> None:
    """Tells how long ago it was enqueued."""
    marks.stamp(argument)
