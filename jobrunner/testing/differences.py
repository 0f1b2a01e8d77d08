"""Owns the texts of failed assertions: what was wanted, and the jobs that come closest, line by line.

It must not decide what fits. A line is marked `-` when it was wanted and is not there, `+` when it is there and was not wanted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from jobrunner.testing.criteria import Wanted
    from jobrunner.testing.waiting import Waiting

SHOWN_JOBS = 3  # that come closest; more hide the one that is meant
SHOWN_VALUE = 120  # characters of one value; a longer one is shown around the first difference
_CONTEXT = 30  # characters before it
_ABSENT = object()


def missing(question: Wanted, waiting: Sequence[Waiting], gone: Sequence[tuple[int, str]], now: datetime) -> str:
    """No job fits."""
    lines = [f"no such job waits: {_asked(question)}"]
    if gone:
        told = ", ".join(f"job {job_id} {state}" for job_id, state in gone[-SHOWN_JOBS:])
        lines.append(f"with that task and arguments, but no longer waiting: {told}")
    if not waiting:
        lines.append("no job waits at all")
        return "\n".join(lines)
    closest = sorted(waiting, key=lambda job: _distance(question, job))[:SHOWN_JOBS]
    shown = "1 job waits" if len(waiting) == 1 else f"{len(waiting)} jobs wait"
    if len(closest) < len(waiting):
        shown += f", the {len(closest)} closest"
    lines.append(f"{shown} (- wanted, + there):")
    for job in closest:
        lines += ["", f"  job {job.id}, {_due(job.run_at, now)}", *(f"  {line}" for line in _compared(question, job))]
    return "\n".join(lines)


def miscounted(question: Wanted, found: Sequence[Waiting], count: int, now: datetime) -> str:
    """Another number of jobs fit than should."""
    expected = "no job" if count == 0 else "1 job" if count == 1 else f"{count} jobs"
    lines = [f"expected {expected} to wait, but there {'is' if len(found) == 1 else 'are'} {len(found)}: {_asked(question)}"]
    lines += [f"    job {job.id}, {job.task} {_text(job.args)}, queue {job.queue}, {_due(job.run_at, now)}" for job in found]
    return "\n".join(lines)


def _asked(question: Wanted) -> str:
    """The criteria in one line."""
    parts = [question.task or "any task"]
    if question.args is not None:
        parts.append(f"args {'exactly ' if question.whole_call else ''}{_text(question.args)}")
    given = {name: getattr(question, name) for name in ("queue", "priority", "meta", "state")}
    parts += [f"{name} {_text(value)}" for name, value in given.items() if value is not None]
    if question.tags is not None:
        parts.append(f"tags {_text(sorted(question.tags))}")
    if due := _wanted_due(question):
        parts.append(f"due {due}")
    return ", ".join(parts)


def _compared(question: Wanted, job: Waiting) -> Iterator[str]:
    misses = question.misses(job)
    yield from _line("task", question.task, job.task, differs="task" in misses)
    if question.args is None:
        yield from _line("args", None, job.args, differs=False)
    else:
        yield from _values("args", question.args, job.args, exact=question.whole_call)
    for name in ("queue", "priority", "state"):
        value = getattr(question, name)
        if value is not None:
            yield from _line(name, value, getattr(job, name), differs=name in misses)
    if question.tags is not None:
        yield from _line("tags", sorted(question.tags), job.tags, differs="tags" in misses)
    if question.meta is not None:
        yield from _values("meta", question.meta, job.meta or {}, exact=False)
    if due := _wanted_due(question):
        there = f"{job.run_at.isoformat()} ({job.run_at - job.created_at} after its enqueue)"
        yield from [f"  - due: {due}", f"  + due: {there}"] if "due" in misses else [f"    due: {there}"]


def _values(path: str, wanted: Any, there: Any, *, exact: bool) -> Iterator[str]:
    """The members of two values, each on a line of its own, down to the ones that differ."""
    if wanted is not _ABSENT and there is not _ABSENT and wanted == there:
        yield from _line(path, wanted, there, differs=False)
    elif isinstance(wanted, Mapping) and isinstance(there, Mapping):
        for name in [*wanted, *(name for name in there if name not in wanted)]:
            step = f"{path}.{name}"
            if name in wanted or exact:
                yield from _values(step, wanted.get(name, _ABSENT), there.get(name, _ABSENT), exact=True)
            else:
                yield from _line(step, None, there[name], differs=False)
    elif isinstance(wanted, list) and isinstance(there, list):
        for index in range(max(len(wanted), len(there))):
            mine, theirs = (side[index] if index < len(side) else _ABSENT for side in (wanted, there))
            yield from _values(f"{path}[{index}]", mine, theirs, exact=True)
    else:
        yield from _line(path, wanted, there, differs=True)


def _line(name: str, wanted: Any, there: Any, *, differs: bool) -> Iterator[str]:
    if not differs:
        yield f"    {name}: {_cut(_text(there))}"
        return
    start = _first_difference(_text(wanted), _text(there)) if wanted is not _ABSENT and there is not _ABSENT else 0
    if wanted is not _ABSENT:
        yield f"  - {name}: {_cut(_text(wanted), start)}"
    if there is not _ABSENT:
        yield f"  + {name}: {_cut(_text(there), start)}"


def _distance(question: Wanted, job: Waiting) -> tuple[bool, int, int, int]:
    """Smaller is closer: the task first, then how many lines would be marked; of equals the newest."""
    marked = [line for line in _compared(question, job) if line.startswith(("  -", "  +"))]
    return "task" in question.misses(job), len(question.misses(job)), len(marked), -job.id


def _wanted_due(question: Wanted) -> str:
    if question.at is not None:
        return f"at {question.at.isoformat()}, give or take {question.within}"
    if question.delay is not None:
        return f"{question.delay} after its enqueue, give or take {question.within}"
    return ""


def _due(run_at: datetime, now: datetime) -> str:
    return "due now" if run_at <= now else f"due in {run_at - now}"


def _text(value: Any) -> str:
    """As JSON, since that is what rows hold; objects made for comparing by their repr."""
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        if isinstance(value, Mapping):
            return "{" + ", ".join(f"{json.dumps(name)}: {_text(item)}" for name, item in value.items()) + "}"
        return "[" + ", ".join(map(_text, value)) + "]" if isinstance(value, list) else repr(value)


def _first_difference(one: str, other: str) -> int:
    return next((place for place, (mine, theirs) in enumerate(zip(one, other, strict=False)) if mine != theirs), 0)


def _cut(text: str, start: int = 0) -> str:
    if len(text) <= SHOWN_VALUE:
        return text
    begin = max(0, min(start - _CONTEXT, len(text) - SHOWN_VALUE))
    end = begin + SHOWN_VALUE
    return ("…" if begin else "") + text[begin:end] + ("…" if end < len(text) else "")
