"""Owns what jobs print while it is caught: counting it, passing it on, cutting it into lines for the job's log.

It must not let a job fill the log, the terminal or the worker's memory, nor a slow terminal hold up the worker.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from typing import TYPE_CHECKING

from jobrunner import clock
from jobrunner.current import LOGGER
from jobrunner.jobs import LogLine
from jobrunner.texts import cut, storable
from jobrunner.worker.capture import LEVELS, MAX_LINES, MAX_LOG_BYTES, MESSAGE_LIMIT, STDERR, STDOUT

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobrunner.worker.children import Child, Run

_CHUNK = 65_536  # bytes read at once
_CHUNKS = 16  # reads before the worker looks after its other children; together as much as the kernel lets a pipe hold
MAX_WAITING = 4 << 20  # bytes that may wait for a slow terminal; what comes then is not passed on
_LAST_WORDS = 1.0  # seconds that a slow terminal is given at the end
_NAMES = {1: STDOUT, 2: STDERR}
_WARNING = LEVELS[STDERR]


class Logbook:
    """Numbers the lines of attempts and stops keeping them where an attempt's log is full."""

    def __init__(self) -> None:
        self.lines: list[LogLine] = []

    def add(self, run: Run, level: int, logger: str, message: str, logged_at: float) -> None:
        """Keep a line of a running attempt, if there is room for it."""
        if run.lines > MAX_LINES or run.log_bytes > MAX_LOG_BYTES:
            return
        run.lines += 1
        run.log_bytes += len(message.encode()) + len(logger)
        if run.lines > MAX_LINES or run.log_bytes > MAX_LOG_BYTES:
            level, logger = _WARNING, LOGGER
            message = f"the log of this attempt is full ({MAX_LINES:,} lines, {MAX_LOG_BYTES:,} bytes): what follows is not kept"
        self.lines.append(LogLine(run.job.id, run.job.lease, run.lines, level, logger, message, logged_at))


class Outputs:
    """Reads the pipes into which children print while a job's output is caught."""

    def __init__(self, logbook: Logbook, exceeded: Callable[[Child, Run, int, float], None]) -> None:
        self._logbook, self._exceeded = logbook, exceeded
        self._tee: Tee | None = None

    def read(self, child: Child, number: int) -> bool:
        """Take in what waits in one pipe, as much as a pipe holds at most: whoever prints without end must not hold up the worker.

        Returns:
            False when nobody can print into it any more.
        """
        still_open = self._drain(child, number)
        run = next(child.active(), None)
        if run is not None and run.output_cut and run.limits is not None:
            self._exceeded(child, run, run.limits["output"] or 0, clock.monotonic())
        return still_open

    def finish(self, child: Child, run: Run) -> None:
        """The attempt is over: what it printed last counts (`run.output_cut` tells), and a line without an end is a line."""
        if run.keep_output is None:
            return
        for number in child.outputs:
            self._drain(child, number)
        self._end_lines(child, run)

    def close(self) -> None:
        """Wait a little until what was printed has been passed on."""
        if self._tee is not None:
            self._tee.close()

    def _drain(self, child: Child, number: int) -> bool:
        descriptor = child.outputs.get(number)
        if descriptor is None:
            return True
        for _ in range(_CHUNKS):
            try:
                data = os.read(descriptor, _CHUNK)
            except OSError:  # nothing waits
                return True
            if not data:
                return False
            self._take(child, number, data)
        return True

    def _end_lines(self, child: Child, run: Run) -> None:
        for number, rest in child.rests.items():
            if rest and run.keep_output:
                self._line(run, number, rest)
        child.rests.clear()

    def _take(self, child: Child, number: int, data: bytes) -> None:
        run = next(child.active(), None)
        if run is None:
            return
        limit = run.limits.get("output") if run.limits is not None else None
        allowed = data if limit is None else data[: max(0, limit - run.output)]
        run.output += len(data)
        self._pass_on(number, allowed)
        if run.keep_output:
            *lines, child.rests[number] = (child.rests.get(number, b"") + allowed).split(b"\n")
            if len(child.rests[number]) > _CHUNK:
                lines.append(child.rests.pop(number))
            for line in lines:
                self._line(run, number, line)
        if limit is not None and run.output > limit and not run.output_cut:
            run.output_cut = True
            self._end_lines(child, run)
            text = f"output cut: it is longer than its output_limit of {limit:,} bytes"
            self._logbook.add(run, _WARNING, LOGGER, text, clock.monotonic())

    def _line(self, run: Run, number: int, data: bytes) -> None:
        text = cut(storable(data.decode("utf-8", "backslashreplace").rstrip("\r")), MESSAGE_LIMIT)
        self._logbook.add(run, LEVELS[_NAMES[number]], _NAMES[number], text, clock.monotonic())

    def _pass_on(self, number: int, data: bytes) -> None:
        if data:
            if self._tee is None:
                self._tee = Tee()
            self._tee.write(number, data)


class Tee(threading.Thread):
    """Writes to the worker's own stdout and stderr.

    What a slow reader does not take in time is left out, and where it is missing a line says how much it was. The bound is of bytes,
    not of pieces: a job that prints line by line fills as much room as one that prints all at once.
    """

    def __init__(self) -> None:
        super().__init__(name="jobrunner-output", daemon=True)
        self._pieces: deque[tuple[int, bytes]] = deque()
        self._waiting = 0  # bytes in pieces and in the write that is under way
        self._left_out = {1: 0, 2: 0}  # bytes for which there was no room, of each stream
        self._full = self._closed = False
        self._changed = threading.Condition()
        self.start()

    def write(self, number: int, data: bytes) -> None:
        """Leave it for the thread."""
        with self._changed:
            # what was full takes more when half of it is free, so that there is one large gap and not a hundred small ones
            self._full = self._waiting > MAX_WAITING // 2 if self._full else self._waiting + len(data) > MAX_WAITING
            if self._full:
                self._left_out[number] += len(data)
                return
            if self._left_out[number]:
                self._put(number, self._gap(number))
            self._put(number, data)
            self._changed.notify()

    def close(self) -> None:
        """Write what waits; give up when that takes long."""
        with self._changed:
            for number, left_out in self._left_out.items():
                if left_out:
                    self._put(number, self._gap(number))
            self._closed = True
            self._changed.notify()
        self.join(_LAST_WORDS)

    def run(self) -> None:
        """Write until it is closed."""
        while (piece := self._next()) is not None:
            number, data = piece
            left = data
            with contextlib.suppress(OSError):
                while left:
                    left = left[os.write(number, left) :]
            with self._changed:
                self._waiting -= len(data)

    def _next(self) -> tuple[int, bytes] | None:
        """What waits for one stream before the other says something, so that many small pieces cost one write; a chunk or little more."""
        with self._changed:
            self._changed.wait_for(lambda: self._pieces or self._closed)
            if not self._pieces:
                return None
            number = self._pieces[0][0]
            data = bytearray()
            while self._pieces and self._pieces[0][0] == number and len(data) < _CHUNK:
                data += self._pieces.popleft()[1]
            return number, bytes(data)

    def _put(self, number: int, data: bytes) -> None:
        self._pieces.append((number, data))
        self._waiting += len(data)

    def _gap(self, number: int) -> bytes:
        count, self._left_out[number] = self._left_out[number], 0
        return f"\n[jobrunner: {count:,} bytes of what jobs printed are left out here, they were not read in time]\n".encode()
