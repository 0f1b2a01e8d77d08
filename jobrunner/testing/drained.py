"""Owns what a drain reports: its attempts, one by one and counted.

It must not run anything.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jobrunner.handle import Job


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt that a test ran.

    Attributes:
        job: the handle; its state is that after the attempt.
        task: name of the task.
        args: the arguments as JSON data.
        number: 1 for the first attempt of the job.
        outcome: `succeeded | retried | failed | snoozed | cancelled`, as in `v_attempts`.
        error: what the task raised; None when it returned.
    """

    job: Job[Any]
    task: str
    args: dict[str, Any]
    number: int
    outcome: str
    error: BaseException | None


@dataclass(frozen=True, slots=True)
class Drained:
    """What a `drain()` did; its length is the number of attempts.

    Attributes:
        attempts: in the order in which they ran.
    """

    attempts: tuple[Attempt, ...]

    @property
    def counts(self) -> dict[str, int]:
        """How many attempts had each outcome; outcomes that did not occur are left out."""
        return dict(Counter(attempt.outcome for attempt in self.attempts))

    @property
    def jobs(self) -> list[Job[Any]]:
        """The jobs that ran, each once, in the order in which they ran first."""
        return list(dict.fromkeys(attempt.job for attempt in self.attempts))

    def __len__(self) -> int:
        return len(self.attempts)

    def __repr__(self) -> str:
        return f"<Drained {', '.join(f'{count} {outcome}' for outcome, count in self.counts.items()) or 'nothing was due'}>"
