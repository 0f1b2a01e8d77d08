"""Owns what running attempts say of themselves until it is in the database: progress, checkpoints, log lines.

It must not grow without an end while the database is away: progress and checkpoints of one attempt are joined, the oldest log
lines go first.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import psycopg

from jobrunner import clock
from jobrunner.jobs import LogLine, Note
from jobrunner.transient import is_transient
from jobrunner.worker.log import logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from jobrunner.store import Store

T = TypeVar("T")

FLUSH = 0.5  # seconds that something may wait
MAX_LINES = 20_000  # log lines kept while the database is away
MAX_BYTES = 32_000_000  # and their text
_BATCH = 1000  # rows of one statement


class Notebook:
    """What waits to be written; used under the link's lock, but for `write`."""

    def __init__(self) -> None:
        self._notes: dict[tuple[int, int], Note] = {}
        self._lines: deque[LogLine] = deque()
        self._bytes = 0
        self._since: float | None = None
        self.dropped = 0

    def __bool__(self) -> bool:
        return self._since is not None

    @property
    def due_at(self) -> float | None:
        """When it should be written; None when it is empty."""
        return None if self._since is None else self._since + FLUSH

    def add(self, notes: Iterable[Note], lines: Iterable[LogLine]) -> None:
        """Keep what attempts said."""
        for note in notes:
            key = (note.id, note.lease)
            self._notes[key] = _joined(self._notes.get(key), note)
        for line in lines:
            self._lines.append(line)
            self._bytes += len(line.message)
        while len(self._lines) > MAX_LINES or self._bytes > MAX_BYTES:
            self._bytes -= len(self._lines.popleft().message)
            self.dropped += 1
        if self._since is None and (self._notes or self._lines):
            self._since = clock.monotonic()

    def take(self) -> tuple[list[Note], list[LogLine]]:
        """Everything, to be written; give it back with `put_back` when that fails for a while."""
        notes, lines = list(self._notes.values()), list(self._lines)
        self._notes.clear()
        self._lines.clear()
        self._bytes = 0
        self._since = None
        if self.dropped:
            logger.warning("too many log lines of jobs waited for the database: the oldest are lost", extra={"lines": self.dropped})
            self.dropped = 0
        return notes, lines

    def put_back(self, notes: Iterable[Note], lines: Iterable[LogLine]) -> None:
        """What could not be written goes before what came since."""
        newer_notes, newer_lines = self.take()
        self.add([*notes, *newer_notes], [*lines, *newer_lines])


def write(store: Store, notes: list[Note], lines: list[LogLine]) -> list[Note]:
    """Write all of it, fenced. Returns the notes of attempts that have been superseded.

    Raises:
        psycopg.Error: a transient one; a part may be written, writing all again does no harm but for log lines that are there.
    """
    superseded: list[Note] = []
    for start in range(0, len(notes), _BATCH):
        superseded += _each_or_all(notes[start : start + _BATCH], partial(_note, store), "progress")
    while lines:
        _each_or_all(lines[:_BATCH], partial(_log, store), "log line")
        del lines[:_BATCH]
    return superseded


def _note(store: Store, notes: list[Note]) -> list[Note]:
    held = store.note(notes)
    return [note for note in notes if (note.id, note.lease) not in held]


def _log(store: Store, lines: list[LogLine]) -> list[LogLine]:
    store.log(lines)
    return []


def _each_or_all(things: list[T], write_all: Callable[[list[T]], list[T]], what: str) -> list[T]:
    """Write all at once, or one by one when PostgreSQL refuses something in them: that one is given up, and no other suffers.

    Neither the job nor the worker may fail for what a job says of itself.
    """
    try:
        return write_all(things)
    except psycopg.Error as error:
        if is_transient(error):
            raise
        if len(things) == 1:
            logger.error("cannot be stored and is dropped", extra={"what": what, "error": type(error).__name__})
            return []
    return [given_back for thing in things for given_back in _each_or_all([thing], write_all, what)]


def _joined(older: Note | None, newer: Note) -> Note:
    if older is None:
        return newer
    return Note(
        newer.id,
        newer.lease,
        older.fraction if newer.fraction is None else newer.fraction,
        older.text if newer.text is None else newer.text,
        older.checkpoint if newer.checkpoint is None else newer.checkpoint,
    )
