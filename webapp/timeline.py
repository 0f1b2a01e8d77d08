"""Owns the picture of a job's life: what it waited for and what ran, as segments with a place between 0 and 100 %.

It must not draw. Widths grow with the square root of time, so that a run of a second stays visible beside a wait of a day.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING

from jobrunner.inspection import ago

if TYPE_CHECKING:
    from datetime import datetime

    from jobrunner.inspection import JobDetail

MAX_RUNS = 20  # drawn; earlier ones are one segment
SHORTEST = 1.6  # % of the whole: still to be seen and hit with a pointer
ROOM_FOR_NUMBER = 3.0  # % a segment needs for a number, on a wide screen
ROOM_FOR_TEXT = 9.0  # and for a duration
NARROW = 3.0  # a telephone has a third of the width
GOOD = frozenset({"succeeded", "snoozed", "released"})


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of time.

    Attributes:
        kind: `wait | planned | good | bad | now | earlier`, a class of the style sheet.
        x, width: in per cent of the picture.
        label, short: inside the segment on a wide and on a narrow screen; empty when it would not fit.
        title: the whole story, for pointer and screen reader.
    """

    kind: str
    x: float
    width: float
    label: str
    short: str
    title: str

    @property
    def middle(self) -> float:
        """Where a centred label stands."""
        return self.x + self.width / 2


@dataclass(frozen=True, slots=True)
class _Span:
    kind: str
    start: datetime
    end: datetime
    name: str
    title: str

    @property
    def duration(self) -> timedelta:
        return max(timedelta(0), self.end - self.start)


def timeline(detail: JobDetail) -> tuple[Segment, ...]:
    """The segments from creation to the end, or to now; empty when there is nothing to see."""
    spans = [span for span in _spans(detail) if span.duration > timedelta(0) or span.kind not in ("wait", "planned")]
    if not spans:
        return ()
    roots = [span.duration.total_seconds() ** 0.5 for span in spans]
    total = sum(roots) or 1.0
    floor = min(SHORTEST, 100 / len(spans))
    widths = [max(floor, 100 * root / total) for root in roots]
    scale = 100 / sum(widths)
    edges = [0.0]
    for width in widths:
        edges.append(edges[-1] + width * scale)
    return tuple(_segment(span, left, right) for span, (left, right) in zip(spans, pairwise(edges), strict=True))


def _spans(detail: JobDetail) -> list[_Span]:
    job, spans = detail.job, []
    runs = [attempt for attempt in reversed(detail.attempts) if attempt.started_at is not None]
    here = job.created_at
    if len(runs) > MAX_RUNS or detail.attempts_left_out:
        cut = runs[-MAX_RUNS:]
        left_out = f"{len(runs) - len(cut)} earlier attempts" + (", and more before them" if detail.attempts_left_out else "")
        start = cut[0].started_at or here
        spans.append(_Span("earlier", here, start, "…", left_out))
        here, runs = start, cut
    for run in runs:
        start = max(here, run.started_at or here)
        spans.append(_wait(here, start))
        error = f": {run.error_type}" if run.error_type else ""
        length = f" after {ago(run.run)}" if run.run is not None else ""
        kind = "good" if run.outcome in GOOD else "bad"
        spans.append(
            _Span(kind, start, max(start, run.finished_at), str(run.attempt), f"attempt {run.attempt} {run.outcome}{length}{error}")
        )
        here = max(start, run.finished_at)
    if job.state == "running" and job.started_at is not None:
        start = max(here, job.started_at)
        spans += [
            _wait(here, start),
            _Span("now", start, max(start, detail.at), str(job.attempt), f"attempt {job.attempt} runs for {ago(detail.at - start)}"),
        ]
    elif job.finished_at is None:
        spans.append(_wait(here, detail.at))
        if job.run_at > detail.at:
            spans.append(_Span("planned", detail.at, job.run_at, "", f"due in {ago(job.run_at - detail.at)}"))
    else:
        spans.append(_wait(here, job.finished_at))
    return spans


def _wait(start: datetime, end: datetime) -> _Span:
    return _Span("wait", start, end, "", f"waited {ago(end - start)}")


def _segment(span: _Span, left: float, right: float) -> Segment:
    width = right - left
    return Segment(span.kind, round(left, 2), round(width, 2), _label(span, width), _label(span, width / NARROW), span.title)


def _label(span: _Span, room: float) -> str:
    if room < ROOM_FOR_TEXT:
        return span.name if room >= ROOM_FOR_NUMBER else ""
    return f"{span.name} · {ago(span.duration)}" if span.name else ago(span.duration)
