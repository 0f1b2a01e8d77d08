"""Owns the values about the whole installation, and the sentences about what is wrong with it.

It must not read anything: pages, `jobrunner status` and probes say the same about the same facts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobrunner.inspection.values import START_ONE, Count, Reason, ago

if TYPE_CHECKING:
    from datetime import datetime

    from jobrunner.inspection.values import QueueRow
    from jobrunner.migrate import SchemaVersion


@dataclass(frozen=True, slots=True)
class UnservedTask:
    """A task whose due jobs no live worker can run: none that listens on `queue` registers it."""

    task: str
    queue: str
    count: Count


@dataclass(frozen=True, slots=True)
class Pulse:
    """The little that every page shows.

    Attributes:
        schema: version of the schema; None when it could not be told.
        workers_alive, slots: live workers and how many attempts they can run at once.
        workers_lost: workers whose lease expired, rescued within the last hour or not yet.
        last_seen_at: the last heartbeat of any worker; None when there never was one.
        waiting: whether any job is due and waits.
        read_only: whether the database is a standby or set read-only.
        at: the database's time of the answer.
    """

    schema: SchemaVersion
    workers_alive: int
    workers_lost: int
    slots: int
    running: int
    last_seen_at: datetime | None
    waiting: bool
    read_only: bool
    at: datetime

    @property
    def problems(self) -> tuple[Reason, ...]:
        """What is wrong, the worst first; empty when nothing is."""
        found: list[Reason] = []
        schema = self.schema
        if not schema.known:
            found.append(
                Reason(
                    "schema_too_new",
                    f"the schema is at {schema.current}, newer than this program knows ({schema.head})",
                    "upgrade Jobrunner on this host",
                )
            )
        elif not schema.up_to_date:
            found.append(
                Reason(
                    "schema_outdated", f"the schema is at {schema.current}, this program needs {schema.head}", "run: jobrunner db upgrade"
                )
            )
        if self.read_only:
            found.append(
                Reason("read_only", "the database is read-only (a standby?): jobs cannot be changed here", "connect to the primary")
            )
        if not self.workers_alive:
            seen = f"; the last was seen {ago(self.at - self.last_seen_at)} ago" if self.last_seen_at else ""
            waiting = ", and jobs wait" if self.waiting else ""
            found.append(Reason("no_worker", f"no worker is alive{seen}{waiting}", START_ONE))
        if self.workers_lost:
            noun = "worker was" if self.workers_lost == 1 else "workers were"
            found.append(
                Reason(
                    "workers_lost",
                    f"{self.workers_lost} {noun} lost within the last hour",
                    "see their host's log; their jobs are run again",
                )
            )
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Status:
    """One screen about the whole installation.

    Attributes:
        unserved: tasks with due jobs that nobody can run.
        failed_last_hour: jobs that failed or were quarantined within the last hour.
    """

    pulse: Pulse
    queues: tuple[QueueRow, ...]
    unserved: tuple[UnservedTask, ...]
    failed_last_hour: Count

    @property
    def schema(self) -> SchemaVersion:
        """Version of the schema."""
        return self.pulse.schema

    @property
    def problems(self) -> tuple[Reason, ...]:
        """What is wrong, the worst first; empty when nothing is."""
        found = list(self.pulse.problems)
        if self.pulse.workers_alive:
            found += [
                Reason(
                    "unserved",
                    f"{row.count} due {'job' if row.count == Count(1) else 'jobs'} of task {row.task!r} in queue {row.queue!r}: "
                    "no live worker that listens there registers it",
                    "is the module with the task imported by the workers' app, and is --queues right?",
                )
                for row in self.unserved
            ]
        return tuple(found)
