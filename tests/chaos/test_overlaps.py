"""A thousand starts of `jobrunner cron` that overlap, as real processes: one holder of the slot at a time, every job once."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.support import overlaps
from tests.support.commands import clean_environment
from tests.support.workers import insert, rows

pytestmark = pytest.mark.chaos

AT_ONCE = 20  # processes: more only wait for the two cores
PATIENCE = 300  # seconds until a start is given up
# An instant on record is that of a transaction's beginning: the next holder's may lie before the end of the last one's.
OVERLAPS = """
SELECT count(*) FROM jobrunner.v_worker_runs a JOIN jobrunner.v_worker_runs b
ON a.pool = b.pool AND a.pool_slot = b.pool_slot AND a.id < b.id AND a.started_at < b.finished_at - interval '1 second'
AND b.started_at < a.finished_at - interval '1 second'
"""


def start(dsn):
    """One start, silent or its output is kept."""
    command = [sys.executable, "-m", "jobrunner", "cron", "--dsn", dsn, "--app", overlaps.__file__, "-c", "1", "--strict", "--no-listen"]
    return subprocess.Popen(
        command, env=clean_environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.parametrize("starts", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_overlapping_starts(fresh_dsn, tmp_path, starts):
    """However many starts overlap: no job runs twice or beside another, each start either has the slot or leaves with 5, all are silent,
    and those that had it are on record."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    codes: Counter[int] = Counter()
    output = ""
    enqueued = 0
    running: list[subprocess.Popen[str]] = []
    for number in range(starts):
        if number % AT_ONCE == 0 or rng.random() < 0.1:
            more = rng.randint(1, 5)
            insert(
                fresh_dsn, "alone", more,
                f"jsonb_build_object('number', n + {enqueued}, 'directory', '{tmp_path}', 'seconds', {rng.choice([0, 0.05, 0.3])})",
            )  # fmt: skip
            enqueued += more
        running.append(start(fresh_dsn))
        while len(running) >= AT_ONCE:
            first = running.pop(0)
            output += first.communicate(timeout=PATIENCE)[0]
            codes[first.returncode] += 1
    for process in running:
        output += process.communicate(timeout=PATIENCE)[0]
        codes[process.returncode] += 1
    last = start(fresh_dsn)
    output += last.communicate(timeout=PATIENCE)[0]
    codes[last.returncode] += 1
    print(f"{enqueued} jobs, {starts + 1} starts: {codes[0]} had the slot, {codes[5]} found it taken")
    assert output == ""
    assert set(codes) == {0, 5}
    assert sorted(map(int, Path(tmp_path, "ran").read_text().split())) == list(range(1, enqueued + 1))
    assert rows(fresh_dsn, "SELECT state, count(*), max(attempt), max(crash_count) FROM jobrunner.v_jobs GROUP BY 1") == [
        ("succeeded", enqueued, 1, 0)
    ]
    assert rows(fresh_dsn, "SELECT DISTINCT kind, pool, pool_slot, reason, exit_code FROM jobrunner.v_worker_runs") == [
        ("cron", "default", 1, "drained", 0)
    ]
    assert rows(fresh_dsn, "SELECT count(*), sum(succeeded_count) FROM jobrunner.v_worker_runs") == [(codes[0], enqueued)]
    assert rows(fresh_dsn, OVERLAPS) == [(0,)]
