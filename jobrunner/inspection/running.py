"""Owns reading what a worker says its slots run: JSON that it writes with each heartbeat.

It must not trust it: another version may say less or more, and anybody with SQL may have written the row.
"""

from __future__ import annotations

import json
import math
from datetime import timedelta
from typing import Any

from jobrunner.filters import MAX_ID
from jobrunner.inspection.values import RunningJob

_LONGEST = 3_155_760_000  # seconds, a century: a longer run is a mistake of whoever wrote it


def running_jobs(text: str | None) -> tuple[RunningJob, ...]:
    """What the column `workers.running` says, by slot; what cannot be read is left out."""
    try:
        said = json.loads(text) if text else []
    except (ValueError, RecursionError):
        return ()
    found = [_running_job(item) for item in said if isinstance(item, dict)] if isinstance(said, list) else []
    return tuple(sorted(found, key=lambda job: (job.slot is None, job.slot, job.job_id or 0)))


def _running_job(said: dict[str, Any]) -> RunningJob:
    seconds, task = said.get("seconds"), said.get("task")
    if not isinstance(seconds, (int, float)) or isinstance(seconds, bool) or not math.isfinite(seconds) or not 0 <= seconds <= _LONGEST:
        seconds = None
    return RunningJob(
        slot=_number(said.get("slot")),
        job_id=_number(said.get("job")),
        task=task if isinstance(task, str) else None,
        attempt=_number(said.get("attempt")),
        run=None if seconds is None else timedelta(seconds=seconds),
        memory=_number(said.get("memory")),
    )


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_ID else None
