"""Owns what the benches of the worker's pool share: a pool without a database around it, driven as the supervisor's loop does.

Jobs are handed to it as a claim would, and their outcomes taken as the link would.
"""

from __future__ import annotations

import selectors
import time
from itertools import islice
from typing import TYPE_CHECKING

from jobrunner import clock
from jobrunner.jobs import ClaimedJob, Ending, Succeeded, Unsuccessful
from jobrunner.worker import procfs
from jobrunner.worker.pool import Pool, Shape
from jobrunner.worker.supervisor import REST

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jobrunner.jobs import Ended

NOWHERE = "postgresql://127.0.0.1:1/none"  # the tasks do not use it
TICK = 1.0  # seconds that the loop sleeps at most


class Bench:
    """A pool with nothing around it."""

    def __init__(self, app: str, shape: Shape) -> None:
        self.selector = selectors.DefaultSelector()
        self.pool = Pool(app, NOWHERE, shape, self.selector)
        self.pool.start()

    def turn(self, *, patience: float = TICK) -> list[Ended]:
        """One turn of the loop. Returns what has ended."""
        now = clock.monotonic()
        self.pool.enforcer.check(self.pool.children(), now)
        for lane in self.pool.lanes:
            lane.rebalance(now)
        self.pool.fork_missing(now)
        for lane in self.pool.lanes:
            lane.hand_out(now)
        if self.pool.is_fed(REST) and (pause := now + REST - clock.monotonic()) > 0:
            time.sleep(pause)
        due = self.pool.next_deadline(clock.monotonic())
        for key, _ in self.selector.select(patience if due is None else min(due, patience)):
            if self.selector.get_map().get(key.fd) is key:
                key.data()
        return self.pool.take_ended()

    def run(self, jobs: Iterator[ClaimedJob], task: str, count: int) -> None:
        """Let the pool run `count` of the jobs."""
        lane = next(lane for lane in self.pool.lanes if task in self.pool.tasks_of(lane))
        left, ended = count, 0
        while ended < count:
            taken = min(left, lane.room(clock.monotonic()))
            lane.backlog.extend(islice(jobs, taken))
            left -= taken
            for one in self.turn():
                if isinstance(one, Succeeded):
                    ended += 1
                elif isinstance(one, Unsuccessful) and one.ending is Ending.RELEASE:
                    left += 1  # a busy machine: it would have waited for more than a tenth of a second
                else:
                    raise SystemExit(f"a job did not succeed: {one}")

    def cpu(self) -> float:
        """Seconds that this process and all below it have used."""
        used = procfs.usage(self.pool.forking.process.pid)
        return time.process_time() + (used.cpu_ms / 1000 if used is not None else 0.0)

    def close(self) -> None:
        """End all processes."""
        self.pool.halt("bench")


def claimed(task: str, *, limits: str | None = None, **columns: object) -> Iterator[ClaimedJob]:
    """Jobs without end, as a claim gives them."""
    number = 0
    while True:
        number += 1
        job = ClaimedJob(number, 1, 1, 5, task, "default", f'{{"number": {number}}}', None, None, suspect=False, limits=limits)  # type: ignore[arg-type]
        yield job._replace(**columns) if columns else job  # type: ignore[arg-type]
