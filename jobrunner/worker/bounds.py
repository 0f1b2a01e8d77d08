"""Owns the time limits that a worker gives to jobs which have none of their own.

It must not change a limit that stands in a job's row, nor write one there: another worker may have others.
"""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import timedelta

    from jobrunner.jobs import ClaimedJob

_NO_LIMITS = {"soft_ms": None, "cpu_ms": None, "memory": None, "output": None, "processes": None}  # as `claim.sql` writes them


class Bounds:
    """What `--time-limit` and `--soft-time-limit` of a worker are for its jobs.

    Args:
        hard, soft: of an attempt of a job that has no `time_limit`, or no `soft_time_limit`; None for none.
    """

    def __init__(self, hard: timedelta | None, soft: timedelta | None) -> None:
        self._hard_ms, self._soft_ms = _milliseconds(hard), _milliseconds(soft)

    def of(self, jobs: list[ClaimedJob]) -> list[ClaimedJob]:
        """The jobs, each with both limits as far as there are any."""
        if self._hard_ms is None and self._soft_ms is None:
            return jobs
        return [
            job._replace(
                time_limit_ms=self._hard_ms if job.time_limit_ms is None else job.time_limit_ms, limits=_softened(job.limits, self._soft_ms)
            )
            for job in jobs
        ]


def _milliseconds(limit: timedelta | None) -> int | None:
    return None if limit is None else max(1, round(limit.total_seconds() * 1000))  # 0 could be read as none


# Thousands of jobs have the same text, and it is parsed by itself as a key of a cache: it has to stay the same text.
@functools.lru_cache(maxsize=256)
def _softened(limits: str | None, soft_ms: int | None) -> str | None:
    known = json.loads(limits) if limits else _NO_LIMITS
    if soft_ms is None or known["soft_ms"] is not None:
        return limits
    return json.dumps({**known, "soft_ms": soft_ms})
