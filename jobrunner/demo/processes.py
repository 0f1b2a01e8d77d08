"""Owns the processes of the demonstration, a worker and the pages: start, look, end.

It must not decide whether one that ended is started again.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Any

from jobrunner.worker.leash import on_leash

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

LONGEST = 10.0  # seconds between SIGTERM and SIGKILL at the end
LOOK = 0.02  # seconds between looks at what shall end
TAIL = 2_000  # bytes of a log that its last line is looked for in


class Process:
    """One `jobrunner …` command in a session of its own: Ctrl-C reaches the demonstration only, which ends it in order."""

    def __init__(self, *arguments: str) -> None:
        self._arguments = arguments
        self._environment: dict[str, str] = {}
        self._log: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of the process that was started last; 0 before the first."""
        return self._process.pid if self._process is not None else 0

    def start(self, environment: Mapping[str, str], log: Path) -> None:
        """Start it; everything that it says is appended to `log`."""
        self._environment, self._log = dict(environment), log
        self.restart()

    def restart(self) -> None:
        """Start it as before."""
        assert self._log is not None, "it was never started"  # noqa: S101
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                on_leash("jobrunner", *self._arguments),
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def ended(self) -> str | None:
        """How it ended, in words; None while it runs or was not started."""
        code = self._process.poll() if self._process is not None else None
        if code is None:
            return None
        if code >= 0:
            return f"left with exit code {code}"
        with contextlib.suppress(ValueError):
            return f"was killed by {signal.Signals(-code).name}"
        return f"was killed by signal {-code}"

    def last_words(self) -> str:
        """The last line that it said; its last `error:` when there is one."""
        if self._log is None:
            return ""
        text = self._log.read_bytes()[-TAIL:].decode("utf-8", "replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("error:")]
        return (errors or lines or ["nothing"])[-1]

    def signal(self, number: int) -> None:
        """Send a signal to it and whatever it has started; nothing when it is gone."""
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)


class Interrupted(BaseException):
    """Somebody wants an end: Ctrl-C, SIGTERM, or the terminal was closed."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Interrupts:
    """From `open` to `close` the first signal that asks for an end raises Interrupted, and every later one only ends the patience.

    So cleaning up is never interrupted half-way, whenever and however often somebody presses Ctrl-C.
    """

    def __init__(self) -> None:
        self.out_of_patience = False
        self._raises = True
        self._taken = False
        self._before: dict[int, Any] = {}

    def open(self) -> None:
        """Take the signals over."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._before[number] = signal.signal(number, self._take)

    def hold(self) -> None:
        """From here on nothing is interrupted."""
        self._raises = False

    def close(self) -> None:
        """Give the signals back; after an interrupt they are ignored instead: the process is about to leave, with its own exit code."""
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_IGN if self._taken else handler)

    def _take(self, number: int, _frame: object) -> None:
        self._taken = True
        if self._raises:
            self._raises = False
            raise Interrupted(number)
        self.out_of_patience = True


def stop(processes: Sequence[Process], interrupts: Interrupts) -> None:
    """End all of them: in order, and by force those that do not, or when the patience is out."""
    for process in processes:
        process.signal(signal.SIGTERM)
    ends = time.monotonic() + LONGEST
    while any(process.pid and process.ended() is None for process in processes):
        if interrupts.out_of_patience or time.monotonic() >= ends:
            for process in processes:
                process.signal(signal.SIGKILL)
        time.sleep(LOOK)
