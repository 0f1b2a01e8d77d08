"""Jobs claimed together do not wait for each other: what a child has not begun is taken back and runs where a slot is free."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import modes_app
from tests.support.modes import MODES
from tests.support.waiting import wait_until
from tests.support.workers import Ledger, insert, rows, states, workers

pytestmark = pytest.mark.chaos

APP = str(Path(modes_app.__file__))
TASKS = {"process": "{}", "threads": "{}", "async": "{}_async"}


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "ledger")


def begun(ledger, number):
    """Wait until a job has begun."""
    wait_until(lambda: ledger.count("begin")[str(number)] == 1, timeout=60, what=f"job {number} to begin")


@pytest.mark.parametrize("mode", MODES)
def test_a_long_job_delays_none_that_was_claimed_with_it(dsn, ledger, mode):
    """Short jobs before and behind a long one, of the same task, are done elsewhere while it runs."""
    task = TASKS[mode].format("work")
    insert(dsn, task, 300)
    insert(dsn, task, 1, "jsonb_build_object('number', 9999, 'seconds', 120)")
    insert(dsn, task, 300, "jsonb_build_object('number', n + 1000)")
    with workers(dsn, ledger.path, *MODES[mode].slots(2), app=APP):
        begun(ledger, 9999)
        wait_until(lambda: states(dsn)["succeeded"] == 600, timeout=20, what="the short ones to be done while the long one runs")
    assert ledger.count("end")["9999"] == 0
    assert set(ledger.count("begin").values()) == {1}
    # How long it takes until they begin elsewhere is what bench/fairness.py measures.


def test_nobody_keeps_what_he_cannot_start(dsn, ledger):
    """With every slot in a long job, jobs that were claimed behind them are given back for other workers, without an attempt."""
    insert(dsn, "work", 200)
    insert(dsn, "work", 2, "jsonb_build_object('number', 9000 + n, 'seconds', 120)")
    insert(dsn, "work", 200, "jsonb_build_object('number', n + 1000)")
    with workers(dsn, ledger.path, "-c", "2", app=APP):
        begun(ledger, 9001)
        begun(ledger, 9002)
        held = "SELECT count(*) FROM jobrunner.jobs WHERE state = 'running'"
        wait_until(lambda: rows(dsn, held) == [(2,)], timeout=30, what="the jobs that cannot start to be given back")
        with workers(dsn, ledger.path, "-c", "1", app=APP):
            wait_until(lambda: states(dsn)["succeeded"] == 400, timeout=60, what="another worker to do them")
    assert rows(dsn, "SELECT DISTINCT attempt, crash_count FROM jobrunner.v_jobs") == [(1, 0)]


@pytest.mark.parametrize("environment", [{}, {"JOBRUNNER_CGROUPS": "off"}], ids=["groups", "sampling"])
def test_limited_jobs_and_others_share_the_children(dsn, ledger, environment):
    """Of a mixed stream neither the jobs with limits nor those without wait for all of the others."""
    insert(dsn, "work", 400)
    with_limit = "jsonb_build_object('number', 1000 + n)"
    for column, value in (("memory_limit", 300_000_000), ("cpu_limit", "20s"), ("output_limit", 100_000), ("soft_time_limit", "20s")):
        insert(dsn, "work", 100, with_limit, **{column: value})
        with_limit = with_limit.replace("000 +", "100 +")
    insert(dsn, "work", 400, "jsonb_build_object('number', 4000 + n)")
    rows_mixed = "UPDATE jobrunner.jobs SET run_at = now() - random() * interval '1 minute' RETURNING id"  # shuffled
    assert len(rows(dsn, rows_mixed)) == 1200
    with workers(dsn, ledger.path, "-c", "2", "--drain", app=APP, environment=environment) as [worker]:
        assert worker.wait(120) == 0
    assert states(dsn) == {"succeeded": 1200}
    order = [int(number) for event, number, _, _ in ledger.lines() if event == "begin"]
    first = order[: len(order) // 2]
    shares = [sum(low <= number < high for number in first) for low, high in ((0, 1000), (1000, 4000), (4000, 5000))]
    assert all(share > 100 for share in shares), f"of the first half: {shares}"


def test_a_long_limited_job_at_the_head_blocks_nobody(dsn, ledger):
    """A job that needs an idle child waits for one; the others go on behind it, and it gets its turn before them all are done."""
    insert(dsn, "work", 10_000)
    with workers(dsn, ledger.path, "-c", "2", app=APP):
        ledger.wait_for_ends(100)
        insert(dsn, "work", 2, "jsonb_build_object('number', 9000 + n, 'seconds', 0.2)", cpu_limit="20s", priority=-1)
        begun(ledger, 9001)
        events = [(event, number) for event, number, _, _ in ledger.lines()]
        ends = sum(event == "end" for event, _ in events[: events.index(("begin", "9001"))])
        print(f"ends before it: {ends}")
        assert ends < 10_000, "the urgent job came last"
        wait_until(lambda: states(dsn) == {"succeeded": 10_002}, timeout=60, what="all to be done")


def test_no_slot_is_idle_while_limited_jobs_wait(dsn, ledger):
    """A stream of jobs with limits keeps every child at work."""
    insert(dsn, "limited", 80, "jsonb_build_object('number', n, 'seconds', 0.2)")
    with workers(dsn, ledger.path, "-c", "4", "--drain", app=APP) as [worker]:
        assert worker.wait(60) == 0
    span = "extract(epoch FROM max(finished_at) - min(started_at)) * 1000"
    [(busy,)] = rows(dsn, f"SELECT round(100 * sum(run_ms) / (4 * {span}))::int FROM jobrunner.job_history")
    print(f"slots in use: {busy} %")
    assert int(str(busy)) > 60, "a machine with other work on it fills them to four fifths"


def test_a_bounded_queue_goes_on_when_one_of_its_jobs_ends(dsn, ledger):
    """Its next job starts then, not at the next look at all queues, which a long poll puts far off."""
    insert(dsn, "work", 4, "jsonb_build_object('number', n, 'seconds', 0.6)", queue="mail")
    with workers(dsn, ledger.path, "mail:1,default", "--poll", "60s", "--threads", "3", app=APP):
        wait_until(lambda: states(dsn)["succeeded"] == 4, timeout=30, what="all four, one after the other")
