"""Owns the answer to the commonest question: why is this job not running?

It must not guess: each sentence comes from rows, in the order in which the causes hide each other.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.inspection.values import START_ONE, Count, Reason, ago
from jobrunner.settings import MESSAGE_TASK

if TYPE_CHECKING:
    from jobrunner.inspection.reading import Reader
    from jobrunner.inspection.values import JobRow

AHEAD_CAP = 10_000  # jobs ahead are counted up to here

_WORKERS = sa.text(
    "SELECT w.name, :queue = ANY (w.queues) AS listens, :task = ANY (w.tasks) AS registers, w.slots, "
    "(SELECT count(*) FROM jobrunner.jobs j WHERE j.worker_id = w.id AND j.state = 'running') AS running "
    "FROM jobrunner.workers w WHERE w.stopped_at IS NULL AND w.lease_expires_at > now()"
)
_LAST_SEEN = sa.text(
    "SELECT w.name, w.heartbeat_at, :queue = ANY (w.queues) AS listened FROM jobrunner.workers w "
    "ORDER BY :queue = ANY (w.queues) DESC, w.heartbeat_at DESC LIMIT 1"
)
_HOLDER = sa.text(
    "SELECT w.name, w.host, w.pid, (w.stopped_at IS NOT NULL OR w.lease_expires_at <= now()) AS lost "
    "FROM jobrunner.workers w WHERE w.id = :id"
)
# Rows of the claim index before this job, of the same queue: due and of the same or a more urgent priority.
_AHEAD = sa.text(
    "SELECT count(*) FROM (SELECT 1 FROM jobrunner.jobs j WHERE j.state = 'queued' AND j.queue = :queue AND j.run_at <= now() "
    "AND (j.priority, j.run_at, j.id) < (SELECT priority, run_at, id FROM jobrunner.jobs WHERE id = :id) LIMIT :most) AS ahead"
)


# The next job of an ordering key, or the one that runs: what this one waits for.
_BEFORE = sa.text(
    "SELECT j.id, j.state, j.run_at FROM jobrunner.jobs j WHERE j.queue = :queue AND j.ordering_key = :key AND j.id <> :id "
    "AND (j.id < :id OR j.state = 'running') ORDER BY j.state = 'running' DESC, j.ordering_key, j.id LIMIT 1"
)


def waiting_reason(reader: Reader, job: JobRow, *, cancel_requested: bool, ordering_key: str | None = None) -> Reason:
    """Why a live job is where it is."""
    if job.state == "running":
        return _running(reader, job, cancel_requested=cancel_requested)
    if ordering_key is not None and (before := _before(reader, job, ordering_key)) is not None:
        return before
    if job.run_at > reader.at:
        when = f"{_clock(job.run_at)}, in {ago(job.run_at - reader.at)}"
        if job.state == "retrying":
            return Reason("retry_due", f"waits for its next attempt, due {when}", "retry makes it due now")
        return Reason("scheduled", f"is scheduled for {when}", "retry makes it due now")
    if job.task == MESSAGE_TASK:
        return _message(reader, job)
    workers = reader.connection.execute(_WORKERS, {"queue": job.queue, "task": job.task}).all()
    return _unserved(reader, job, workers) or _behind(reader, job, [worker for worker in workers if worker.listens and worker.registers])


def _running(reader: Reader, job: JobRow, *, cancel_requested: bool) -> Reason:
    holder = reader.connection.execute(_HOLDER, {"id": job.worker_id}).one_or_none()
    where = f"worker {holder.name} (pid {holder.pid} on {holder.host})" if holder else f"worker {job.worker_id}, which has no row any more"
    if holder is None or holder.lost:
        return Reason(
            "worker_lost", f"ran on {where}, whose lease has expired", "the next claim of any live worker gives it back; is one running?"
        )
    if cancel_requested:
        return Reason("cancelling", f"runs on {where} and was asked to stop")
    return Reason("running", f"runs on {where}")


def _before(reader: Reader, job: JobRow, key: str) -> Reason | None:
    """The reason when another job of the same ordering key comes first, else None."""
    found = reader.connection.execute(_BEFORE, {"queue": job.queue, "key": key, "id": job.id}).one_or_none()
    if found is None:
        return None
    late = f", due {_clock(found.run_at)}" if found.state == "queued" and found.run_at > reader.at else ""
    return Reason(
        "after_its_key",
        f"waits for job {found.id} of the same ordering key {key!r}, which is {found.state}{late}",
        f"see:   jobrunner jobs show {found.id}     (cancel ends it, and lets the next one go)",
    )


def _message(reader: Reader, job: JobRow) -> Reason:
    """No worker runs messages: whoever takes them is a consumer, there only while he asks for some."""
    workers = reader.connection.execute(_WORKERS, {"queue": job.queue, "task": job.task}).all()
    asking = sum(bool(worker.listens and worker.registers) for worker in workers)
    if asking:
        return Reason("due", f"is due; {asking} {'consumer takes' if asking == 1 else 'consumers take'} messages of queue {job.queue!r}")
    return Reason(
        "no_consumer", f"no program takes messages of queue {job.queue!r} at this moment", f"see:   jobrunner queue peek {job.queue}"
    )


def _unserved(reader: Reader, job: JobRow, workers: Any) -> Reason | None:
    """The reason when no live worker would ever take the job, else None."""
    if any(worker.listens and worker.registers for worker in workers):
        return None
    listening = [worker for worker in workers if worker.listens]
    if listening:
        names = _names(worker.name for worker in listening)
        return Reason(
            "task_not_registered",
            f"no live worker on queue {job.queue!r} registers task {job.task!r} (listening there: {names})",
            "is the module with the task imported by the workers' app, and was the worker restarted since?",
        )
    last = reader.connection.execute(_LAST_SEEN, {"queue": job.queue}).one_or_none()
    if not workers:
        seen = (
            f"; the last, {last.name}, was seen {ago(reader.at - last.heartbeat_at)} ago"
            if last
            else "; none was ever started on this database"
        )
        return Reason("no_worker", f"no worker is alive{seen}", START_ONE)
    seen = f" (one did {ago(reader.at - last.heartbeat_at)} ago: {last.name})" if last and last.listened else ""
    return Reason(
        "queue_not_served", f"no live worker listens on queue {job.queue!r}{seen}", f"start one: jobrunner work --queues {job.queue}"
    )


def _behind(reader: Reader, job: JobRow, serving: list[Any]) -> Reason:
    number = reader.connection.scalar(_AHEAD, {"queue": job.queue, "id": job.id, "most": AHEAD_CAP + 1}) or 0
    ahead = Count(min(number, AHEAD_CAP), exact=number <= AHEAD_CAP)
    slots, busy = sum(worker.slots for worker in serving), sum(worker.running for worker in serving)
    jobs = "1 job is" if ahead == Count(1) else f"{ahead} jobs are"
    in_front = f", and {jobs} ahead of it" if number else ""
    if busy >= slots:
        all_slots = "the only slot" if slots == 1 else f"all {slots} slots"
        return Reason(
            "slots_busy",
            f"{all_slots} for it {'is' if slots == 1 else 'are'} busy{in_front}",
            "more workers or more slots would take it sooner",
        )
    if number:
        return Reason("behind", f"is due; {jobs} ahead of it, {slots - busy} of {slots} slots are free")
    return Reason("due", f"is due and next; a worker takes it when it looks again ({slots - busy} of {slots} slots are free)")


def _names(names: Any) -> str:
    found = sorted(set(names))
    return ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")  # noqa: PLR2004  a line's worth


def _clock(instant: datetime) -> str:
    return f"{instant.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
