"""What pages are made of before there is HTML: tracebacks in blocks, timelines in segments, JSON that Python cannot hold."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobrunner.inspection import AttemptRow, JobDetail, JobRow
from tests.support.seed import TRACEBACK
from webapp.serial import decoded
from webapp.timeline import MAX_RUNS, timeline
from webapp.tracebacks import blocks

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)


def job(**changes) -> JobDetail:
    """A queued job that waits since a minute."""
    row = JobRow(
        id=1, task="t", queue="q", state="queued", priority=0, attempt=0, max_attempts=5, created_at=NOON - timedelta(minutes=1),
        run_at=NOON - timedelta(minutes=1), started_at=None, finished_at=None, wait=timedelta(minutes=1), run=None, args_excerpt="{}",
        error_type=None, error=None, worker_id=None, progress=None, progress_text=None, peak_memory=None,
    )  # fmt: skip
    detail = JobDetail(
        job=row, args="{}", result=None, meta=None, checkpoint=None, tags=(), parent_id=None, unique_key=None, error=None, error_at=None,
        crash_count=0, max_crashes=3, time_limit=None, soft_time_limit=None, cpu_limit=None, memory_limit=None, memory_limit_on_retry=None,
        output_limit=None, max_processes=None, progress_text=None, backoff="constant", lease=0, claimed_at=None, cancel_requested_at=None, cpu=None, worker=None,
        attempts=(), attempts_left_out=False, waiting_reason=None, at=NOON,
    )  # fmt: skip
    of_row = {name: changes.pop(name) for name in list(changes) if hasattr(row, name)}
    return replace(detail, job=replace(row, **of_row), **changes)


def attempt(number: int, start: datetime, end: datetime, outcome: str = "retried") -> AttemptRow:
    """An ended run."""
    return AttemptRow(
        attempt=number, lease=number, outcome=outcome, started_at=start, finished_at=end, run=end - start, cpu=None, worker_id=1, worker="w",
        error_type="ValueError", message="no", traceback=None, fingerprint=None, exit_cause="exception", peak_memory=None,
    )  # fmt: skip


def test_own_frames_stand_out() -> None:
    """Frames of the application are blocks of their own; neighbouring library frames fold into one."""
    found = blocks(TRACEBACK.rstrip("\n"))
    assert [(block.kind, block.frames) for block in found] == [
        ("text", 0),
        ("library", 1),
        ("frame", 1),
        ("library", 2),
        ("frame", 1),
        ("text", 0),
    ]
    assert found[-1].text.startswith("shop.http.UpstreamTimeout")


@given(
    st.text()
    | st.lists(
        st.sampled_from(['  File "/a/b.py", line 3, in f', '  File "/x/site-packages/y.py", line 1', "    code()", "Error: x", ""])
    ).map("\n".join)
)
def test_no_line_of_a_traceback_is_lost(text) -> None:
    """Blocks put together are the text, whatever the text is."""
    assert "\n".join(block.text for block in blocks(text)) == text


def test_a_life_is_told_in_order() -> None:
    """Wait, attempt, wait, attempt: each has its place, and together they fill the picture."""
    first = attempt(1, NOON - timedelta(seconds=50), NOON - timedelta(seconds=40))
    second = attempt(2, NOON - timedelta(seconds=20), NOON - timedelta(seconds=5), "failed")
    found = timeline(job(state="failed", attempt=2, finished_at=NOON - timedelta(seconds=5), attempts=(second, first)))
    assert [part.kind for part in found] == ["wait", "bad", "wait", "bad"]
    assert found[0].x == 0
    assert found[-1].x + found[-1].width == pytest.approx(100, abs=0.1)
    assert "attempt 2 failed after 15 s: ValueError" in found[-1].title


def test_a_scheduled_job_shows_what_is_planned() -> None:
    """The time until it is due is a segment of its own."""
    found = timeline(job(state="scheduled", run_at=NOON + timedelta(hours=1), wait=None))
    assert [part.kind for part in found] == ["wait", "planned"]
    assert found[1].title == "due in 1 h"


def test_many_attempts_are_one_segment() -> None:
    """Of a thousand attempts the last ones are drawn, the others are counted."""
    start = NOON - timedelta(hours=2)
    runs = tuple(attempt(n, start + timedelta(seconds=n * 10), start + timedelta(seconds=n * 10 + 5)) for n in range(1, 101))
    found = timeline(job(created_at=start, attempt=100, attempts=runs[::-1]))
    assert found[0].kind == "earlier"
    assert found[0].title == "80 earlier attempts"
    assert sum(part.kind == "bad" for part in found) == MAX_RUNS
    assert all(part.width > 0 for part in found)


def test_clocks_that_disagree_draw_no_negative_width() -> None:
    """An attempt that began before its job was created is drawn from the creation on."""
    odd = attempt(1, NOON - timedelta(hours=1), NOON - timedelta(seconds=90))
    assert all(part.width >= 0 and part.x >= 0 for part in timeline(job(attempts=(odd,), attempt=1)))


@pytest.mark.parametrize(
    ("text", "value"),
    [("9007199254740993", 9007199254740993), ("1e400", "1e400"), ("-1e999", "-1e999"), ('{"a": 1.5}', {"a": 1.5}), ("null", None)],
)
def test_numbers_beyond_python_become_text(text, value) -> None:
    """A number that jsonb holds and JSON clients could not read is given as text; everything stays valid JSON."""
    assert decoded(text) == value
    json.dumps(decoded(text), allow_nan=False)


def test_endless_digits_and_depth_are_harmless() -> None:
    """Neither a million digits nor a thousand levels break the answer."""
    assert decoded("9" * 5000) == "9" * 5000
    deep = "[" * 100_000 + "]" * 100_000
    assert decoded(deep) == deep
