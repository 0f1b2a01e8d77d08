"""Owns `jobrunner jobs show`: one job as a person reads it, or as one JSON document.

It must not cut anything but the attempts that inspection leaves out.
"""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING

import click

from jobrunner.cli import documents
from jobrunner.cli.documents import duration_text
from jobrunner.cli.lazy import Command
from jobrunner.cli.output import iso, print_json, printable, printable_block, size, styled
from jobrunner.cli.shared import shared
from jobrunner.cli.target import reading_database
from jobrunner.cli.types import JOB_ID

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from jobrunner.inspection import AttemptRow, JobDetail

_INDENT = "  "
_BAR = 20  # characters of the bar of a progress
_TRACEBACKS = 1  # attempts whose traceback is shown: the newest; `-v` shows all


@click.command(cls=Command)
@click.argument("job_id", type=JOB_ID, metavar="ID")
def show(job_id: int) -> None:
    """Everything about one job: its timeline, its attempts with the traceback of the last, and why it is not running.

    With -v the tracebacks of all attempts.
    """
    database = reading_database()
    from jobrunner.inspection import get_job

    found = get_job(database, job_id)
    if shared().json:
        print_json(documents.detail(found))
        return
    for line in lines(found):
        click.echo(line)


def lines(found: JobDetail) -> Iterator[str]:
    """Everything about a job, line by line, with the colours of a terminal."""
    job = found.job
    yield f"job {job.id}  {click.style(printable(job.task), bold=True)}  {styled(job.state, job.state)}"
    if found.waiting_reason is not None:
        yield f"{_INDENT}{printable(found.waiting_reason.text)}"
        if found.waiting_reason.hint:
            yield f"{_INDENT}{printable(found.waiting_reason.hint)}"
    yield from _facts(found)
    yield from _section("timeline", _timeline(found))
    if found.attempts:
        yield from _section("attempts", _attempts(found))
    if found.checkpoint is not None:
        yield from _section("checkpoint", printable_block(found.checkpoint).splitlines())
    yield from _section("args", printable_block(found.args).splitlines())
    if found.result is not None:
        yield from _section("result", printable_block(found.result).splitlines())
    if found.meta is not None:
        yield from _section("meta", printable_block(found.meta).splitlines())


def _facts(found: JobDetail) -> Iterator[str]:
    job = found.job
    if job.progress is not None or found.progress_text:
        yield f"{_INDENT}{_progress(job.progress, found.progress_text)}"
    facts = [
        ("queue", job.queue),
        ("priority", str(job.priority) if job.priority else None),
        ("attempt", f"{job.attempt} of {job.max_attempts}"),
        ("crashes", f"{found.crash_count} of {found.max_crashes}" if found.crash_count else None),
        ("worker", found.worker if job.state == "running" else None),
        *_limits(found),
        ("peak memory", _bytes(job.peak_memory)),
        ("tags", ", ".join(found.tags) or None),
        ("unique key", found.unique_key),
        ("ordering key", found.ordering_key),
        ("parent", None if found.parent_id is None else str(found.parent_id)),
    ]
    yield _INDENT + " · ".join(f"{name} {printable(value)}" for name, value in facts if value is not None)


def _limits(found: JobDetail) -> list[tuple[str, str | None]]:
    growth = f", ×{found.memory_limit_on_retry:g} after an attempt that exceeded it" if found.memory_limit_on_retry else ""
    return [
        ("time limit", duration_text(found.time_limit)),
        ("soft time limit", duration_text(found.soft_time_limit)),
        ("cpu limit", duration_text(found.cpu_limit)),
        ("memory limit", None if found.memory_limit is None else f"{size(found.memory_limit)}{growth}"),
        ("output limit", _bytes(found.output_limit)),
        ("processes at most", None if found.max_processes is None else str(found.max_processes)),
    ]


def _progress(fraction: float | None, text: str | None) -> str:
    full = round(_BAR * min(1.0, max(0.0, fraction or 0.0)))
    bar = "" if fraction is None else f"{'▮' * full}{'▯' * (_BAR - full)} {fraction:.0%}"
    return "  ".join(part for part in (bar, printable(text or "")) if part)


def _bytes(value: int | None) -> str | None:
    return None if value is None else size(value)


def _timeline(found: JobDetail) -> Iterator[str]:
    """What happened, in the order in which it did, each with the time since what happened before."""
    before: datetime | None = None
    for at, text in sorted(_events(found), key=itemgetter(0)):
        gap = "" if before is None else f"+{documents.duration_text(at - before)}"
        to_come = "   (to come)" if at > found.at else ""
        yield f"{iso(at)}  {gap:>8}  {printable(text)}{to_come}"
        if before is None and found.attempts_left_out:
            yield "…  earlier attempts left out; they are in jobrunner.v_attempts"
        before = at


def _events(found: JobDetail) -> Iterator[tuple[datetime, str]]:
    job, attempts = found.job, found.attempts
    yield job.created_at, "created"
    if job.run_at > job.created_at and not attempts:
        yield job.run_at, "due"
    for attempt in reversed(attempts):
        if attempt.started_at is not None:
            yield attempt.started_at, f"attempt {attempt.attempt} began"
        yield attempt.finished_at, f"attempt {attempt.attempt} {attempt.outcome}{_because(attempt)}"
    began = job.started_at or found.claimed_at
    if found.expires_at is not None and job.finished_at is None and job.state != "running":
        yield found.expires_at, "expires"
    if job.state == "running" and began is not None:
        yield began, f"attempt {job.attempt} {'began' if job.started_at else 'claimed'}"
    elif job.finished_at is None and attempts:
        yield job.run_at, "next attempt due"
    if found.cancel_requested_at is not None:
        yield found.cancel_requested_at, "asked to stop"
    if job.finished_at is not None and not (attempts and attempts[0].finished_at == job.finished_at):
        yield job.finished_at, job.state


def _because(attempt: AttemptRow) -> str:
    if attempt.error_type:
        return f": {attempt.error_type}"
    return f": {attempt.exit_cause}" if attempt.exit_cause and attempt.outcome not in ("succeeded", "snoozed") else ""


def _attempts(found: JobDetail) -> Iterator[str]:
    shown = len(found.attempts) if shared().verbose else _TRACEBACKS
    with_traceback = [attempt for attempt in found.attempts if attempt.traceback][:shown]
    for attempt in found.attempts:
        facts = [
            styled(attempt.outcome, attempt.outcome),
            f"after {duration_text(attempt.run)}" if attempt.run is not None else "never began",
            f"cpu {duration_text(attempt.cpu)}" if attempt.cpu is not None else "",
            f"peak memory {size(attempt.peak_memory)}" if attempt.peak_memory is not None else "",
            f"on {printable(attempt.worker)}" if attempt.worker else "",
            printable(attempt.exit_cause) if attempt.exit_cause not in (None, "exception", attempt.outcome) else "",
        ]
        yield f"{attempt.attempt}. {' · '.join(fact for fact in facts if fact)}"
        if attempt.error_type:
            first = (attempt.message or "").splitlines()
            yield f"   {printable(attempt.error_type)}: {printable(first[0]) if first else ''}".rstrip(": ")
        elif attempt.message:
            yield f"   {printable(attempt.message)}"
        if attempt in with_traceback:
            yield from (f"   | {line}" for line in printable_block(attempt.traceback or "").splitlines())


def _section(title: str, lines: list[str] | Iterator[str]) -> Iterator[str]:
    yield ""
    yield click.style(title, bold=True)
    for line in lines:
        yield f"{_INDENT}{line}"
