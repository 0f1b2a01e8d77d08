"""Owns looking again and again: a thread that asks inspection, keeps the last good answer, and goes on when the database is away.

It must not draw: whoever watches is called when there is something new.
"""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from jobrunner.errors import JobrunnerError
from jobrunner.filters import JobFilter

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobrunner.database import Database
    from jobrunner.inspection import Glance, View

SHARE = 5  # a look may take this part of the time: with a slow database the pauses grow, so that watching does not make it slower
SILENT = 5.0  # seconds without an answer, after which a look that began is called one that hangs


class Wanted(NamedTuple):
    """What is looked at."""

    view: View = "running"
    filter: JobFilter = JobFilter()  # frozen
    limit: int = 100


class Sight(NamedTuple):
    """What was seen last.

    Attributes:
        wanted: what was asked for.
        glance: the last answer; None when there never was one.
        trouble: why the last look failed, in one line; None when it did not.
        since: when the trouble began, by this machine's clock.
        took: seconds that the look took.
    """

    wanted: Wanted
    glance: Glance | None
    trouble: str | None
    since: datetime | None = None
    took: float = 0.0


class Watcher(threading.Thread):
    """Looks every `interval` seconds until stopped.

    A daemon: a look that hangs on a dead connection does not keep the program from leaving.

    Args:
        database: where.
        wanted: what to look at first.
        interval: seconds between two looks; more when a look takes long.
        seen: called in this thread after every look.
    """

    def __init__(self, database: Database, wanted: Wanted, interval: float, seen: Callable[[], None]) -> None:
        super().__init__(name="jobrunner-top", daemon=True)
        self.database = database
        self.interval = interval
        self.sight = Sight(wanted, None, None)
        self.failure: BaseException | None = None
        self._wanted = wanted
        self._seen = seen
        self._soon = threading.Event()
        self._paused = False
        self._ended = threading.Event()
        self._began: float | None = None

    @property
    def hangs(self) -> float | None:
        """Seconds that the look of now has been without an answer; None when that is not long."""
        began = self._began
        silent = 0.0 if began is None else time.monotonic() - began
        return silent if silent > SILENT else None

    @property
    def rest(self) -> float:
        """Seconds between two looks, as of now."""
        return max(self.interval, self.sight.took * SHARE)

    def look_at(self, wanted: Wanted) -> None:
        """Look at something else, now."""
        self._wanted = wanted
        self._soon.set()

    def again(self) -> None:
        """Look now, also while it pauses."""
        self._soon.set()

    def pause(self, paused: bool) -> None:  # noqa: FBT001  the state is the argument
        """Do not look until told to go on, or asked for one look."""
        self._paused = paused
        if not paused:
            self._soon.set()

    def stop(self) -> None:
        """Look no more."""
        self._ended.set()
        self._soon.set()

    def run(self) -> None:
        """Until stopped. What is no error of ours ends it, and stands in `failure`."""
        try:
            while not self._ended.is_set():
                self._soon.clear()
                self.sight = look(self.database, self._wanted, self.sight, self._look_began)
                if self._ended.is_set():
                    return
                self._seen()
                while not self._soon.wait(None if self._paused else self.rest) and self._paused:
                    pass
        except BaseException as error:  # noqa: BLE001  the thread that draws raises it
            self.failure = error
            self._seen()

    def _look_began(self, at: float | None) -> None:
        self._began = at


def look(database: Database, wanted: Wanted, before: Sight | None = None, began: Callable[[float | None], None] = lambda _: None) -> Sight:
    """One look. An error of ours becomes the sight's trouble, beside what was seen before."""
    from jobrunner.inspection import glance

    start = time.monotonic()
    began(start)
    try:
        found = glance(database, wanted.view, wanted.filter, limit=wanted.limit)
    except JobrunnerError as error:
        since = before.since if before and before.since else datetime.now(UTC)
        trouble = " ".join(str(error).split())
        return Sight(wanted, before.glance if before else None, trouble, since, time.monotonic() - start)
    finally:
        began(None)
    return Sight(wanted, found, None, took=time.monotonic() - start)
