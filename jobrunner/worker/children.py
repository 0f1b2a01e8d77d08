"""Owns what a worker knows about one child process: its sockets, the jobs it was given, why it is being ended.

It must not decide; the pool does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from jobrunner.jobs import Ending, Unsuccessful

if TYPE_CHECKING:
    import socket

    from jobrunner.jobs import ClaimedJob

AHEAD = 0.02  # seconds of work a child may have waiting: covers a round trip to the database, and is taken back when it grows old
MAX_AHEAD = 64  # jobs waiting at a child, at most
STALE = 0.1  # seconds after which jobs waiting behind a running one are taken back
KILL_AFTER = 1.0  # seconds between SIGTERM and SIGKILL to a job's process group
_SMOOTHING = 0.2  # weight of the newest run time in a child's running mean


@dataclass(slots=True)
class Kill:
    """Why a child is being ended, and when the hard signal follows."""

    ending: Ending
    error_type: str | None
    message: str | None
    exit_cause: str
    hard_at: float


@dataclass(slots=True, eq=False)
class Child:
    """One child process and the jobs it was given; the first of `jobs` is the one it runs."""

    slot: int
    inbox: socket.socket
    inbox_there: socket.socket  # the child's end: unread jobs are taken back from it
    outbox: socket.socket
    pid: int | None = None
    jobs: dict[int, ClaimedJob] = field(default_factory=dict)
    since: float = 0.0  # when the job it runs was begun
    recorded: bool = False  # whether the database knows that it has begun
    reserved: ClaimedJob | None = None  # a suspect job that waits for its start to be recorded
    mean: float = 1.0  # of recent run times, in seconds; a new child gets one job until it is known
    kill: Kill | None = None
    deaf: bool = False  # it closed its side of the outbox
    buffer: bytearray = field(default_factory=bytearray)

    @property
    def idle(self) -> bool:
        """Ready for a job now."""
        return not self.jobs and self.reserved is None and self.pid is not None and self.kill is None

    def room(self, now: float) -> int:
        """How many more jobs it should have: one when idle, more while its jobs are short, none behind a long one."""
        if self.pid is None or self.kill is not None or self.reserved is not None:
            return 0
        if self.jobs and (now - self.since > STALE or next(iter(self.jobs.values())).suspect):
            return 0
        return max(0, min(MAX_AHEAD, max(1, int(AHEAD / max(self.mean, 1e-6)))) - len(self.jobs))

    def learn(self, run_ms: int) -> None:
        """Take a finished job's run time into the mean."""
        seconds = run_ms / 1000
        self.mean = self.mean + _SMOOTHING * (seconds - self.mean) if self.mean < 1.0 else seconds

    def close(self) -> None:
        """Close this side's sockets."""
        for end in (self.inbox, self.inbox_there, self.outbox):
            end.close()


def died(job: ClaimedJob, kill: Kill | None, cause: str, since: float, now: float) -> Unsuccessful:
    """The outcome of a job whose process is dead: as `kill` says when we ended it, otherwise a crash."""
    run_ms = max(0, round((now - since) * 1000))
    if kill is not None:
        return Unsuccessful(
            kill.ending, job.id, job.lease, kill.error_type, kill.message, exit_cause=kill.exit_cause, run_ms=run_ms, ended_at=now
        )
    message = f"the process running the job died ({cause})"
    return Unsuccessful(
        Ending.CRASH, job.id, job.lease, "jobrunner.errors.WorkerProcessDied", message, exit_cause=cause, run_ms=run_ms, ended_at=now
    )
