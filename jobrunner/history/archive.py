"""Owns where rows go before they are removed: files of JSON lines, or a function of somebody's own.

It must not talk to the database. What it cannot keep it says by an error, and the rows stay where they are.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from jobrunner.errors import ConfigurationError

if TYPE_CHECKING:
    from datetime import date

MOST_ROWS = 1000  # handed to a function at once
MOST_CHARACTERS = 16_000_000  # the same, of JSON: the arguments of one job may be a million
_LEVEL = 3  # of gzip: half the time of the default, a tenth more bytes
_BUFFER = 1 << 20  # bytes collected before they go to gzip


class Batch(NamedTuple):
    """Rows that are about to be removed.

    Attributes:
        table: `job_history` or `job_attempts`.
        day: the day (UTC) on which they finished; None for rows that had no partition of their own.
        rows: each with all columns of the table, as JSON has them: instants are ISO 8601 in UTC, intervals as PostgreSQL prints them.
    """

    table: str
    day: date | None
    rows: list[dict[str, Any]]


Archive = Callable[[Batch], object]


class Kept(NamedTuple):
    """What an archive has taken; `forget` undoes it when the rows stay after all."""

    row_count: int
    forget: Callable[[], None]


class Sink(Protocol):
    """Takes the rows of one step."""

    def keep(self, table: str, day: date | None, number: int, lines: Iterable[str]) -> Kept:
        """Take rows as JSON texts. Returns when they are safe; any error means that they are not."""


class Files:
    """A directory of `job_history_20261024.7402118.jsonl.gz`: table, day and the transaction that removed the rows.

    A file is written under a temporary name, brought to disk, and renamed. None is ever overwritten. Where a step could not be committed
    after that, and its process died, its rows are in two files: they load once, by their key.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def keep(self, table: str, day: date | None, number: int, lines: Iterable[str]) -> Kept:
        """Write a file. None is made when there are no rows.

        Raises:
            OSError: it could not be written whole; nothing is left of it.
        """
        rows = iter(lines)
        first = next(rows, None)
        if first is None:
            return Kept(0, _nothing)
        name = f"{table}_{'default' if day is None else format(day, '%Y%m%d')}.{number}.jsonl.gz"
        path, temporary = self.directory / name, self.directory / f".{name}.{os.getpid()}.part"
        count = 1
        try:
            with temporary.open("xb") as raw:
                with gzip.GzipFile(filename=name.removesuffix(".gz"), mode="wb", compresslevel=_LEVEL, fileobj=raw, mtime=0) as packed:
                    pending = [first]
                    size = len(first)
                    for line in rows:
                        count += 1
                        pending.append(line)
                        size += len(line)
                        if size > _BUFFER:
                            packed.write(_text(pending))
                            pending, size = [], 0
                    packed.write(_text(pending))
                raw.flush()
                os.fsync(raw.fileno())
            os.link(temporary, path)  # not a rename, which would take the place of a file of that name
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()
        self._sync()
        return Kept(count, lambda: path.unlink(missing_ok=True))

    def _sync(self) -> None:
        """The new name itself has to reach the disk."""
        descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class Handing:
    """Hands the rows to a function, some hundred at a time."""

    def __init__(self, archive: Archive) -> None:
        self.archive = archive

    def keep(self, table: str, day: date | None, number: int, lines: Iterable[str]) -> Kept:  # noqa: ARG002  a function has no use for it
        """Call the function until it has had all rows; what it raises goes through."""
        count = 0
        for some in _portions(lines):
            self.archive(Batch(table, day, [json.loads(line) for line in some]))
            count += len(some)
        return Kept(count, _nothing)


def directory_from(value: str | os.PathLike[str], what: str) -> Files:
    """The archive in a directory that is there and can be written to.

    Raises:
        ConfigurationError: it is not; the message names `what`.
    """
    path = Path(value).expanduser()
    if not path.is_dir():
        raise ConfigurationError(f"{what}={str(value)!r}: there is no such directory", hint=f"try:   mkdir -p {path}")
    if not os.access(path, os.W_OK | os.X_OK):
        raise ConfigurationError(f"{what}={str(value)!r}: this user may not write there", hint=f"see:   ls -ld {path}")
    return Files(path.absolute())


def from_environ() -> Files | None:
    """What `JOBRUNNER_ARCHIVE` says; None when it is not set. Raises ConfigurationError."""
    value = os.environ.get("JOBRUNNER_ARCHIVE", "").strip()
    return directory_from(value, "JOBRUNNER_ARCHIVE") if value else None


def _text(lines: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def _portions(lines: Iterable[str]) -> Iterator[list[str]]:
    some: list[str] = []
    size = 0
    for line in lines:
        if some and (len(some) >= MOST_ROWS or size + len(line) > MOST_CHARACTERS):
            yield some
            some, size = [], 0
        some.append(line)
        size += len(line)
    if some:
        yield some


def _nothing() -> None:
    """There is nothing to undo."""
