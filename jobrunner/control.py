"""Owns what task code raises to steer its own job, and what is raised in it. None of it is an error: `jobrunner.errors` has those.

It must not import anything of ours.
"""

from __future__ import annotations

from datetime import timedelta


class JobControl(BaseException):
    """Base of what task code raises to steer its own job.

    A BaseException on purpose: `except Exception` in task code must not swallow it. Caught only by the executor.
    """


class Retry(JobControl):
    """End this attempt and try again, after `delay` or, when None, after the job's own backoff. Uses up an attempt.

    Args:
        message: kept in the attempts record.
        delay: seconds or timedelta, not negative.
    """

    def __init__(self, message: str = "", *, delay: float | timedelta | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.delay = None if delay is None else _positive(delay, "Retry")


class Snooze(JobControl):
    """End this attempt and run the job again after `delay`; no attempt is used up."""

    def __init__(self, delay: float | timedelta, message: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.delay = _positive(delay, "Snooze")


class Cancel(JobControl):
    """End the job as cancelled: not an error, never retried."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message)
        self.message = message


class Fail(JobControl):
    """End the job as failed now, whatever attempts are left."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message)
        self.message = message


class JobStopped(JobControl):
    """Raised in a task that was asked to stop and did not: by a cancel, or by a shutdown whose time of grace is over.

    `raise_if_stopping()` raises it too. Let through, a cancelled job ends as cancelled, and one that a deploy stops goes back to
    the queue without using up an attempt; its last checkpoint is there when it runs again.

    Attributes:
        reason: `cancelled`, `deploy`, or `superseded` when another attempt of the job runs by now.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"the job was asked to stop: {reason}")
        self.message = str(self)
        self.reason = reason


def _positive(delay: float | timedelta, what: str) -> timedelta:
    value = delay if isinstance(delay, timedelta) else timedelta(seconds=delay)
    if value < timedelta(0):
        raise ValueError(f"{what}(delay={delay!r}): a delay cannot be negative")
    return value
