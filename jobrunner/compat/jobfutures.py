"""Owns the futures of jobs: real ones of `concurrent.futures`, settled by what the one watcher of the process sees in the database.

It must not write jobs (`futures` does), nor run anybody's callback in the thread that looks for everybody.
"""

from __future__ import annotations

import json
import logging
import os
import weakref
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from concurrent.futures._base import CANCELLED, PENDING, RUNNING
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from jobrunner.errors import JobNotFound
from jobrunner.states import FINISHED, State
from jobrunner.waiters import watcher_of
from jobrunner.watching import LONGEST_PAUSE, Waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from jobrunner.calls import Calls
    from jobrunner.database import Database
    from jobrunner.looking import Row

R = TypeVar("R")

logger = logging.getLogger("jobrunner.futures")

UNWANTED_PAUSE = 16_384  # ticks, half a minute: between looks at a job whose future nobody holds any more
LOOK_PATIENCE = 10.0  # seconds that somebody who asks for the state of this moment waits for it
CALLBACK_THREADS = 4  # one that waits for another future does not hold up the others


class Home(Protocol):
    """The database that a job is in."""

    @property
    def database(self) -> Database:
        """Its pool of connections."""


class JobFuture(Future[R]):
    """The future of one job, whichever process wrote it.

    `cancel()` asks the database: it is True when no worker had begun, also while the job waits for its next attempt. `running()` follows
    with the pace of the watcher: at first at once, later within a quarter of a second.

    Attributes:
        job_id: of the job, in its database.
    """

    def __init__(self, home: Home, calls: Calls, job_id: int, ended: Callable[[int], None] | None = None) -> None:
        super().__init__()
        self.job_id = job_id
        self._home, self._calls = home, calls
        self.notice = Notice(self, ended)

    def cancel(self) -> bool:
        """Cancel the job if no worker has begun it. One UPDATE, which commits at once; a look at the job when that changed nothing.

        Returns:
            True when it is cancelled, now or before, whoever did it; False when it runs or is finished.

        Raises:
            sqlalchemy.exc.DBAPIError, psycopg.Error, TimeoutError: the database did not answer, and nobody knows.
        """
        if not self.done():
            cancel_all(self._home, [self.notice])
            with suppress(JobNotFound):
                self.look()  # it runs or is finished; or somebody else was faster, and this process has not heard of it yet
        return self.cancelled()

    def result(self, timeout: float | None = None) -> R:
        """What the call returned, as in `concurrent.futures`; also in a process that was forked since."""
        self.watch()
        try:
            value = super().result(timeout)
            if self._exception is not None:  # it is false, and before Python 3.14 taken for none
                raise self._exception
            return value
        finally:
            del self  # the exception's traceback must not hold the future that holds the exception

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What the call raised, as in `concurrent.futures`; also in a process that was forked since."""
        self.watch()
        return super().exception(timeout)

    def add_done_callback(self, fn: Callable[[Future[R]], object]) -> None:
        """Call `fn` with this future once it is done, in one of a few threads that deliver for all futures of the process."""
        if not self.done():
            self.notice.pinned = self  # who drops the future still wants to be called
        super().add_done_callback(fn)
        if self.done():
            self.notice.pinned = None

    def watch(self) -> None:
        """Have the watcher look for the job, if it does not already."""
        if not self.notice.enlisted and not self.done():
            self.notice.enlist(self._home)

    def look(self) -> None:
        """Take the state of the job at this moment, by one look of the watcher.

        Raises:
            JobNotFound: there is no such job, or its history was dropped.
            TimeoutError: the database has not answered for ten seconds.
        """
        if self.done():
            return
        row = watcher_of(self._home.database.dsn).look(self.job_id, LOOK_PATIENCE)
        if row.state in FINISHED:
            self.end(row, None)
        elif row.state == State.RUNNING:
            self.begin()

    def begin(self) -> None:
        """The job runs."""
        with self._condition:
            if self._state == PENDING:
                self.set_running_or_notify_cancel()

    def end(self, row: Row | None, error: BaseException | None) -> None:
        """The job is finished as `row` says, or nobody can tell because of `error`."""
        if row is not None and row.state == State.CANCELLED:
            self.call_off()
            return
        try:
            if row is not None and row.state == State.SUCCEEDED:
                value, error = self._read(row)
                if error is None:
                    self.set_result(value)
                    return
            self.set_exception(self._calls.error_of(row) if error is None else error)  # type: ignore[arg-type]
        except InvalidStateError:  # somebody was faster
            return

    def call_off(self) -> None:
        """The job was cancelled, perhaps between two attempts: then the future counts as not having begun."""
        with self._condition:
            if self._state not in {PENDING, RUNNING}:
                return
            self._state = CANCELLED
            self.set_running_or_notify_cancel()
            self._condition.notify_all()
        self._invoke_callbacks()  # type: ignore[attr-defined]

    def _read(self, row: Row) -> tuple[Any, BaseException | None]:
        try:
            return self._calls.task.decode_result(None if row.result is None else json.loads(row.result)), None
        except Exception as error:  # noqa: BLE001  another release may have written it: the one who waits is told
            return None, error


class Notice(Waiting):
    """Hears of one job on behalf of its future, and slows down once nobody holds that any more.

    Args:
        future: held weakly.
        ended: is called with the job's id after the future was settled.

    Attributes:
        pinned: the future, as long as somebody wants to be called.
    """

    __slots__ = ("_begun", "_ended", "_enlisted_in", "_future", "pinned")

    in_call = False

    def __init__(self, future: JobFuture[Any], ended: Callable[[int], None] | None = None) -> None:
        super().__init__(future.job_id, None, seen=True)
        self._future = weakref.ref(future)
        self._ended = ended
        self._begun = False
        self.pinned: JobFuture[Any] | None = None
        self._enlisted_in = 0  # which process

    @property
    def enlisted(self) -> bool:
        """Whether the watcher of this process has it; that of a forked child begins with nothing."""
        return self._enlisted_in == os.getpid()

    @property
    def longest_pause(self) -> int:
        """Ticks between two looks, at most."""
        return LONGEST_PAUSE if self._future() is not None else UNWANTED_PAUSE

    @property
    def is_wanted(self) -> bool:
        """Whether anybody holds the future."""
        return self._future() is not None

    def is_over(self) -> bool:
        """Whether there is nothing left to do; so it is when nobody holds the future, unless its end is to be told of in any case."""
        return super().is_over() or (self._ended is None and self._future() is None)

    def enlist(self, home: Home) -> None:
        """Have the watcher look for it from now on."""
        self._enlisted_in = os.getpid()
        watcher_of(home.database.dsn).enlist(self)

    def began(self) -> None:
        """The watcher saw the job running."""
        if not self._begun:
            self._begun = True
            deliver(self._begin)

    def settle(self, row: Row | None, error: BaseException | None = None) -> None:
        """The watcher saw the end."""
        super().settle(None)
        deliver(self._end, row, error)

    def called_off(self) -> None:
        """The job was cancelled from here."""
        self.gone = True  # the watcher needs not look again
        future = self._future()
        if future is not None:
            future.call_off()
        self._over()

    def _begin(self) -> None:
        future = self._future()
        if future is not None:
            future.begin()

    def _end(self, row: Row | None, error: BaseException | None) -> None:
        future = self._future()
        try:
            if future is not None:
                future.end(row, error)
        finally:
            self._over()

    def _over(self) -> None:
        self.pinned = None
        if self._ended is not None:
            self._ended(self.job_id)


class Reminder(Notice):
    """Hears of a job whose future nobody holds, at the pace of one that somebody waits for: for a shutdown that waits."""

    __slots__ = ()

    @classmethod
    def of(cls, notice: Notice) -> Reminder:
        """One that does at the end what `notice` would do."""
        reminder = cls.__new__(cls)
        Waiting.__init__(reminder, notice.job_id, None, seen=True)
        for name in Notice.__slots__:
            setattr(reminder, name, getattr(notice, name))
        return reminder

    @property
    def longest_pause(self) -> int:
        """Ticks between two looks, at most."""
        return LONGEST_PAUSE


def cancel_all(home: Home, notices: Iterable[Notice]) -> None:
    """Cancel those jobs that no worker has begun, by one statement that commits at once; their futures are cancelled with them."""
    by_id = {notice.job_id: notice for notice in notices if not notice.is_over()}
    if not by_id:
        return
    with home.database.store() as store:
        cancelled = store.cancel_queued(sorted(by_id))
    for job_id in cancelled:
        by_id[job_id].called_off()


def deliver(function: Callable[..., None], *args: Any) -> None:
    """Call it soon, in a thread in which others' callbacks may run; while the interpreter shuts down, here and now."""
    global _threads  # noqa: PLW0603  one set of threads for each process
    if _threads is None:
        _threads = ThreadPoolExecutor(CALLBACK_THREADS, thread_name_prefix="jobrunner-futures")
    try:
        _threads.submit(_guarded, function, args)
    except RuntimeError:  # "after interpreter shutdown": the process waits for its threads, and one of them may wait for this very future
        _guarded(function, args)


def _guarded(function: Callable[..., None], args: tuple[Any, ...]) -> None:
    try:
        function(*args)
    except BaseException:  # whatever it is, the other futures are told
        logger.exception("a future could not be told of its job")


def _after_fork() -> None:
    global _threads  # noqa: PLW0603
    _threads = None  # they exist in the parent only


_threads: ThreadPoolExecutor | None = None
os.register_at_fork(after_in_child=_after_fork)
