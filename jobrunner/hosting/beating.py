"""Owns doing something long while somebody is told several times a second that this process is alive. It must not know what it is."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

BEAT = 0.2  # seconds between two signs of life


def beating(work: Callable[[], object], beat: Callable[[], object] | None) -> None:
    """Do `work` in a thread of its own, and call `beat` here until it is done; without one do it here. Raises what `work` raises.

    When `beat`, or a handler of a signal, raises, that goes on at once, and the work ends with the process.
    """
    if beat is None:
        work()
        return
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001  it is raised again below
            errors.append(error)

    thread = threading.Thread(target=run, name="jobrunner-preparing", daemon=True)
    thread.start()
    while thread.is_alive():
        beat()
        thread.join(BEAT)
    if errors:
        raise errors[0]
