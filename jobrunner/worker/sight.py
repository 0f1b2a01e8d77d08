"""Owns what a worker shows of what it runs: the list for `v_workers`, and which starts are worth a record of their own.

It must not write anything: the heartbeat and the link do.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jobrunner.worker.pool import Pool

LONG = 5.0  # seconds after which a running job's start is put on record
LOOK = 1.0  # seconds between two looks, and what a job must last to be news


class Sight:
    """The last look at the slots; used by the main loop.

    Attributes:
        running: JSON text of what runs, as of the last look; another thread may read it.
    """

    def __init__(self) -> None:
        self.running = "[]"
        self._jobs: list[int] = []
        self._look_at = 0.0
        self._long_at = 0.0

    def look(self, pool: Pool, now: float) -> bool:
        """Look again, once a second at most. True when jobs of some length came or went."""
        if now < self._look_at:
            return False
        self._look_at = now + LOOK
        running = pool.running(now)
        self.running = json.dumps(running)
        jobs = [run["job"] for run in running if run["seconds"] > LOOK]
        news, self._jobs = jobs != self._jobs, jobs
        return news

    def long_running(self, pool: Pool, now: float) -> list[tuple[int, int, float]]:
        """Attempts that have been running for long and are not on record as begun: (id, lease, seconds). Each is told once."""
        if now < self._long_at:
            return []
        self._long_at = now + LONG
        found: list[tuple[int, int, float]] = []
        for child in pool.children():
            for run in child.active():
                if not run.recorded and now - run.since > LONG:
                    run.recorded = True
                    found.append((run.job.id, run.job.lease, now - run.since))
        return found
