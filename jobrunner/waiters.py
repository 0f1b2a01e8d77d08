"""Owns waiting for the end of jobs: one background thread per process and database looks for everybody who waits.

It must not change anything, nor keep a row once it was handed out. A thousand threads that wait for long jobs cost four queries a
second in all; a job that takes milliseconds is seen within two of its end.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from queue import SimpleQueue
from typing import TYPE_CHECKING

from jobrunner.errors import DatabaseUnreachable
from jobrunner.looking import reason
from jobrunner.watching import MAX_BACKOFF, Pulse, Rounds, Waiting

if TYPE_CHECKING:
    from jobrunner.looking import Row
    from jobrunner.settings import Dsn

PATIENCE = 120.0  # seconds without an answer after which a waiter without a timeout gives up: longer than most failovers
LAST_LOOK = 1.0  # seconds that a waiter whose time is up gives to the look that is under way: `timeout=0` must see a finished job
EXIT_TIMEOUT = 1.0  # seconds that the end of the process waits for the connection to be closed


class Watcher:
    """Waits for the jobs of one database. The thread starts with the first waiter and is left behind by a fork.

    Args:
        dsn: where the jobs are.
        patience: seconds without an answer after which a waiter without a timeout gives up.
    """

    def __init__(self, dsn: Dsn, *, patience: float = PATIENCE) -> None:
        self.dsn = dsn
        self._patience = patience
        self._reset()

    def _reset(self) -> None:
        self._inbox: SimpleQueue[Waiting | None] = SimpleQueue()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._pulse = Pulse()

    def wait(self, job_id: int, seconds: float | None = None, *, seen: bool = False) -> Row:
        """Block until the job is finished or the time is up.

        Args:
            job_id: of the job.
            seconds: None waits for ever; 0 and less look once.
            seen: whether the caller knows that the job existed.

        Returns:
            The job as it was last seen: finished, or live when the time was up.

        Raises:
            JobNotFound: there is no such row; ResultExpired when it was seen before.
            TimeoutError: the time was up and the database had not answered; `__cause__` says why, when that is known.
            DatabaseUnreachable: no timeout was given, and nothing was heard of the database for `patience` seconds.
        """
        waiting = Waiting(job_id, seconds, seen=seen)
        try:
            self.enlist(waiting)
            if waiting.deadline is None:
                self._wait_patiently(waiting)
            elif not waiting.settled.wait(waiting.deadline - waiting.since):
                self._wait_for_last_look(waiting)
        finally:
            waiting.gone = True  # also after an interrupt: nobody needs the answer
        row, waiting.row, error = waiting.row, None, waiting.error
        if row is None:
            try:
                raise error or AssertionError("settled with nothing")
            finally:
                del error, waiting  # an exception and the frames in its traceback would keep each other alive
        return row

    def enlist(self, waiting: Waiting) -> None:
        """Look for the job of somebody who does not wait in a call: `settle` and `began` are called, in the thread of the watcher."""
        self._inbox.put(waiting)
        if self._thread is None or not self._thread.is_alive():
            self._start()

    def look(self, job_id: int, patience: float) -> Row:
        """The job as it is at this moment, whatever state it is in.

        Args:
            job_id: of a job that has existed.
            patience: seconds to wait for the answer; an outage is waited through.

        Raises:
            ResultExpired: there is no such row, or none any more.
            TimeoutError: there was no answer in time.
        """
        waiting = Waiting(job_id, 0.0, seen=True)
        try:
            self.enlist(waiting)
            if not waiting.settled.wait(patience):
                raise TimeoutError(f"the state of job {job_id} is not known: the database has not answered for {patience:g} s")
        finally:
            waiting.gone = True
        if waiting.row is None:
            raise waiting.error or AssertionError("settled with nothing")
        return waiting.row

    def close(self) -> None:
        """End the thread and its connection as soon as nobody waits; does not wait longer than `EXIT_TIMEOUT` for that."""
        thread = self._thread
        if thread is not None:
            self._thread = None
            self._inbox.put(None)
            thread.join(EXIT_TIMEOUT)

    def _start(self) -> None:
        with self._starting:
            if self._thread is None or not self._thread.is_alive():
                thread = threading.Thread(target=Rounds(self.dsn, self._inbox, self._pulse).run, name="jobrunner-waiters", daemon=True)
                thread.start()
                self._thread = thread

    def _wait_patiently(self, waiting: Waiting) -> None:
        silence = 0.0
        # Decided here and not by the thread, which may itself be waiting for a server that says nothing.
        while not waiting.settled.wait(self._patience - silence):
            silence = time.monotonic() - max(waiting.since, self._pulse.answered_at)
            if silence >= self._patience:
                error = self._error_since(waiting.since)
                if error is not None:
                    raise reason(error, self.dsn) from error
                raise DatabaseUnreachable(self.dsn.target, f"no answer for {silence:.0f} s", origin=self.dsn.origin)

    def _wait_for_last_look(self, waiting: Waiting) -> None:
        # A failure from before this waiter came tells nothing: since then nobody may have asked.
        if self._error_since(waiting.since) is None and waiting.settled.wait(LAST_LOOK):
            return
        error = self._error_since(waiting.since - MAX_BACKOFF)  # unless it is what the next attempt is put off for
        why = reason(error, self.dsn) if error is not None else "the database has not answered"
        raise TimeoutError(f"job {waiting.job_id} is not known to be finished: {why}") from error

    def _error_since(self, instant: float) -> BaseException | None:
        away = self._pulse.away
        return away.error if away is not None and away.at >= instant else None


def watcher_of(dsn: Dsn) -> Watcher:
    """The one Watcher of this process for a database."""
    watcher = _watchers.get(dsn.url)
    if watcher is None:
        watcher = _watchers.setdefault(dsn.url, Watcher(dsn))
    return watcher


def _close_all() -> None:
    for watcher in list(_watchers.values()):
        watcher.close()


def _after_fork() -> None:
    # The thread exists in the parent only, and its connection belongs to the parent.
    for watcher in _watchers.values():
        watcher._reset()  # noqa: SLF001  the module is the class's only other user


_watchers: dict[str, Watcher] = {}
atexit.register(_close_all)
os.register_at_fork(after_in_child=_after_fork)
