"""Owns `JobExecutor`: the executor of `concurrent.futures`, whose calls are jobs and whose futures are real ones.

It must not decide which functions may run (`jobrunner.allowing`), nor wait by itself: the one watcher of the process looks for all futures.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from concurrent.futures import Executor
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from jobrunner.compat.jobfutures import JobFuture, Notice, Reminder, cancel_all
from jobrunner.loading import find_jobrunner
from jobrunner.transient import is_transient

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
    from typing import Unpack

    from jobrunner.compat.jobfutures import Home
    from jobrunner.policies import EnqueueOptions

__all__ = ["JobExecutor", "JobFuture"]

R = TypeVar("R")

FIRST_PAUSE = 0.2  # seconds until a shutdown that cancels looks again: a worker gives back after 0.1 what it has taken ahead
LAST_PAUSE = 3.2  # seconds between two such looks, once nothing was given back for long
_AHEAD = 100  # futures of a `map` that are looked for before their turn; a hundred thousand would make each look a long one


class JobExecutor(Executor):
    """Runs functions as jobs: durable, in any worker of the queue, with retries and limits when they are asked for.

    A call is written in a transaction of its own, whatever session the application has. What may be called and what can travel is said
    in `Calls.submit`. An exception ends the job at the first attempt, unless `max_attempts` says otherwise; a job whose worker died runs
    again.

    Args:
        jobs: the JobRunner, or a Flask app that has one.
        max_workers: kept for those who look at it; how many jobs run at once is decided where workers are started.
        queue: of the jobs.
        allowed_modules: whose functions may be called, beside those with tasks and those of `JOBRUNNER_ALLOWED_MODULES`. Workers must
            allow them too: make the executor where the application is made.
        **options: of the jobs, as for `task.options`: `max_attempts` (here 1), `time_limit`, `priority`, `tags`, ….
    """

    def __init__(
        self,
        jobs: object,
        max_workers: int | None = None,
        *,
        allowed_modules: Iterable[str] = (),
        **options: Unpack[EnqueueOptions],
    ) -> None:
        if max_workers is not None and max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        self._max_workers = max_workers
        self._jobs = find_jobrunner(jobs)
        self._calls = self._jobs.calls
        self._calls.allowed.allow(*allowed_modules)
        given: Any = {"max_attempts": 1, "session": None, **options}
        self._queue = str(given.get("queue", self._calls.task.policy.queue))
        self._task = self._calls.task.options(**given)
        self._calls.queues.add(self._queue)
        self._shutdown = False
        self._state = threading.Condition()
        self._entering = 0  # calls that are being written
        self._unfinished: dict[int, Notice] = {}

    def submit(self, fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> JobFuture[R]:
        """Write one job that calls `fn(*args, **kwargs)`.

        One INSERT that commits at once; takes no lock that others wait for.

        Returns:
            Its future: `job_id` finds the job again. It may be dropped without harm: the job goes on.

        Raises:
            RuntimeError: the executor was shut down.
            FunctionRefused, InvalidPayload: the function may not be called, or an argument cannot travel; nothing was written.
        """
        return self._submit(fn, args, kwargs)

    def map(
        self,
        fn: Callable[..., R],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[R]:
        """Call `fn` for each tuple of arguments. All jobs are written at once, in one transaction, unless `buffersize` is given.

        Args:
            timeout: seconds from this call after which the iterator raises TimeoutError.
            chunksize: calls in one job, which run one after the other; a call that raises ends its chunk.
            buffersize: jobs that are written ahead of the result that is asked for.

        Returns:
            The results in the order of the arguments. Dropped before its end, it cancels those that still wait.

        Raises:
            ValueError, TypeError: a size makes no sense.
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if not isinstance(buffersize, int | None):
            raise TypeError("buffersize must be an integer or None")
        if buffersize is not None and buffersize < 1:
            raise ValueError("buffersize must be None or > 0")
        end = None if timeout is None else time.monotonic() + timeout
        calls: Iterator[tuple[Any, ...]] = zip(*iterables)  # noqa: B905  the shortest ends it, as in `map`
        written = self._written(fn, calls, chunksize)
        with self._entrance():  # refused before any argument is taken
            futures = self._submit_all(list(written if buffersize is None else itertools.islice(written, buffersize)))
        results = self._results(futures, iter(()) if buffersize is None else written, end)
        return results if chunksize == 1 else _one_by_one(results)

    def future(self, job_id: int) -> JobFuture[Any]:
        """A future of a job that an executor of the application has written, whatever process that was. Its state is that of the job now.

        Raises:
            JobNotFound: there is no such job.
            TimeoutError: the database did not answer.
        """
        future = JobFuture[Any](self._home, self._calls, job_id)
        future.look()
        future.watch()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002  the signature of PEP 3148
        """Take no further calls.

        Args:
            wait: until the jobs that this executor has written are finished, those included whose futures were dropped. Without it they go
                on by themselves, and their futures still hear of them.
            cancel_futures: cancel those that no worker has begun, and with `wait` those too that a worker had taken and gives back, or that
                wait for their next attempt by then; without it they stay in the queue.
        """
        with self._state:
            self._shutdown = True
            self._state.wait_for(lambda: not self._entering)
            unfinished = list(self._unfinished.values())
        if cancel_futures:
            cancel_all(self._home, unfinished)
        if not wait:
            return
        with self._state:
            late = [notice for notice in self._unfinished.values() if not (notice.enlisted and notice.is_wanted)]
        for notice in late:
            # Those of a `map` whose iterator was dropped are not looked for at all so far, and would be twice a minute.
            (Reminder.of(notice) if notice.enlisted or not notice.is_wanted else notice).enlist(self._home)
        pause = FIRST_PAUSE if cancel_futures else None
        while not self._is_finished(pause):
            self._cancel_again()
            pause = None if pause is None else min(2 * pause, LAST_PAUSE)

    def _is_finished(self, seconds: float | None) -> bool:
        with self._state:
            return self._state.wait_for(lambda: not self._unfinished, seconds)

    def _cancel_again(self) -> None:
        """A worker takes calls ahead when those before were short; what it gives back, once they turn out long, would run after all."""
        with self._state:
            unfinished = list(self._unfinished.values())
        try:
            cancel_all(self._home, unfinished)
        except Exception as error:  # an outage is waited through
            if not is_transient(error):
                raise

    def _context(self) -> Mapping[str, Any] | None:
        """What a call takes with it beside its arguments; for those who derive from this class."""
        return None

    @property
    def _home(self) -> Home:
        """Where the jobs of the queue are."""
        return self._jobs.branch_of(self._queue)

    def _submit(self, fn: Callable[..., R], args: tuple[Any, ...], kwargs: Mapping[str, Any], **options: Any) -> JobFuture[R]:
        with self._entrance():
            data = self._calls.written(fn, args, kwargs, self._context())
            task = self._task.options(**options) if options else self._task
            future: JobFuture[R] = self._register(task.enqueue(**data).id)
        future.watch()
        return future

    def _submit_all(self, written: list[dict[str, Any]]) -> list[JobFuture[Any]]:
        if not written:  # also after a shutdown there is nothing to refuse then
            return []
        with self._entrance():
            return [self._register(job_id) for job_id in self._task.enqueue_many(written)]

    def _written(self, fn: Callable[..., Any], calls: Iterator[tuple[Any, ...]], chunksize: int) -> Iterator[dict[str, Any]]:
        context = self._context()
        if chunksize == 1:
            return (self._calls.written(fn, call, {}, context) for call in calls)
        chunks = iter(lambda: list(itertools.islice(calls, chunksize)), [])
        return (self._calls.written_chunk(fn, chunk, context) for chunk in chunks)

    def _results(self, futures: list[JobFuture[Any]], more: Iterator[dict[str, Any]], end: float | None) -> Generator[Any]:
        waiting = deque(futures)
        futures.clear()
        _watch(itertools.islice(waiting, _AHEAD))
        try:
            while waiting:
                yield self._next(waiting, more, end)  # nothing here holds on to a result that was handed out
        finally:
            cancel_all(self._home, [future.notice for future in waiting])
            waiting.clear()  # an exception's traceback holds this frame, and must not hold the future that holds the exception

    def _next(self, waiting: deque[JobFuture[Any]], more: Iterator[dict[str, Any]], end: float | None) -> Any:
        further = self._submit_all(list(itertools.islice(more, 1)))
        waiting.extend(further)
        _watch(further)
        value = waiting[0].result(None if end is None else end - time.monotonic())
        del waiting[0]
        _watch(itertools.islice(waiting, _AHEAD - 1, _AHEAD))
        return value

    @contextmanager
    def _entrance(self) -> Iterator[None]:
        with self._state:
            if self._shutdown:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._entering += 1
        try:
            yield
        finally:
            with self._state:
                self._entering -= 1
                self._state.notify_all()

    def _register(self, job_id: int) -> JobFuture[Any]:
        future = JobFuture[Any](self._home, self._calls, job_id, self._settled)
        with self._state:
            self._unfinished[job_id] = future.notice
        return future

    def _settled(self, job_id: int) -> None:
        with self._state:
            self._unfinished.pop(job_id, None)
            self._state.notify_all()


def _watch(futures: Iterable[JobFuture[Any]]) -> None:
    for future in futures:
        future.watch()


def _one_by_one(chunks: Generator[list[Any]]) -> Generator[Any]:
    """The values in the lists. Closing it closes `chunks`; what was handed out is held no longer."""
    with closing(chunks):
        for chunk in chunks:
            chunk.reverse()
            while chunk:
                yield chunk.pop()
