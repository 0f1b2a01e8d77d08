"""Owns the loggers that code takes from `celery.utils.log`, the format that has a task's name and id, and the stream that logs.

It must not set levels nor add handlers: `worker` does, where a worker runs.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from typing import Any

from jobrunner.compat.celery import _state

base_logger = logging.getLogger("celery")
worker_logger = logging.getLogger("celery.worker")
task_logger = logging.getLogger("celery.task")
_RESERVED = {"celery", "celery.task"}


def get_logger(name: str | logging.Logger) -> logging.Logger:
    """A logger; its records go to `celery` when nobody else takes them."""
    logger = logging.getLogger(name) if isinstance(name, str) else name
    return _below(logger, base_logger)


def get_task_logger(name: str) -> logging.Logger:
    """A logger for tasks: a child of `celery.task`, which `after_setup_task_logger` gives away; its records are in the job's log.

    Raises:
        RuntimeError: the name is one of the parents.
    """
    if name in _RESERVED:
        raise RuntimeError(f"Logger name {name!r} is reserved!")
    return _below(get_logger(name), task_logger)


def _below(logger: logging.Logger, parent: logging.Logger) -> logging.Logger:
    step: logging.Logger | None = logger
    while step is not None and step is not parent:
        step = step.parent
    if step is None and logger is not logging.root:
        logger.parent = parent
    return logger


class ColorFormatter(logging.Formatter):
    """A formatter; there are no colours."""

    def __init__(self, fmt: str | None = None, use_color: bool = True, **options: Any) -> None:  # noqa: ARG002, FBT001, FBT002
        super().__init__(fmt, **options)


class TaskFormatter(ColorFormatter):
    """A formatter that knows `%(task_name)s` and `%(task_id)s`; they are ??? outside of a task."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        task = _state.get_current_task()
        known = task is not None and task.request is not None
        record.__dict__.setdefault("task_name", task.name if known and task is not None else "???")
        record.__dict__.setdefault("task_id", task.request.id if known and task is not None else "???")
        return super().format(record)


class LoggingProxy:
    """A stream whose lines are log records, so that what a task prints has a time and a place, and stands in the job's log.

    Args:
        logger: takes the records, at `level`.
        stream: what it stands for; handlers that write to this one while a record is logged write there.
    """

    _guard = threading.local()  # of all of them: what is printed to one is logged by handlers that may write to another

    def __init__(self, logger: logging.Logger, level: int, stream: Any) -> None:
        self._logger, self._level, self._stream = logger, level, stream
        self._own = threading.local()

    @property
    def closed(self) -> bool:
        """Whether a task has closed what is behind it: then the worker replaces this process."""
        return bool(self._stream.closed)

    def write(self, data: str) -> int:
        """Keep the text, and log each line that is complete."""
        if self._is_logging():
            self._stream.write(data)
            return len(data)
        *lines, self._own.rest = (getattr(self._own, "rest", "") + str(data)).split("\n")
        self._log(lines)
        return len(data)

    def writelines(self, sequence: Any) -> None:
        """Each of them."""
        for part in sequence:
            self.write(part)

    def flush(self) -> None:
        """Log what is left of a line."""
        if not self._is_logging():  # else it is a handler that flushes, and the record is not through all of them
            rest, self._own.rest = getattr(self._own, "rest", ""), ""
            self._log([rest])
        self._stream.flush()

    def _is_logging(self) -> bool:
        return bool(getattr(self._guard, "is_logging", False))

    def _log(self, lines: list[str]) -> None:
        self._guard.is_logging = True
        try:
            for line in lines:
                if line.strip():
                    self._logger.log(self._level, "%s", line)
        finally:
            self._guard.is_logging = False

    def isatty(self) -> bool:
        """It is none."""
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def flush_proxies() -> None:
    """Log what is left of a line, while the job that printed it is the current one."""
    for stream in (sys.stdout, sys.stderr):
        # Not only a LoggingProxy: beside other jobs of its process a job has a stream of its own before it. A task may have closed it.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
