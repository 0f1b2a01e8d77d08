"""Owns the rounds of the thread that looks for everybody who waits: whom to look for, when, and what an outage means for them.

It must not be called from any other thread: `jobrunner.waiters` is the way in.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, NamedTuple

import psycopg

from jobrunner import jitter
from jobrunner.errors import JobNotFound, JobrunnerError, ResultExpired
from jobrunner.looking import UNANSWERED, Looker, reason
from jobrunner.states import FINISHED

if TYPE_CHECKING:
    from jobrunner.looking import Row
    from jobrunner.settings import Dsn

logger = logging.getLogger("jobrunner.waiters")

TICK = 0.002  # seconds; there is one look a tick at most, whatever happens, and the first looks at a job are a tick apart
LONGEST_PAUSE = 128  # ticks, a quarter of a second: between two looks at a job that has been waited for a second or longer
IDLE = 60.0  # seconds without a waiter after which the connection is given up
FIRST_BACKOFF = 0.05  # seconds before a database that is away is tried again; doubles
MAX_BACKOFF = 2.0  # seconds


class Waiting:
    """One call that waits for one job.

    Attributes:
        since, deadline: by the monotonic clock; a deadline of None is never.
        seen: whether the job is known to have existed.
        gone: nobody waits for the answer any more.
        row, error: the answer, one of the two, once `settled` is set.
    """

    __slots__ = ("deadline", "error", "gone", "job_id", "row", "seen", "settled", "since")

    in_call = True  # whether somebody stands still until the answer comes

    def __init__(self, job_id: int, seconds: float | None, *, seen: bool) -> None:
        self.job_id = job_id
        self.since = time.monotonic()
        self.deadline = None if seconds is None else self.since + min(max(0.0, seconds), threading.TIMEOUT_MAX / 2)
        self.seen = seen
        self.gone = False
        self.row: Row | None = None
        self.error: BaseException | None = None
        self.settled = threading.Event()

    def settle(self, row: Row | None, error: BaseException | None = None) -> None:
        """Give the answer and wake the one who waits."""
        self.row, self.error = row, error
        self.settled.set()

    @property
    def longest_pause(self) -> int:
        """Ticks between two looks, at most; a power of two. Who waits in a call is told within a quarter of a second."""
        return LONGEST_PAUSE

    def began(self) -> None:
        """The job was seen running; may come more than once."""

    def is_up(self, now: float) -> bool:
        """Whether the time is up, so that any row is an answer."""
        return self.deadline is not None and self.deadline <= now

    def is_over(self) -> bool:
        """Whether there is nothing left to do."""
        return self.gone or self.settled.is_set()


class Failure(NamedTuple):
    """That the database did not answer, and when."""

    error: BaseException
    at: float


class Pulse:
    """What is known of the database: written by the thread, read by those who wait.

    Attributes:
        answered_at: when it last answered, by the monotonic clock.
        away: the last failure since then.
    """

    def __init__(self) -> None:
        self.answered_at = time.monotonic()
        self.away: Failure | None = None


class Rounds:
    """What the thread does, on a connection of its own.

    Args:
        dsn: where the jobs are.
        inbox: who has come to wait; None ends the thread as soon as nobody waits.
        pulse: to be kept up to date.
    """

    def __init__(self, dsn: Dsn, inbox: SimpleQueue[Waiting | None], pulse: Pulse) -> None:
        self._dsn = dsn
        self._inbox = inbox
        self._pulse = pulse
        self._looker = Looker(dsn)
        self._due: list[tuple[int, int, Waiting]] = []  # a heap: the tick of the next look, and a number that keeps it ordered
        self._numbers = itertools.count()
        self._not_before = 0  # the first tick at which the database may be asked again
        self._asking: list[Waiting] = []  # whom the look under way is for
        self._failures = 0
        self._stopping = False

    def run(self) -> None:
        """Rounds until told to stop and nobody waits."""
        try:
            while self._take():
                self._asking = self._pop(_tick())
                if self._asking:
                    self._round(self._asking)
                    self._asking = []
        except BaseException as error:
            self._settle_all(error)  # nobody may hang because of what nobody thought of
            raise
        finally:
            self._looker.close()

    def _take(self) -> bool:
        """Take in who has come, waiting for the next look at most. False: it is time to end."""
        try:
            item = self._inbox.get(timeout=self._patience())
            while True:
                if item is None:
                    self._stop()
                else:
                    self._push(item, _tick())
                item = self._inbox.get_nowait()
        except Empty:
            pass
        if not self._due and not self._stopping:
            self._looker.close()  # nobody has come for a while
        return bool(self._due) or not self._stopping

    def _stop(self) -> None:
        """End as soon as nobody waits in a call: the process ends, and jobs do without those who only wanted to hear of them."""
        self._stopping = True
        self._due = [entry for entry in self._due if entry[2].in_call]
        heapq.heapify(self._due)

    def _patience(self) -> float | None:
        while self._due and self._due[0][2].is_over():
            heapq.heappop(self._due)
        if self._due:
            return max(0.0, self._due[0][0] * TICK - time.monotonic())
        if self._stopping:
            return 0.0
        return IDLE if self._looker.connected else None

    def _push(self, waiting: Waiting, tick: int) -> None:
        heapq.heappush(self._due, (max(tick, self._not_before), next(self._numbers), waiting))

    def _pop(self, tick: int) -> list[Waiting]:
        due = []
        while self._due and self._due[0][0] <= tick:
            waiting = heapq.heappop(self._due)[2]
            if not waiting.is_over():
                due.append(waiting)
        return due

    def _round(self, due: list[Waiting]) -> None:
        """One look at the jobs of all who are due; who got no answer is due again later."""
        self._not_before = _tick() + 1
        try:
            self._look(due)
        except UNANSWERED as error:
            self._outage(error, len(due) + len(self._due))
        except (JobrunnerError, psycopg.Error) as error:  # another answer than rows: it will not change by itself
            for waiting in due:
                waiting.settle(None, error)
        for waiting in due:
            if not waiting.is_over():
                self._push(waiting, _next_look(waiting, _tick()))

    def _look(self, due: list[Waiting]) -> None:
        now = time.monotonic()
        by_id: dict[int, list[Waiting]] = {}
        for waiting in due:
            by_id.setdefault(waiting.job_id, []).append(waiting)
        last = {waiting.job_id for waiting in due if waiting.is_up(now)}
        for job_id, row in self._looker.look(list(by_id), last):
            for waiting in by_id[job_id]:
                _tell(waiting, row, now)
        self._answered()
        for job_id in self._looker.running:
            for waiting in by_id[job_id]:
                waiting.began()
        for waiting in due:
            waiting.seen = True

    def _outage(self, error: BaseException, count: int) -> None:
        if not self._failures:
            logger.warning("%s; %d who wait for jobs go on waiting", reason(error, self._dsn), count)
        self._pulse.away = Failure(error, time.monotonic())
        pause = min(MAX_BACKOFF, FIRST_BACKOFF * 2.0 ** min(self._failures, 10)) * jitter.between(0.5, 1.0)
        self._failures += 1
        self._not_before = _tick() + int(pause / TICK) + 1

    def _answered(self) -> None:
        self._pulse.answered_at = time.monotonic()
        if self._failures:
            logger.info("the database answers again")
            self._pulse.away = None
            self._failures = 0

    def _settle_all(self, error: BaseException) -> None:
        for waiting in [*self._asking, *(entry[2] for entry in self._due)]:
            if not waiting.is_over():
                waiting.settle(None, error)


def _tick() -> int:
    return int(time.monotonic() / TICK)


def _next_look(waiting: Waiting, tick: int) -> int:
    """The tick of the next look: a quarter of the time that was waited so far from now, or the end of the waiter's time.

    Pauses are powers of two and looks fall on multiples of them, so that those who wait long are asked for together.
    """
    age = tick - int(waiting.since / TICK)
    pause = min(waiting.longest_pause, 1 << max(0, (age // 4).bit_length() - 1))
    following = (tick // pause + 1) * pause
    return following if waiting.deadline is None else min(following, int(waiting.deadline / TICK) + 1)


def _tell(waiting: Waiting, row: Row | None, now: float) -> None:
    if row is None:
        waiting.settle(None, ResultExpired(waiting.job_id) if waiting.seen else JobNotFound(waiting.job_id))
    elif row.state in FINISHED or waiting.is_up(now):
        waiting.settle(row)
