"""Owns a program on a terminal of its own that a test can look at, type into, resize, and take the state of before and after."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
from typing import TYPE_CHECKING

from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.support.cli import Program

SECONDS = 60  # a hang ends here
ALTERNATE, MAIN = "\x1b[?1049h", "\x1b[?1049l"
HIDDEN, SHOWN = "\x1b[?25l", "\x1b[?25h"  # the cursor
_HOME = "\x1b[H"
_ESCAPES = re.compile(r"\x1b\[[0-9;?<>=]*[ -/]*[@-~]|\x1b[@-Z\\-_]")


class Terminal:
    """A pseudo-terminal with a program behind it.

    Attributes:
        raw: everything that was written to it.
    """

    def __init__(self, ours: int, theirs: int) -> None:
        self.ours, self.theirs = ours, theirs
        self.raw = ""
        self.before = termios.tcgetattr(theirs)
        self.process: subprocess.Popen[bytes] | None = None

    def read(self) -> str:
        """Everything so far."""
        while select.select([self.ours], [], [], 0)[0]:
            with contextlib.suppress(OSError):
                self.raw += os.read(self.ours, 65_536).decode(errors="replace")
        return self.raw

    def frame(self) -> str:
        """What was written since the cursor was last put home, without escapes."""
        return _ESCAPES.sub("", self.read().rpartition(_HOME)[2]).replace("\r", "")

    def text(self) -> str:
        """Everything that was written, without escapes."""
        return _ESCAPES.sub("", self.read())

    def wait_for(self, *texts: str) -> None:
        """Until the last frame has all these texts; what is looked at a moment later may be the beginning of the next one."""

        def shown() -> bool:
            frame = self.frame()
            return all(text in frame for text in texts)

        seen = wait_until(lambda: (shown() and "shown") or (self._ended() and "ended"), timeout=SECONDS, what=f"the screen shows {texts!r}")
        assert seen == "shown" or shown(), f"it ended with {self.process and self.process.poll()}:\n{self.text()[-4_000:]}"

    def wait_for_text(self, text: str) -> None:
        """Until that text was written at some time."""
        wait_until(lambda: text in self.text() or self._ended(), timeout=SECONDS, what=f"the screen shows {text!r}")
        assert text in self.text(), f"it ended with {self.process and self.process.poll()}:\n{self.text()[-4_000:]}"

    def resize(self, columns: int, lines: int) -> None:
        """As if the window were drawn larger or smaller."""
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        assert self.process
        self.process.send_signal(signal.SIGWINCH)  # the kernel tells only the foreground group of a controlling terminal

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self.ours, keys.encode())

    def end(self, number: int | None = None) -> int:
        """Send a signal, if one is given, and wait for the exit code, reading on: a full terminal would hold the program."""
        assert self.process
        if number is not None:
            self.process.send_signal(number)
        wait_until(lambda: self.read() is not None and self._ended(), timeout=SECONDS, what="the program ends")
        self.read()
        return self.process.wait()

    def as_before(self) -> bool:
        """Whether modes and keys of the terminal are what they were."""
        return termios.tcgetattr(self.theirs) == self.before

    def _ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None


@contextlib.contextmanager
def terminal(
    program: Program, *arguments: object, columns: int = 100, lines: int = 30, env: Mapping[str, str] | None = None
) -> Iterator[Terminal]:
    """Run a command line on a terminal of its own; killed at the end if it still runs."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    found = Terminal(ours, theirs)
    found.process = subprocess.Popen(
        [sys.executable, *program.argv, *map(str, arguments)],
        cwd=program.home, env=program.environment({"TERM": "xterm-256color"} | dict(env or {})), stdin=theirs, stdout=theirs, stderr=theirs,
        start_new_session=True,
    )  # fmt: skip
    try:
        yield found
    finally:
        if found.process.poll() is None:
            found.process.kill()
        found.process.wait()
        os.close(ours)
        os.close(theirs)
