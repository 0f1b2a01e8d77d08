"""Owns waiting: the only place in the tests that may sleep."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

POLL_SECONDS = 0.01
STALL_SECONDS = 0.25  # between two looks: more than that is not the time that something takes, but that in which nobody went on


def wait_until(predicate: Callable[[], T], *, timeout: float, what: str) -> T:
    """Ask `predicate` every 10 ms until its answer is true, and return that answer.

    Args:
        predicate: asked at least once, and once more after the deadline, so that a stalled machine is no failure.
        timeout: seconds.
        what: what is waited for, as the end of the sentence "after 5 s still not: …".

    Raises:
        AssertionError: the deadline passed; the message has the last answer.
    """
    deadline = time.monotonic() + timeout
    while True:
        late = time.monotonic() >= deadline
        if answer := predicate():
            return answer
        if late:
            raise AssertionError(f"after {timeout:g} s still not: {what} (last answer: {answer!r})")
        time.sleep(POLL_SECONDS)


def seconds_until(predicate: Callable[[], T], *, timeout: float, what: str) -> float:
    """Wait as `wait_until` does. Returns how long it took, without the time in which the machine stood still."""
    looked, seconds = time.monotonic(), 0.0

    def look() -> T:
        nonlocal looked, seconds
        answer, now = predicate(), time.monotonic()
        looked, seconds = now, seconds + min(now - looked, STALL_SECONDS)
        return answer

    wait_until(look, timeout=timeout, what=what)
    return seconds
