"""What a heartbeat says of the worker's memory: measured while the worker does something, and seldom while it does nothing."""

from __future__ import annotations

from datetime import timedelta

import pytest

from jobrunner.jobs import WorkerCounts
from jobrunner.settings import parse_dsn
from jobrunner.worker import procfs
from jobrunner.worker.heartbeat import IDLE_MEASURE, Heartbeat

NOBODY = "postgresql://127.0.0.1:1/none"


@pytest.fixture
def measured(monkeypatch):
    """How often the memory of the processes was measured."""
    asked: list[int] = []

    def measure(pid: int) -> int:
        asked.append(pid)
        return len(asked)

    monkeypatch.setattr(procfs, "proportional_bytes", measure)
    return asked


def test_memory_is_measured_while_the_worker_works_and_now_and_then(measured):
    """Each beat of a worker that runs jobs, or has run some since the last one, measures; of one that does nothing one a minute."""
    runs = ["[]"]
    beating = Heartbeat(
        parse_dsn(NOBODY, "here"), 1, timedelta(seconds=30), 0.0, counts=WorkerCounts, running=lambda: runs[0], extended=lambda _ends: None
    )
    idle, worked = WorkerCounts(), WorkerCounts(succeeded=1, claimed=1)
    first = beating._sight(idle, 100.0)
    assert beating._sight(idle, 110.0) == first
    assert len(measured) == 1
    for counts, running in ((worked, "[]"), (worked, '[{"job": 7}]'), (worked, "[]")):
        runs[0] = running
        seen = beating._sight(counts, 120.0)
        assert (seen.running, seen.memory_bytes) == (running, len(measured))
    assert len(measured) == 4
    beating._sight(worked, 120.0 + IDLE_MEASURE - 1)
    assert len(measured) == 4
    beating._sight(worked, 120.0 + IDLE_MEASURE)
    assert len(measured) == 5
