"""Owns one embedded worker process, as the web process that started it sees it: the tie between the two, and the parting.

It must not decide when. The tie is a pipe that nobody writes to: the kernel closes it, however the web process ends.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from typing import TYPE_CHECKING

from jobrunner import clock
from jobrunner.hosting.beating import BEAT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ECHO = 1.0  # seconds in which a signal may come twice: from the terminal, and from the server's master that got the same
HURRY = 3.0  # seconds that jobs which are ended by force may take to be given back


class Attached:
    """A worker that leaves in order when this process lets go of it, or is gone.

    Args:
        command: gives program and arguments, from the number of the file descriptor that the worker has to watch.
        environment: of the worker.
    """

    def __init__(self, command: Callable[[int], list[str]], environment: Mapping[str, str]) -> None:
        theirs, ours = os.pipe()
        try:
            # In a session of its own: Ctrl-C in the terminal reaches the server, which leaves in order, and its worker after it.
            self.process = subprocess.Popen(
                command(theirs), env=dict(environment), pass_fds=[theirs], stdin=subprocess.DEVNULL, start_new_session=True
            )
        except BaseException:
            os.close(ours)
            raise
        finally:
            os.close(theirs)
        self._tie: int | None = ours

    @property
    def pid(self) -> int:
        """Of the worker's supervising process."""
        return self.process.pid

    def exit_code(self) -> int | None:
        """With what it has ended; None while it runs."""
        return self.process.poll()

    def let_go(self) -> None:
        """Have it leave: it takes no more jobs, and running ones get their grace. In a forked child, which has only a copy: nothing."""
        if self._tie is not None:
            with contextlib.suppress(OSError):
                os.close(self._tie)
            self._tie = None

    def wait(self, seconds: float, beat: Callable[[], object]) -> bool:
        """Wait for its end, and call `beat` several times a second. Returns whether it has ended.

        Who is interrupted once more has it give its jobs back at once.
        """
        began = clock.monotonic()
        ends = began + seconds
        hurried = False
        while True:
            try:
                while self.exit_code() is None and clock.monotonic() < ends:
                    beat()
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        self.process.wait(BEAT)
                return self.exit_code() is not None
            except (KeyboardInterrupt, SystemExit):  # gunicorn's handlers raise the second
                now = clock.monotonic()
                if now - began >= ECHO and not hurried:
                    hurried = True
                    self.process.terminate()
                    ends = min(ends, now + HURRY)
