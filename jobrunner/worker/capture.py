"""Owns what goes into a job's log from inside a child: records of `logging`, and what threads and coroutines print.

It must not keep anything nor count: the worker numbers the lines and cuts off what is too much.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import os
import sys
from typing import TYPE_CHECKING, Any

from jobrunner.current import LOGGER, current_or_none
from jobrunner.texts import cut, storable

if TYPE_CHECKING:
    from jobrunner.current import JobContext
    from jobrunner.worker.voices import Outbox

MESSAGE_LIMIT = 16_000  # characters of one line
MAX_LINES = 10_000  # of one attempt's log
MAX_LOG_BYTES = 1_000_000  # of one attempt's log
STDOUT, STDERR = "stdout", "stderr"
LEVELS = {STDOUT: logging.INFO, STDERR: logging.WARNING}
_MAX_NAME = 200  # characters of a logger's name
_TRACEBACKS = logging.Formatter()


class JobLog(logging.Handler):
    """Sends the records of a running job to the worker. Never raises, and never keeps a record from the other handlers."""

    def __init__(self, outbox: Outbox) -> None:
        super().__init__()
        self._outbox = outbox

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record, if a job runs here and wants it."""
        context = current_or_none()
        if context is None or context.log_level is None or not context.lease or _is_full(context):
            return
        own = record.name == LOGGER
        if not own and record.levelno < context.log_level:
            return
        try:
            text = record.getMessage()
            if record.exc_info and record.exc_info[1] is not None:
                text += "\n" + _TRACEBACKS.formatException(record.exc_info)
            if record.stack_info:
                text += "\n" + record.stack_info
        except Exception as error:  # noqa: BLE001  arguments that do not fit the message, a hostile __str__
            text = f"<a record of {record.pathname}:{record.lineno} could not be formatted: {type(error).__name__}>"
        level = min(max(record.levelno, logging.NOTSET), logging.CRITICAL)
        send(self._outbox, context, level, record.name, text)


def send(outbox: Outbox, context: JobContext, level: int, name: str, text: str) -> None:
    """One line for the job's log, as text that PostgreSQL accepts; nothing when the worker is gone or the log is full.

    The worker's own count decides where the log ends; this one keeps a task that logs for ever from keeping the worker busy.
    """
    if _is_full(context):
        return
    name, text = storable(name[:_MAX_NAME])[:_MAX_NAME], storable(cut(text, MESSAGE_LIMIT))
    context.log_lines += 1
    context.log_bytes += len(text)
    with contextlib.suppress(OSError):
        outbox.log(context, level, name, text)


def _is_full(context: JobContext) -> bool:
    return context.log_lines > MAX_LINES or context.log_bytes > MAX_LOG_BYTES


def install(outbox: Outbox) -> None:
    """Catch the records of all loggers of this process from now on.

    An application that has not set up logging at all gets INFO records caught too, and its warnings still go to stderr as they
    would have without us.
    """
    root = logging.getLogger()
    handler = JobLog(outbox)
    if not root.handlers:
        root.addHandler(_last_resort())
        if root.level == logging.WARNING:
            root.setLevel(logging.INFO)
    root.addHandler(handler)
    own = logging.getLogger(LOGGER)
    own.setLevel(logging.DEBUG)
    if not _reaches_root(own):
        own.addHandler(handler)


def _last_resort() -> logging.Handler:
    handler = logging.StreamHandler()
    handler.setLevel(logging.WARNING)
    return handler


def _reaches_root(logger: logging.Logger) -> bool:
    step: logging.Logger | None = logger
    while step is not None:
        if step.parent is not None and not step.propagate:
            return False
        step = step.parent
    return True


class Redirected:
    """In a child that runs one job at a time: file descriptors 1 and 2 lead to the worker while it wants them.

    What C code and other processes of the job write is caught too.
    """

    def __init__(self, outbox: Outbox, pipes: dict[int, int]) -> None:
        self._outbox, self._pipes = outbox, pipes
        self._kept: dict[int, int] = {}
        self._streams = (sys.stdout, sys.stderr)
        self._before = {number: _identity(number) for number in (*self._pipes, *self._pipes.values())}

    def spoilt(self) -> bool:
        """Whether a job has closed or replaced what the next ones print to: its number may be somebody's connection by now."""
        for stream in self._streams:  # no generator: this is asked after every job
            if stream is not None and stream.closed:
                return True
        try:
            for number in self._pipes:
                facts = os.fstat(number)
                if (facts.st_dev, facts.st_ino) != self._before[number]:
                    return True
        except OSError:  # closed
            return any(_identity(number) != self._before[number] for number in self._pipes)
        return False

    def begin(self, context: JobContext, *, keep: bool) -> None:
        """Lead both streams to the worker; `keep`: as lines of the job's log, else only to be counted and passed on."""
        self._outbox.send(["capture", context.id, context.lease, keep])
        for number, pipe in self._pipes.items():
            if _identity(pipe) != self._before[pipe]:
                continue  # an earlier job closed it, and what has its number now is not ours
            try:
                self._kept[number] = os.dup(number)
                os.dup2(pipe, number)
            except OSError:
                continue  # an earlier job closed it

    def end(self) -> None:
        """Lead the streams back to where they went before."""
        _flush_c()
        for number, kept in self._kept.items():
            try:
                os.dup2(kept, number)
                os.close(kept)
            except OSError:
                continue  # the job closed what is not its own
        self._kept.clear()


def _identity(descriptor: int) -> tuple[int, int] | None:
    try:
        facts = os.fstat(descriptor)
    except OSError:
        return None
    return facts.st_dev, facts.st_ino


def _flush_c() -> None:
    """What C code has printed with stdio waits in a buffer of the C library, where Python's flush does not reach it."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).fflush(None)


class JobStream(io.TextIOBase):
    """In a child that runs several jobs: stands for sys.stdout or sys.stderr and knows which job prints.

    Only what Python code prints is caught. The lines go on to the stream that was there.
    """

    def __init__(self, outbox: Outbox, name: str, capturing: set[int]) -> None:
        super().__init__()
        self._outbox, self._name, self._capturing = outbox, name, capturing
        self._stream: Any = getattr(sys, name)
        self._rest: dict[int, str] = {}

    def writable(self) -> bool:
        """Always."""
        return True

    def fileno(self) -> int:
        """That of the stream behind."""
        return int(self._stream.fileno())

    def isatty(self) -> bool:
        """As the stream behind."""
        return bool(self._stream.isatty())

    def flush(self) -> None:
        """Flush the stream behind; a line that is not ended yet is kept for its end."""
        self._stream.flush()

    def write(self, text: str) -> int:
        """Pass on, and send whole lines to the log of the job that prints."""
        self._stream.write(text)
        context = current_or_none()
        if context is not None and context.id in self._capturing:
            *lines, self._rest[context.id] = (self._rest.get(context.id, "") + text).split("\n")
            for line in lines:
                send(self._outbox, context, LEVELS[self._name], self._name, line)
        return len(text)

    def ended(self, context: JobContext) -> None:
        """The job has ended: its last line counts without an end."""
        rest = self._rest.pop(context.id, "")
        if rest:
            send(self._outbox, context, LEVELS[self._name], self._name, rest)
