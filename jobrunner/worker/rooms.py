"""Owns how many more jobs a worker wants to claim at a moment, lane by lane, within its bounds.

It must not claim; the link does. What one lane can hold is for the lane to say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobrunner.claimer import Room

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jobrunner.worker.pool import Pool


def rooms(pool: Pool, limits: Mapping[str, int], left: int | None, now: float) -> list[Room]:
    """The room of each lane; the bounds of queues hold for all lanes together, and stand in each room.

    Args:
        limits: how many jobs of a queue may run in this worker at once, for queues that have such a bound.
        left: how many more jobs this worker may claim at all; None for no bound.
    """
    found: list[Room] = []
    for lane in pool.lanes:
        usual, early = (0, 0) if pool.stopping else (lane.room(now), lane.early(now))
        total = usual + early
        if left is not None:
            total = min(total, max(0, left))
            left -= total
        found.append(Room(total, early=max(0, total - usual)))
    if any(room.total for room in found):
        bounds = _bounds(pool, limits)
        for room in found:
            room.by_queue = bounds
    return found


def _bounds(pool: Pool, limits: Mapping[str, int]) -> dict[str, int]:
    """How many more jobs of each bounded queue may run."""
    if not limits:
        return {}
    running: dict[str, int] = {}
    for job in pool.in_flight():
        running[job.queue] = running.get(job.queue, 0) + 1
    return {queue: max(0, limit - running.get(queue, 0)) for queue, limit in limits.items()}
