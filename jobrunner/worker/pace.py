"""Owns how long jobs are expected to run, by how long they ran lately. It must not decide what follows from that."""

from __future__ import annotations

UNKNOWN = 1.0  # seconds that a job of a task is taken to run which has not ended here yet: long, so that nothing waits behind it
OVERHEAD = 5e-5  # seconds that a job costs its child at least, whatever its task does
SMOOTHING = 0.2  # weight of the newest time in a running mean


class Pace:
    """Run times in one lane.

    The first job of a task loads code and pages that the others find there: as soon as there is a second, it does not count any more.

    Attributes:
        mean: of its jobs as they came, in seconds, and never less than `OVERHEAD`; None before the first has ended.
    """

    def __init__(self) -> None:
        self.mean: float | None = None
        self._tasks: dict[str, float] = {}
        self._firsts: set[str] = set()  # tasks of which one job has ended; "" are all jobs as they come

    def learn(self, task: str, seconds: float) -> None:
        """Take in that a job has ended which ran for so long."""
        seconds = max(seconds, OVERHEAD)
        self.mean = self._blend("", self.mean, seconds)
        self._tasks[task] = self._blend(task, self._tasks.get(task), seconds)

    def _blend(self, name: str, mean: float | None, seconds: float) -> float:
        if mean is None:
            self._firsts.add(name)
            return seconds
        if name in self._firsts:
            self._firsts.discard(name)
            return seconds
        return mean + SMOOTHING * (seconds - mean)

    def expected(self, task: str) -> float:
        """Seconds that the next job of a task will take from its child."""
        return self._tasks.get(task, UNKNOWN)
