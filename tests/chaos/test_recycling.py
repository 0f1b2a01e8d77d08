"""Children are replaced by fresh ones between two jobs: after so many jobs, or when they hold too much memory."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from jobrunner.worker import procfs
from tests.support import modes_app
from tests.support.modes import MODES
from tests.support.waiting import wait_until
from tests.support.workers import Ledger, insert, rows, states, wait_for_states, workers

pytestmark = pytest.mark.chaos

APP = str(Path(modes_app.__file__))
TASKS = {"process": "{}", "threads": "{}", "async": "{}_async"}
MB = 1_000_000
LEAST, MOST = 1 * MB, 5 * MB  # bytes that a leaking job keeps
SLOTS = 2
ALLOWED = 60 * MB  # bytes that a child may have above what it has at first
SPARE = 16 * MB  # bytes of what a child has besides: its heap grows in steps, and what it shares with the template moves to it

each_mode = pytest.mark.parametrize("mode", MODES)


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "ledger")


@each_mode
def test_after_so_many_jobs(dsn, ledger, mode):
    """With `--max-jobs-per-child 10` no process runs more, none of 200 short jobs is lost, and none runs twice."""
    insert(dsn, TASKS[mode].format("work"), 200, max_attempts=1)
    with workers(dsn, ledger.path, *MODES[mode].slots(2), "--max-jobs-per-child", "10", "--drain", app=APP) as [worker]:
        assert worker.wait(120) == 0
    assert states(dsn) == {"succeeded": 200}
    assert set(ledger.count("begin").values()) == {1}
    by_process = sorted((pid for event, _, pid, _ in ledger.lines() if event == "begin"))
    counts = [len(list(group)) for _, group in itertools.groupby(by_process)]
    assert len(counts) >= 20
    assert max(counts) <= (11 if mode == "threads" else 10), "the thread beside may have one in its hands already"
    assert rows(dsn, "SELECT DISTINCT attempt, lease FROM jobrunner.v_jobs WHERE attempt > 1 OR crash_count > 0") == []


@each_mode
def test_a_long_last_job_does_not_stop_the_lane(dsn, ledger, mode):
    """A child whose last job takes long keeps that one slot only: its successor runs what else is there, and never one more."""
    insert(dsn, TASKS[mode].format("work"), 3, "jsonb_build_object('number', n)")
    insert(dsn, TASKS[mode].format("work"), 1, "jsonb_build_object('number', 500, 'seconds', 60)")
    insert(dsn, TASKS[mode].format("work"), 40, "jsonb_build_object('number', 100 + n, 'seconds', 0.05)")
    with workers(dsn, ledger.path, *MODES[mode].slots(2), "--max-jobs-per-child", "4", app=APP):
        wait_until(lambda: states(dsn)["succeeded"] == 43, timeout=60, what="the short jobs to be done")
    running = most = 0
    for event, *_ in ledger.lines():
        running += 1 if event == "begin" else -1
        most = max(most, running)
    assert most == 2
    assert ledger.count("begin")["500"] == 1


@each_mode
def test_a_leak_never_passes_the_ceiling(dsn, ledger, mode):
    """Jobs that keep 1 to 5 MB each never bring a child above its ceiling by more than one job's worth; no job is lost."""
    soak(dsn, ledger, mode, 500)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["process", "threads"])
def test_a_leak_never_passes_the_ceiling_in_a_soak(fresh_dsn, ledger, mode):
    """The same with 5,000 jobs."""
    soak(fresh_dsn, ledger, mode, 5000)


def sizes(worker):
    """Resident bytes of each child: the processes below the worker that have none below them."""
    below = [pid for pid in worker.descendants() if not procfs.children(pid)]
    return [used.rss_bytes for pid in below if (used := procfs.usage(pid)) is not None]


def soak(dsn, ledger, mode, count):
    """Leak `count` times with children bounded at 60 MB above what they have at first, and look at them all the while."""
    task = TASKS[mode].format("leak")
    insert(dsn, task, 1, "jsonb_build_object('number', n, 'size', 0)")
    with workers(dsn, ledger.path, *MODES[mode].slots(SLOTS), app=APP) as [worker]:
        wait_for_states(dsn, 30, succeeded=1)
        ceiling = max(sizes(worker)) + ALLOWED
    insert(dsn, task, count, f"jsonb_build_object('number', n, 'size', {LEAST} + mod(n * 7919, {MOST - LEAST}))", max_attempts=1)
    child, whole = 0, 0
    with workers(dsn, ledger.path, *MODES[mode].slots(SLOTS), "--max-memory-per-child", str(ceiling), app=APP) as [worker]:

        def done():
            nonlocal child, whole
            child = max([child, *sizes(worker)])
            whole = max(whole, procfs.proportional_bytes(worker.process.pid) or 0)
            return states(dsn) == {"succeeded": count + 1}

        wait_until(done, timeout=600, what="all to be done")
    facts = rows(dsn, "SELECT coalesce(max(peak_memory), 0), count(DISTINCT result) FROM jobrunner.v_jobs")[0]
    recorded, processes = (int(str(fact)) for fact in facts)
    print(
        f"{mode}: {count} jobs, {processes} processes; ceiling {ceiling / MB:.0f} MB, most seen of a child {child / MB:.0f} MB, "
        f"most recorded with a job {recorded / MB:.0f} MB, supervisor, template and all children (Pss) {whole / MB:.0f} MB"
    )
    at_once = 1 if mode == "process" else SLOTS  # jobs that may add to a child which is below its ceiling
    assert max(child, recorded) <= ceiling + at_once * MOST + SPARE
    # While a child has its last job its successor is there already; supervisor and template have about as much as a child at first.
    children = 2 * SLOTS if mode == "process" else 2
    assert whole <= children * (ceiling + at_once * MOST + SPARE) + 2 * ceiling
    assert processes >= count * LEAST // (ALLOWED + MOST), "nobody was replaced"
