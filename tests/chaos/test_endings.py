"""How attempts end: limits, shutdown, cancellation, hostile exceptions, tasks and arguments that do not fit."""

from __future__ import annotations

import signal

import psycopg
import pytest

from tests.support.modes import each_mode
from tests.support.waiting import wait_until
from tests.support.workers import Ledger, alive, insert, rows, states, wait_for_states, workers

pytestmark = pytest.mark.chaos


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "ledger")


def test_time_limit_ends_the_whole_process_group(dsn, ledger):
    """`time_limit` ends a job that ignores SIGTERM together with the process it started; the attempt says why."""
    pid_file = ledger.path.with_name("pid")
    insert(dsn, "spawn_and_sleep", 1, f"jsonb_build_object('pid_file', '{pid_file}')", time_limit="1s", max_attempts=1)
    insert(dsn, "once", 20)
    with workers(dsn, ledger.path, "-c", "2", "--drain") as [worker]:
        assert worker.wait() == 0
    assert states(dsn) == {"failed": 1, "succeeded": 20}
    assert not alive(int(pid_file.read_text()))
    assert rows(
        dsn, "SELECT outcome, exit_cause, error_type, run_ms BETWEEN 1000 AND 6000 FROM jobrunner.v_attempts WHERE outcome = 'failed'"
    ) == [("failed", "timeout", "jobrunner.errors.TimeLimitExceeded", True)]


@each_mode
def test_graceful_stop_lets_jobs_finish(dsn, ledger, mode):
    """SIGTERM lets running jobs finish, gives back the others without an attempt, and exits 0."""
    insert(dsn, mode.task, 200, "jsonb_build_object('number', n, 'seconds', 0.5)")
    with workers(dsn, ledger.path, *mode.slots(2)) as [worker]:
        wait_until(lambda: len(ledger.count("begin")) >= 2, timeout=20, what="two jobs to begin")
        assert worker.stop() == 0
    assert ledger.count("begin") == ledger.count("end")
    left = states(dsn)["queued"]
    assert left > 0
    assert rows(dsn, "SELECT DISTINCT attempt, crash_count FROM jobrunner.jobs") == [(0, 0)]
    assert rows(dsn, "SELECT state, last_exit FROM jobrunner.v_workers") == [("stopped", "signal")]


@each_mode
def test_grace_over_releases_without_an_attempt(dsn, ledger, mode):
    """When the grace is over, a running job is ended and released: no attempt is used up, the record says deploy."""
    insert(dsn, mode.task, 1, "jsonb_build_object('number', n, 'seconds', 60)")
    with workers(dsn, ledger.path, *mode.slots(1), "--grace", "0.2s") as [worker]:
        wait_until(lambda: ledger.count("begin")["1"] == 1, timeout=20, what="the job to begin")
        assert worker.stop() == 0
    assert rows(dsn, "SELECT state, attempt, crash_count FROM jobrunner.v_jobs") == [("queued", 0, 0)]
    assert rows(dsn, "SELECT outcome, exit_cause FROM jobrunner.v_attempts") == [("released", "deploy")]


@each_mode
def test_second_signal_is_now(dsn, ledger, mode):
    """A second signal does not wait for the grace; the job is released and the exit code says so."""
    insert(dsn, mode.task, 1, "jsonb_build_object('number', n, 'seconds', 60)")
    with workers(dsn, ledger.path, *mode.slots(1)) as [worker]:
        wait_until(lambda: ledger.count("begin")["1"] == 1, timeout=20, what="the job to begin")
        worker.signal(signal.SIGINT)
        wait_until(lambda: "stopping" in worker.text(), timeout=10, what="the worker to stop claiming")
        worker.signal(signal.SIGINT)
        assert worker.wait(10) == 130
    assert rows(dsn, "SELECT state, attempt FROM jobrunner.v_jobs") == [("queued", 0)]


@each_mode
def test_cancel_running_job(dsn, ledger, mode):
    """A running job that somebody asks to cancel is ended and stays cancelled."""
    insert(dsn, mode.task, 1, "jsonb_build_object('number', n, 'seconds', 60)")
    with workers(dsn, ledger.path, *mode.slots(1)):
        wait_until(lambda: ledger.count("begin")["1"] == 1, timeout=20, what="the job to begin")
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("UPDATE jobrunner.jobs SET cancel_requested_at = now()")
        wait_for_states(dsn, 30, cancelled=1)
    assert rows(dsn, "SELECT outcome, exit_cause FROM jobrunner.v_attempts") == [("cancelled", "cancelled")]


@pytest.mark.parametrize(
    ("kind", "error_type", "message"),
    [
        ("str", "Hostile", "<str() of the exception raised RuntimeError>"),
        ("nul", "ValueError", "a\\x00b"),
        ("surrogate", "ValueError", "\\ud800"),
        ("huge", "ValueError", "characters cut"),
        ("exit", "SystemExit", "3"),
        ("interrupt", "KeyboardInterrupt", ""),
        ("closed", "ValueError", "nowhere to print"),
    ],
)
def test_hostile_exceptions_fail_their_attempt_only(dsn, ledger, kind, error_type, message):
    """Whatever a task raises, the attempt is recorded with type, message and traceback, and the worker goes on."""
    insert(dsn, "hostile", 1, f"jsonb_build_object('kind', '{kind}')", max_attempts=1)
    insert(dsn, "once", 3)
    with workers(dsn, ledger.path, "-c", "1", "--drain") as [worker]:
        assert worker.wait() == 0
    assert states(dsn) == {"failed": 1, "succeeded": 3}
    [(found_type, found_message, traceback, fingerprint)] = rows(
        dsn, "SELECT error_type, message, traceback, fingerprint FROM jobrunner.v_attempts WHERE outcome = 'failed'"
    )
    assert str(found_type).rpartition(".")[2] == error_type
    assert message in str(found_message)
    assert len(str(traceback)) < 70_000
    assert fingerprint
    if kind != "huge":
        assert "chaos_app.py" in str(traceback)


def test_unknown_task_stays_queued_and_is_reported(dsn, ledger):
    """A job whose task no live worker registers stays queued, costs nobody anything, and `v_queues` counts it."""
    insert(dsn, "nobody_knows", 5)
    insert(dsn, "work", 5)
    with workers(dsn, ledger.path, "-c", "1"):
        wait_until(lambda: states(dsn)["succeeded"] == 5, timeout=20, what="the known ones to be done")
        assert rows(dsn, "SELECT ready_count, unserved_count FROM jobrunner.v_queues WHERE queue = 'default'") == [(5, 5)]
    assert rows(dsn, "SELECT DISTINCT attempt, lease FROM jobrunner.jobs") == [(0, 0)]


def test_arguments_that_do_not_fit_fail_the_attempt(dsn, ledger):
    """Arguments that do not fit the function fail that attempt with a message that names them; the worker goes on."""
    insert(dsn, "typed", 1, "jsonb_build_object('nummer', n)", max_attempts=1)
    insert(dsn, "work", 3)
    with workers(dsn, ledger.path, "-c", "1", "--drain") as [worker]:
        assert worker.wait() == 0
    assert states(dsn) == {"failed": 1, "succeeded": 3}
    [(error_type, message)] = rows(dsn, "SELECT error_type, message FROM jobrunner.v_attempts WHERE outcome = 'failed'")
    assert error_type == "jobrunner.errors.InvalidPayload"
    assert "nummer" in str(message) or "number" in str(message)


def test_coroutines_and_results(dsn, ledger):
    """An `async def` task runs to its end and its return value is in `result`."""
    insert(dsn, "asynchronous", 3)
    with workers(dsn, ledger.path, "-c", "1", "--drain") as [worker]:
        assert worker.wait() == 0
    assert rows(dsn, "SELECT result FROM jobrunner.v_jobs ORDER BY id") == [(2,), (4,), (6,)]


def test_queue_bound(dsn, ledger):
    """`--queues mail:1,default` never runs two jobs of `mail` at once in this worker."""
    insert(dsn, "work", 6, "jsonb_build_object('number', n, 'seconds', 0.1)", queue="mail")
    insert(dsn, "work", 10, "jsonb_build_object('number', n + 100, 'seconds', 0.05)")
    with workers(dsn, ledger.path, "-c", "3", "--queues", "mail:1,default", "--drain") as [worker]:
        assert worker.wait() == 0
    running = 0
    for event, number, _, _ in ledger.lines():
        if int(number) < 100:
            running += 1 if event == "begin" else -1
            assert running <= 1
    assert states(dsn) == {"succeeded": 16}


def test_large_arguments_travel(dsn, ledger):
    """Arguments far larger than a socket's buffer reach the task whole."""
    insert(dsn, "work", 3, "jsonb_build_object('number', n, 'seconds', 0, 'padding', repeat('x', 900000))", max_attempts=1)
    with workers(dsn, ledger.path, "-c", "2", "--drain") as [worker]:
        assert worker.wait() == 0
    # `work` has no such parameter: the refusal names it, so the whole object was read
    assert rows(dsn, "SELECT DISTINCT error_type FROM jobrunner.v_attempts") == [("jobrunner.errors.InvalidPayload",)]
