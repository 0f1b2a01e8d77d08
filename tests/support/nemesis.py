"""Owns harm done to workers at random: kills, pauses past the lease, terminated sessions, restarts of the server; seeded and counted."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections import Counter
from typing import TYPE_CHECKING, Literal

import psycopg

from tests.support.waiting import wait_until
from tests.support.workers import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from jobrunner.embedded import Server

LEASE_SECONDS = 1.5
PATIENCE = 120  # seconds without any work done, after which something hangs
PAUSE_SECONDS = 2.5  # past the lease, and past the look that gives the jobs away


class Crew:
    """Workers that are started again when they have died."""

    def __init__(self, dsn: str, ledger: Path, app: str, *options: str, count: int) -> None:
        self._start: Callable[[], Worker] = lambda: Worker(dsn, ledger, "--lease", f"{LEASE_SECONDS}s", *options, app=app)
        self.workers = [self._start() for _ in range(count)]
        self._processes: set[int] = set()

    def mend(self) -> None:
        """Start those again that are gone."""
        self.workers = [worker if worker.process.poll() is None else self._start() for worker in self.workers]

    def processes(self, worker: Worker) -> list[int]:
        """The children of a worker; not itself, not its template."""
        below = sorted(worker.descendants())
        self._processes |= set(below)
        return below[1:]

    def end(self) -> None:
        """Kill what is left of them, stopped or not."""
        for worker in self.workers:
            self._processes |= worker.descendants() if worker.process.poll() is None else set()
            worker.process.kill()
            worker.process.wait()
        for pid in self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def crew(dsn: str, ledger: Path, app: str, *options: str, count: int) -> Iterator[Crew]:
    """Workers for the length of a block."""
    started = Crew(dsn, ledger, app, *options, count=count)
    try:
        yield started
    finally:
        started.end()


class Nemesis:
    """Does harm in an order that the seed decides.

    Attributes:
        done: how often each harm was done.
    """

    def __init__(self, dsn: str, workers: Crew, seed: int, server: Server | None = None) -> None:
        self.done: Counter[str] = Counter()
        self._dsn, self._crew, self._random, self._server = dsn, workers, random.Random(seed), server

    def rage(self, until: Callable[[], bool], progress: Callable[[], int], harms: Sequence[str], *, every: int) -> None:
        """One harm after the other until something is so; before each, work goes on until some more of it is done.

        Args:
            progress: how much is done; harm is done when it has grown by `every` on average, so that there is work to be harmed.
        """
        while True:
            wanted = progress() + self._random.randrange(1, 2 * every)
            wait_until(lambda: self._mended() and (until() or progress() >= wanted), timeout=PATIENCE, what="work to go on")  # noqa: B023
            if until():
                return
            self._pause(self._random.uniform(0, 0.05))
            harm = self._random.choice(harms)
            if getattr(self, f"_{harm}")():
                self.done[harm] += 1

    def _mended(self) -> bool:
        self._crew.mend()
        return True

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        wait_until(lambda: time.monotonic() >= end, timeout=seconds + 5, what="a pause to be over")

    def _victim(self) -> Worker:
        return self._random.choice(self._crew.workers)

    def _kill_child(self) -> bool:
        children = self._crew.processes(self._victim())
        return bool(children) and _signal([self._random.choice(children)], signal.SIGKILL)

    def _kill_worker(self) -> bool:
        worker = self._victim()
        self._crew.processes(worker)
        worker.kill()
        return True

    def _stop_child(self) -> bool:
        """Only the child stands still: its worker goes on, the job stays its own."""
        children = self._crew.processes(self._victim())
        if not children:
            return False
        stopped = [self._random.choice(children)]
        _signal(stopped, signal.SIGSTOP)
        self._pause(PAUSE_SECONDS)
        return _signal(stopped, signal.SIGCONT)

    def _stop_tree(self) -> bool:
        """The whole worker stands still past its lease; its children wake up first and go on as if nothing had been."""
        worker = self._victim()
        children = self._crew.processes(worker)
        everything = [worker.process.pid, *sorted(worker.descendants() - set(children)), *children]
        _signal(everything, signal.SIGSTOP)
        self._pause(PAUSE_SECONDS)
        return _signal([*reversed(everything)], signal.SIGCONT) and bool(children)

    def _terminate(self) -> bool:
        """End the sessions of running jobs, and of the workers, at once."""
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            ended = connection.execute(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
                "WHERE datname = current_database() AND application_name LIKE 'jobrunner%' AND pid <> pg_backend_pid()"
            ).fetchone()
        return bool(ended and ended[0])

    def _restart_fast(self) -> bool:
        return self._restart("fast")

    def _restart_immediate(self) -> bool:
        return self._restart("immediate")

    def _restart(self, mode: Literal["fast", "immediate"]) -> bool:
        assert self._server is not None
        self._server.stop(mode=mode)
        self._server.start()
        return True


def _signal(pids: Sequence[int], number: int) -> bool:
    reached = False
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
            reached = True
    return reached
