"""Owns what each list of `top` shows of a row: jobs, groups of errors, workers with what their slots run.

It must not trust a text from a row: control characters in it are shown, not obeyed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from rich.text import Text

from jobrunner.cli.documents import duration_text
from jobrunner.cli.output import STATE_COLORS, duration, printable, size
from jobrunner.cli.top.drawing import Column, bar, number

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime, timedelta

    from jobrunner.cli.top.drawing import Marks
    from jobrunner.inspection import Count, ErrorGroup, Glance, JobRow, RunningJob, View, WorkerRow

TITLES: dict[View, str] = {"running": "Running", "ready": "Ready", "failed": "Failed", "errors": "Errors", "workers": "Workers"}
_PROGRESS = 5  # characters of a bar

_ID, _TASK, _QUEUE = Column("ID", "right"), Column("TASK", most=28), Column("QUEUE", most=14, since=76)
_TRY = Column("TRY", "right")
_WIDE = 100  # columns of a list, from which more of them are shown
COLUMNS: dict[View, tuple[Column, ...]] = {
    "running": (
        _ID, _TASK, _QUEUE, _TRY, Column("ELAPSED", "right"), Column("WORKER", most=20, since=_WIDE), Column("PROGRESS / ARGS", grow=True),
    ),
    "ready": (
        _ID, _TASK, _QUEUE, _TRY, Column("PRIO", "right", since=_WIDE), Column("WAITS", "right"), Column("ARGS / LAST ERROR", grow=True),
    ),
    "failed": (
        _ID, _TASK, _QUEUE, _TRY, Column("AGO", "right"), Column("RAN", "right", since=_WIDE), Column("STATE", since=_WIDE),
        Column("ERROR", grow=True),
    ),
    "errors": (
        Column("TIMES", "right"), Column("JOBS", "right"), Column("AGO", "right"), Column("TASK", most=24),
        Column("NEWEST", "right", since=_WIDE), Column("ERROR", grow=True),
    ),
    "workers": (
        Column("WORKER / SLOT", most=24), Column("STATE / JOB"), Column("BUSY / TRY", "right"), Column("SEEN / FOR", "right"),
        Column("MEMORY", "right", since=70), Column("QUEUES / TASK", grow=True),
    ),
}  # fmt: skip
EMPTY: dict[View, str] = {
    "running": "no job runs",
    "ready": "no job is due",
    "failed": "no job has failed",
    "errors": "no attempt went wrong within the last hour",
    "workers": "no worker was ever started on this database",
}


class Row(NamedTuple):
    """One row of a list.

    Attributes:
        key: the same in the next look, when it is the same thing.
        cells: one for each column of the list.
        job_id: the job that it is about; of a group of errors the newest; None of a worker.
        state: of that job, in the words of `v_jobs`; None where it is not known.
    """

    key: str
    cells: list[Text]
    job_id: int | None = None
    state: str | None = None


def rows(glance: Glance, marks: Marks) -> list[Row]:
    """The rows of the list that was looked at."""
    if glance.view == "errors":
        return [_error(group, glance.at) for group in glance.errors]
    if glance.view == "workers":
        return [row for worker in glance.workers for row in _worker(worker, glance.at)]
    make = {"running": _running, "ready": _ready, "failed": _failed}[glance.view]
    return [Row(f"job-{job.id}", make(job, glance, marks), job.id, job.state) for job in glance.jobs]


def _running(job: JobRow, glance: Glance, marks: Marks) -> list[Text]:
    name = glance.worker_names.get(job.worker_id or 0, "")
    return [*_beginning(job), _text(duration_text(job.run)), _text(name), _progress(job, marks)]


def _ready(job: JobRow, _glance: Glance, _marks: Marks) -> list[Text]:
    told = _failure(job) if job.error_type else _text(job.args_excerpt, "dim")
    return [*_beginning(job), _text(job.priority), _text(duration_text(job.wait)), told]


def _failed(job: JobRow, glance: Glance, _marks: Marks) -> list[Text]:
    return [*_beginning(job), _ago(job.finished_at, glance.at), _text(duration_text(job.run)), _state(job.state), _failure(job)]


def _beginning(job: JobRow) -> list[Text]:
    return [_text(job.id), _text(job.task, "bold"), _text(job.queue), _text(f"{job.attempt}/{job.max_attempts}")]


def _progress(job: JobRow, marks: Marks) -> Text:
    parts = []
    if job.progress is not None:
        parts.append(_text(f"{bar(job.progress, 1, _PROGRESS, marks)} {job.progress:.0%}", "cyan"))
    if job.progress_text:
        parts.append(_text(job.progress_text, "cyan"))
    return Text(" ").join([*parts, _text(job.args_excerpt, "dim")])


def _failure(job: JobRow) -> Text:
    return _text(f"{job.error_type or ''}: {job.error or ''}".strip(": "), "red")


def _error(group: ErrorGroup, now: datetime) -> Row:
    what = group.error_type or group.exit_cause or "?"
    more = f" +{group.tasks - 1}" if group.tasks > 1 else ""
    told = _text(what, "bold red")
    if group.message:
        told += _text(f": {group.message}", "red")
    cells = [
        _count(group.events),
        _count(group.jobs),
        _ago(group.last_at, now),
        _text(group.task) + _text(more, "dim"),
        _text(group.job_id),
        told,
    ]
    return Row(f"error-{group.fingerprint}-{group.error_type}-{group.exit_cause}", cells, group.job_id)


def _worker(worker: WorkerRow, now: datetime) -> Iterator[Row]:
    memory = worker.rss_bytes if worker.memory_bytes is None else worker.memory_bytes
    cells = [
        _text(worker.name, "bold"),
        _state(worker.state),
        _text(f"{worker.running}/{worker.slots}"),
        _ago(worker.stopped_at or worker.heartbeat_at, now),
        _text(None if memory is None else size(memory)),
        _text(",".join(worker.queues)),
    ]
    yield Row(f"worker-{worker.id}", cells)
    if worker.state == "alive":
        for place, job in enumerate(worker.running_jobs):
            yield Row(f"worker-{worker.id}-{place}", _slot(job, now - worker.heartbeat_at), job.job_id, "running" if job.job_id else None)


def _slot(job: RunningJob, since: timedelta) -> list[Text]:
    """What a slot ran at the last heartbeat; if it still does, it has run longer by the time since."""
    run = None if job.run is None else duration_text(job.run + since)
    return [
        _text(f"  slot {'?' if job.slot is None else job.slot}", "dim"),
        _text(None if job.job_id is None else f"#{job.job_id}", "magenta"),
        _text(job.attempt),
        _text(run),
        _text(None if job.memory is None else size(job.memory)),
        _text(job.task),
    ]


def _count(found: Count) -> Text:
    return _text(number(found.value, exact=found.exact), "bold")


def _ago(instant: datetime | None, now: datetime) -> Text:
    return _text(None if instant is None else duration(max(0.0, (now - instant).total_seconds())))


def _state(word: str) -> Text:
    return _text(word, STATE_COLORS.get(word, ""))


def _text(value: object, style: str = "") -> Text:
    return Text("-", style="dim") if value is None else Text(printable(str(value)), style=style)
