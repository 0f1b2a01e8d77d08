"""Processes, threads and coroutines: as many jobs at once as there are slots, each with its own context, whatever they do."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import psycopg
import pytest

from tests.support import modes_app
from tests.support.modes import MODES
from tests.support.waiting import wait_until
from tests.support.workers import Ledger, insert, rows, states, wait_for_states, workers

pytestmark = pytest.mark.chaos

APP = str(Path(modes_app.__file__))
TASKS = {"process": "{}", "threads": "{}", "async": "{}_async"}


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "ledger")


def most_at_once(ledger, numbers=range(1, 1000)):
    """How many of these jobs ran at once, at the most."""
    running = most = 0
    for event, number, _, _ in ledger.lines():
        if int(number) in numbers:
            running += 1 if event == "begin" else -1
            most = max(most, running)
    return most


def run_all(dsn, ledger, *options):
    """Let a worker do what is there. Returns its log."""
    with workers(dsn, ledger.path, *options, "--drain", app=APP) as [worker]:
        assert worker.wait(120) == 0
        return worker.text()


@pytest.mark.parametrize("mode", MODES)
def test_every_slot_is_used_and_no_more(dsn, ledger, mode):
    """Jobs that wait fill all slots, one job each, and never one more."""
    insert(dsn, TASKS[mode].format("work"), 24, "jsonb_build_object('number', n, 'seconds', 0.4)")
    run_all(dsn, ledger, *MODES[mode].slots(4))
    assert states(dsn) == {"succeeded": 24}
    assert most_at_once(ledger) == 4


@pytest.mark.parametrize("beside", [("-c", "2"), ("--threads", "2")])
def test_both_lanes_at_once(dsn, ledger, beside):
    """Coroutines have slots of their own beside processes and beside threads, and neither takes those of the other."""
    insert(dsn, "work", 8, "jsonb_build_object('number', n, 'seconds', 0.5)")
    insert(dsn, "work_async", 12, "jsonb_build_object('number', 100 + n, 'seconds', 0.5)")
    run_all(dsn, ledger, *beside, "--async-slots", "3")
    assert states(dsn) == {"succeeded": 20}
    assert most_at_once(ledger, range(1, 100)) == 2
    assert most_at_once(ledger, range(101, 200)) == 3
    assert most_at_once(ledger) > 3, "the two lanes did not run at the same time"


@pytest.mark.parametrize("mode", MODES)
def test_each_job_has_its_own_context(dsn, ledger, mode):
    """current_job() and Flask's app context are those of the job itself, from its first line to its last, with others around it."""
    insert(dsn, TASKS[mode].format("look"), 40, "jsonb_build_object('number', n, 'seconds', 0.05)")
    run_all(dsn, ledger, *MODES[mode].slots(4))
    right = "(result->>'job')::bigint = id AND result->'number' = args->'number' AND result->>'app' = 'modes'"
    loop = "(result->>'loop')::boolean"
    assert rows(dsn, f"SELECT count(*), bool_and({right}), bool_and({loop}), bool_or({loop}) FROM jobrunner.v_jobs") == [
        (40, True, mode == "async", mode == "async")
    ]
    places = "count(DISTINCT result->>'pid'), count(DISTINCT (result->>'pid', result->>'thread'))"
    assert rows(dsn, f"SELECT {places} FROM jobrunner.v_jobs") == [{"process": (4, 4), "threads": (1, 4), "async": (1, 1)}[mode]]


def test_sync_tasks_never_run_on_the_loop(dsn, ledger):
    """With slots for coroutines, an ordinary function still runs in a child of its own kind: it cannot hold up the loop."""
    insert(dsn, "look", 6, "jsonb_build_object('number', n, 'seconds', 0.2)")
    insert(dsn, "look_async", 6)
    run_all(dsn, ledger, "-c", "1", "--async-slots", "4")
    found = rows(dsn, "SELECT task, result->>'loop', count(DISTINCT result->>'pid') FROM jobrunner.v_jobs GROUP BY 1, 2 ORDER BY 1")
    assert found == [("look", "false", 1), ("look_async", "true", 1)]
    assert rows(dsn, "SELECT count(DISTINCT result->>'pid') FROM jobrunner.v_jobs") == [(2,)]


def test_without_slots_of_their_own_coroutines_run_where_the_others_do(dsn, ledger):
    """With --threads alone, `async def` tasks run in those threads, each in an event loop of its own."""
    insert(dsn, "look_async", 20, "jsonb_build_object('number', n, 'seconds', 0.1)")
    run_all(dsn, ledger, "--threads", "3")
    found = "bool_and((result->>'job')::bigint = id), bool_and((result->>'loop')::boolean), count(DISTINCT result->>'thread')"
    assert rows(dsn, f"SELECT {found} FROM jobrunner.v_jobs") == [(True, True, 3)]


def test_a_slow_coroutine_delays_nobody(dsn, ledger):
    """While one coroutine waits for long, short ones come and go beside it."""
    insert(dsn, "work_async", 1, "jsonb_build_object('number', 999, 'seconds', 60)")
    insert(dsn, "work_async", 200)
    with workers(dsn, ledger.path, "-c", "1", "--async-slots", "2", app=APP):
        wait_for_states(dsn, 40, running=1, succeeded=200)
    assert ledger.count("begin")["999"] == 1
    assert ledger.count("end")["999"] == 0


@pytest.mark.parametrize("beside", [("-c", "3"), ("--threads", "3")])
def test_bound_of_a_queue_holds_over_both_lanes(dsn, ledger, beside):
    """`mail:2` is two of that queue at once in the whole worker, functions and coroutines together; other queues are not held back."""
    insert(dsn, "work", 8, "jsonb_build_object('number', n, 'seconds', 0.2)", queue="mail")
    insert(dsn, "work_async", 8, "jsonb_build_object('number', 50 + n, 'seconds', 0.2)", queue="mail")
    insert(dsn, "work", 6, "jsonb_build_object('number', 100 + n, 'seconds', 0.2)")
    run_all(dsn, ledger, "--queues", "mail:2,default", *beside, "--async-slots", "3")
    assert states(dsn) == {"succeeded": 22}
    assert most_at_once(ledger, range(1, 100)) == 2
    assert most_at_once(ledger) > 2


@pytest.mark.parametrize("mode", MODES)
def test_urgent_first(dsn, ledger, mode):
    """Jobs begin by priority, then in the order they were enqueued."""
    for priority in (5, 0, -5):
        insert(dsn, TASKS[mode].format("work"), 10, f"jsonb_build_object('number', {100 + priority} * 100 + n)", priority=priority)
    run_all(dsn, ledger, *MODES[mode].slots(1))
    begun = [int(number) for event, number, _, _ in ledger.lines() if event == "begin"]
    assert len(begun) == 30
    assert begun == sorted(begun)


@pytest.mark.parametrize("mode", MODES)
def test_words_that_steer_a_job(dsn, ledger, mode):
    """Retry, Snooze, Cancel, Fail, an exception and a result mean the same in every mode.

    Without pauses: who drains leaves when nothing is due, and does not wait for what will be in a moment.
    """
    for how in ("retry", "snooze", "cancel", "fail", "error", "fine"):
        insert(dsn, TASKS[mode].format("control"), 1, f"jsonb_build_object('how', '{how}')", max_attempts=2, backoff_base="0")
    run_all(dsn, ledger, *MODES[mode].slots(2))
    found = {how: rest for how, *rest in rows(dsn, "SELECT args->>'how', state, attempt, result, error_type FROM jobrunner.v_jobs")}
    assert found == {
        "retry": ["succeeded", 2, "retry 2", "jobrunner.Retry"],
        "snooze": ["succeeded", 1, "snooze 1", None],
        "cancel": ["cancelled", 1, None, None],
        "fail": ["failed", 1, None, "jobrunner.Fail"],
        "error": ["failed", 2, None, "ValueError"],
        "fine": ["succeeded", 1, "fine 1", None],
    }
    outcomes = Counter(outcome for (outcome,) in rows(dsn, "SELECT outcome FROM jobrunner.v_attempts"))
    assert outcomes == {"succeeded": 3, "retried": 2, "snoozed": 1, "cancelled": 1, "failed": 2}


@pytest.mark.parametrize("mode", MODES)
def test_free_slots_are_filled_one_by_one(dsn, ledger, mode):
    """A slot that comes free beside seven long jobs gets the next job at once, not when several are free."""
    insert(dsn, TASKS[mode].format("work"), 7, "jsonb_build_object('number', n, 'seconds', 120)")
    with workers(dsn, ledger.path, *MODES[mode].slots(8), app=APP):
        wait_until(lambda: len(ledger.count("begin")) == 7, timeout=60, what="the long jobs to begin")
        with psycopg.connect(dsn, autocommit=True) as connection:
            for number in range(100, 103):
                connection.execute(
                    "INSERT INTO jobrunner.jobs (task, args) VALUES (%s, jsonb_build_object('number', %s::int))",
                    (TASKS[mode].format("work"), number),
                )
                ledger.wait_for_ends(number - 99, timeout=10)
    assert sum(ledger.count("end").values()) == 3


@pytest.mark.parametrize(
    ("mode", "task"),
    [(mode, task) for mode in MODES for task in ("begin_late", "begin_late_async") if (mode, task) != ("async", "begin_late")],
)
def test_an_interrupt_that_comes_early_is_raised_where_the_code_begins(dsn, ledger, mode, task):
    """A soft time limit that is over while the arguments are still being made ends the job before its code has begun."""
    insert(dsn, task, 1, """'{"slow": {"number": 1}}'::jsonb""", soft_time_limit="300ms", max_attempts=1)
    run_all(dsn, ledger, *MODES[mode].slots(1))
    assert rows(dsn, "SELECT state, error_type FROM jobrunner.v_jobs") == [("failed", "jobrunner.errors.SoftTimeLimitExceeded")]
    assert ledger.lines() == []
