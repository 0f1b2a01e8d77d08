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
from jobrunner.store import Store, is_transient
from jobrunner.worker.log import logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

T = TypeVar("T")

FLUSH = 0.5  # seconds that something may wait
MAX_LINES = 20_000  # log lines kept while the database is away
_BATCH = 1000  # rows of one statement


class Notebook:
    """What waits to be written; used under the link's lock, but for `write`."""

    def __init__(self) -> None:
        self._notes: dict[tuple[int, int], Note] = {}
        self._lines: deque[LogLine] = deque(maxlen=MAX_LINES)
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
            self.dropped += len(self._lines) == MAX_LINES
            self._lines.append(line)
        if self._since is None and (self._notes or self._lines):
            self._since = clock.monotonic()

    def take(self) -> tuple[list[Note], list[LogLine]]:
        """Everything, to be written; give it back with `put_back` when that fails for a while."""
        notes, lines = list(self._notes.values()), list(self._lines)
        self._notes.clear()
        self._lines.clear()
        self._since = None
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
        part = notes[start : start + _BATCH]
        held = _tried(partial(store.note, part), "progress")
        if held is not None:
            superseded += [note for note in part if note.id not in held]
    while lines:
        _tried(partial(store.log, lines[:_BATCH]), "log lines")
        del lines[:_BATCH]
    return superseded


def _tried(call: Callable[[], T], what: str) -> T | None:
    """What is refused for what it says is given up: neither the job nor the worker may fail for it."""
    try:
        return call()
    except psycopg.Error as error:
        if is_transient(error):
            raise
        logger.error("cannot be stored and is dropped", extra={"what": what, "error": type(error).__name__})
        return None


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
