"""Owns when a task with a `rate_limit` may begin next in this worker: two moments for each task, which all its processes share.

It must not know of other workers: the rate is that of each, as in Celery. Nor does it wait: who is too early is told by how much.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import tempfile
import threading
import time
import weakref
import zlib
from typing import TYPE_CHECKING, Any

from jobrunner.compat.celery.exceptions import ImproperlyConfigured

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from jobrunner.compat.celery.app.base import Celery

IN_PLACE = 0.25  # seconds that a task waits in its slot; for longer it goes back into its row, and the slot is somebody else's
AT_TURN = 2.0  # seconds, of one whose turn it is: a worker looks each second for what is due, so that some come later than others
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}  # seconds
_MOMENTS = struct.Struct("dd")  # from when on the next may begin, an interval after the last did; the next turn that nobody has
_OTHERS = 4096  # places for tasks that are made after the file; two that share one are too slow, never too fast


def interval_of(rate: Any) -> float | None:
    """Seconds between two starts of a task with such a `rate_limit`: a number a second, or `10/s`, `10/m`, `10/h`. None for no limit.

    Raises:
        ImproperlyConfigured: it is none of these.
    """
    if not rate:
        return None
    number, _, unit = str(rate).partition("/")
    try:
        per_second = float(number) / _UNITS[unit.strip()]
    except (ValueError, KeyError):
        raise ImproperlyConfigured(f"rate_limit={rate!r}: expected a number a second, or text such as '10/m' (s, m, h)") from None
    return 1 / per_second if per_second > 0 else None


class Rates:
    """The moments of each task, in a file without a name. It is made in the process from which children are forked.

    Not in shared memory: a lock on a part of a file is gone with the process that has it, however that ends.

    Args:
        names: of the tasks.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._places = {name: index for index, name in enumerate(sorted(names))}
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  for as long as the worker lives
        weakref.finalize(self, self._file.close)
        self._turn = threading.Lock()  # of threads: locks on files are those of a process

    def reserve(self, name: str, interval: float, *, has_waited: bool = False) -> float:
        """Let a task begin, or give it the next turn that nobody has. Returns the seconds until then: up to `patience` it has begun.

        Args:
            has_waited: it was given a turn before, by this worker or another, and this is it, or later: it goes before those that wait
                for theirs, but not sooner than an interval after the last. Turns that were missed while no worker ran, or while all
                slots were taken, would otherwise be taken all at once.
        """
        place = self._places.get(name, len(self._places) + zlib.crc32(name.encode()) % _OTHERS) * _MOMENTS.size
        most = patience(has_waited=has_waited)
        with self._alone(place):
            known = os.pread(self._file.fileno(), _MOMENTS.size, place)
            free: float
            turn: float
            free, turn = _MOMENTS.unpack(known) if len(known) == _MOMENTS.size else (0.0, 0.0)
            now = time.monotonic()  # one clock for all processes of a host
            begins = max(now, free)
            if not has_waited or begins - now > most:
                begins = max(begins, turn)
            if begins - now <= most:
                free = begins + interval
            os.pwrite(self._file.fileno(), _MOMENTS.pack(free, max(turn, begins + interval)), place)
        return begins - now

    @contextlib.contextmanager
    def _alone(self, place: int) -> Iterator[None]:
        with self._turn:
            fcntl.lockf(self._file, fcntl.LOCK_EX, _MOMENTS.size, place)
            try:
                yield
            finally:
                fcntl.lockf(self._file, fcntl.LOCK_UN, _MOMENTS.size, place)


def patience(*, has_waited: bool) -> float:
    """Seconds that a task waits in its slot rather than in its row."""
    return AT_TURN if has_waited else IN_PLACE


def rates_of(app: Celery) -> Rates:
    """Those of an app's tasks in this worker."""
    found = _made.get(app)
    return _made.setdefault(app, Rates(app.tasks)) if found is None else found


_made: weakref.WeakKeyDictionary[Celery, Rates] = weakref.WeakKeyDictionary()
