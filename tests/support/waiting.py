"""Owns waiting: the only place in the tests that may sleep."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

POLL_SECONDS = 0.01


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
