"""Children are replaced by fresh ones between two jobs: after so many jobs, or when they hold too much memory."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from jobrunner.worker import procfs
from tests.support import modes_app
from tests.support.modes import MODES
from tests.support.waiting import wait_until
from tests.support.workers import Ledger, insert, rows, states, workers

pytestmark = pytest.mark.chaos

APP = str(Path(modes_app.__file__))
TASKS = {"process": "{}", "threads": "{}", "async": "{}_async"}
MB = 1_000_000
LEAST, MOST = 1 * MB, 5 * MB  # bytes that a leaking job keeps
SPARE = 16 * MB  # bytes of what a child has besides: its own heap grows in steps, results and log lines are in it too

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


def soak(dsn, ledger, mode, count):
    """Leak `count` times with children bounded at what they start with and 60 MB, and look at them all the while."""
    task = TASKS[mode].format("leak")
    insert(dsn, task, 1, "jsonb_build_object('number', n, 'size', 0)")
    with workers(dsn, ledger.path, *MODES[mode].slots(2), "--drain", app=APP) as [worker]:
        assert worker.wait() == 0
    [(start,)] = rows(dsn, "SELECT peak_memory FROM jobrunner.v_jobs") if mode == "process" else [(80 * MB,)]
    ceiling = int(str(start)) + 60 * MB
    slots = 2
    insert(dsn, task, count, f"jsonb_build_object('number', n, 'size', {LEAST} + (n * 7919) % {MOST - LEAST})", max_attempts=1)
    most = {"child": 0, "worker": 0}
    options = (*MODES[mode].slots(slots), "--max-memory-per-child", str(ceiling))
    with workers(dsn, ledger.path, *options, app=APP) as [worker]:

        def done():
            below = worker.descendants()
            # a template has children of its own, and a child does not
            leaves = [pid for pid in below if not procfs.children(pid)]
            sizes = [used.rss_bytes for pid in leaves if (used := procfs.usage(pid)) is not None]
            most["child"] = max([most["child"], *sizes])
            most["worker"] = max(most["worker"], procfs.proportional_bytes(worker.process.pid) or 0)
            return states(dsn) == {"succeeded": count + 1}

        wait_until(done, timeout=600, what="all to be done")
    at_once = slots if mode != "process" else 1  # jobs that may add to a child which is below its ceiling
    [(recorded, processes)] = rows(dsn, "SELECT coalesce(max(peak_memory), 0), count(DISTINCT result) FROM jobrunner.v_jobs")
    bound = ceiling + at_once * MOST + SPARE
    print(
        f"{mode}: {count} jobs, {processes} processes; ceiling {ceiling / MB:.0f} MB; most seen of a child {most['child'] / MB:.0f} MB, "
        f"recorded with a job {int(str(recorded)) / MB:.0f} MB, worker with all children (Pss) {most['worker'] / MB:.0f} MB"
    )
    assert max(most["child"], int(str(recorded))) <= bound
    # Two children, two successors that are forked while these have their last job, template and supervisor.
    assert most["worker"] <= (2 * slots if mode == "process" else 2) * bound + 200 * MB
    assert int(str(processes)) >= count * LEAST // (60 * MB + MOST), "nobody was replaced"
