"""Owns how a waiting consumer is woken: by a hint of new messages, by room in its window, by a lease that was lost.

It must not say what happened: who is woken looks.
"""

from __future__ import annotations

import contextlib
import os
import threading

_MANY = 4096  # bytes; more rings than that are not told apart


class Bell:
    """Counts its rings, so that one between a look and the wait for the next is not missed. Waited on by a thread or by an event loop."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._rings = 0
        self._ends: tuple[int, int] | None = None  # of a pipe, for an event loop

    @property
    def rings(self) -> int:
        """How often it rang; to be read before looking."""
        return self._rings

    def ring(self) -> None:
        """Wake everybody who waits."""
        with self._changed:
            self._rings += 1
            self._changed.notify_all()
            if self._ends is not None:
                with contextlib.suppress(BlockingIOError):  # it is full of rings that nobody has heard yet
                    os.write(self._ends[1], b"\0")

    def wait(self, seen: int, seconds: float) -> None:
        """Return at the first ring after `seen`, or after `seconds`."""
        with self._changed:
            self._changed.wait_for(lambda: self._rings != seen, max(0.0, seconds))

    def fileno(self) -> int:
        """What an event loop waits on: readable after a ring, until `hush`."""
        with self._changed:
            if self._ends is None:
                self._ends = os.pipe()
                for end in self._ends:
                    os.set_blocking(end, False)
            return self._ends[0]

    def hush(self) -> None:
        """Forget the rings that an event loop would hear."""
        if self._ends is not None:
            with contextlib.suppress(BlockingIOError):
                os.read(self._ends[0], _MANY)

    def close(self) -> None:
        """Close what an event loop waited on; it must have forgotten it before."""
        with self._changed:
            ends, self._ends = self._ends, None
        for end in ends or ():
            os.close(end)
