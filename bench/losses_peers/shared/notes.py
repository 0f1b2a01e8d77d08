"""Owns the ledger's lines: what every job of every contender writes when it begins and when it ends, and how a line is read again.

It must not know any contender, nor need anything but the standard library: it runs inside every worker process. `LOSSES_LEDGER` names the
file. A line is appended by one write and is on the disk before the job goes on. It begins with a line break and ends with a full stop: what
a killed writer left half done stays a line of its own that has no end, and spoils nobody else's.
"""

from __future__ import annotations

import os
import secrets
import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

BEGIN, END = "begin", "end"
LAST = "."
WORDS = 7


class Note(NamedTuple):
    """One line.

    Attributes:
        number: of the job.
        event: `begin` or `end`.
        pid: of the process that ran it.
        run: names this run of the job; its two lines have the same.
        attempt: which one it is in the contender's own words; 0 where it has none. Nothing is judged by it.
        at: the monotonic clock of this machine.
    """

    number: int
    event: str
    pid: int
    run: str
    attempt: int
    at: float


def work(number: int, seconds: float, attempt: int = 0) -> None:
    """The job: say that it has begun, take some time, say that it has ended."""
    run = secrets.token_hex(4)
    write(Note(number, BEGIN, os.getpid(), run, attempt, time.monotonic()))
    time.sleep(seconds)
    write(Note(number, END, os.getpid(), run, attempt, time.monotonic()))


def write(note: Note) -> None:
    """Append it, and wait for the disk: what is in the ledger has happened, whoever is killed next."""
    line = f"\n{note.number} {note.event} {note.pid} {note.run} {note.attempt} {note.at:.6f} {LAST}\n"
    descriptor = os.open(os.environ["LOSSES_LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(descriptor, line.encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(ledger: Path) -> tuple[list[Note], int]:
    """The whole lines, in their order, and how many are torn."""
    if not ledger.exists():
        return [], 0
    pieces = [piece for piece in ledger.read_text(errors="replace").split("\n") if piece]
    whole = [note for piece in pieces if (note := _parse(piece)) is not None]
    return whole, len(pieces) - len(whole)


def _parse(piece: str) -> Note | None:
    words = piece.split(" ")
    if len(words) != WORDS or words[-1] != LAST or words[1] not in {BEGIN, END}:
        return None
    try:
        return Note(int(words[0]), words[1], int(words[2]), words[3], int(words[4]), float(words[5]))
    except ValueError:
        return None
