"""Cancellation and deploys: told at once, interrupted when that does not help, ended by force in the end; nothing is left half-done."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import psycopg
import pytest

from jobrunner import JobRunner
from tests.support import effects
from tests.support.waiting import seconds_until, wait_until
from tests.support.workers import Ledger, alive, insert, rows, states, wait_for_states, workers

pytestmark = pytest.mark.chaos

APP = str(Path(__file__).parents[1] / "support" / "talking_app.py")
LOOK = 1.0  # seconds between a worker's looks for cancellations
SLACK = 2.0  # seconds, on a busy machine
WAYS = {"process": ("-c", "1"), "thread": ("--threads", "2")}
ATTEMPTS = "SELECT outcome, exit_cause FROM jobrunner.v_attempts WHERE outcome <> 'succeeded'"


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "ledger")


@pytest.fixture
def never(tmp_path):
    """A file that nobody makes."""
    return tmp_path / "never"


def begun(ledger, event="begin", number=1):
    wait_until(lambda: ledger.count(event).total() >= number, timeout=30, what=f"{number} × {event}")


def cancel_all(dsn):
    """Cancel every job, as an application does. Returns what each said."""
    jobs = JobRunner(dsn=dsn)
    said = [jobs.job(int(str(job_id))).cancel() for (job_id,) in rows(dsn, "SELECT id FROM jobrunner.jobs ORDER BY id")]
    jobs.close()
    return said


@pytest.mark.parametrize("way", WAYS)
def test_a_cooperative_task_leaves_at_once(dsn, ledger, never, way):
    """A task that asks is told within the worker's look, leaves with raise_if_stopping(), and the job is cancelled."""
    insert(dsn, "cooperative", 1, f"jsonb_build_object('gate', '{never}')")
    with workers(dsn, ledger.path, *WAYS[way], app=APP) as [worker]:
        begun(ledger)
        assert cancel_all(dsn) == ["requested"]
        seconds = seconds_until(lambda: states(dsn) == {"cancelled": 1}, timeout=30, what="the job to be cancelled")
        assert seconds < LOOK + SLACK
        assert worker.stop() == 0
    assert rows(dsn, ATTEMPTS) == [("cancelled", "cancelled")]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("stubborn", [False, True])
def test_a_task_that_does_not_ask_is_interrupted(dsn, ledger, never, way, stubborn):
    """Two seconds after it was told JobStopped is raised in the task; one that swallows it is ended by force, and others run on."""
    insert(dsn, "stoppable", 1, f"jsonb_build_object('gate', '{never}', 'stubborn', {str(stubborn).lower()})")
    with workers(dsn, ledger.path, *WAYS[way], app=APP) as [worker]:
        begun(ledger)
        cancel_all(dsn)
        begun(ledger, "asked")
        told = time.monotonic()
        seconds = seconds_until(lambda: ledger.count("stopped-cancelled").total(), timeout=30, what="JobStopped to be raised")
        assert time.monotonic() - told > 1.0
        assert seconds < 2.0 + SLACK
        wait_for_states(dsn, 30, cancelled=1)
        insert(dsn, "child", 3, "'{}'")
        wait_for_states(dsn, 20, cancelled=1, succeeded=3)
        assert worker.stop() == 0
    assert rows(dsn, ATTEMPTS) == [("cancelled", "cancelled")]


@pytest.mark.parametrize("options", [("-c", "1"), ("--async-slots", "2")], ids=["in a process", "in a loop"])
@pytest.mark.parametrize("stubborn", [False, True])
def test_a_coroutine_is_cancelled(dsn, ledger, options, stubborn):
    """A coroutine gets a CancelledError at its await; one that swallows it is ended with its process."""
    insert(dsn, "coroutine", 1, f"jsonb_build_object('stubborn', {str(stubborn).lower()})")
    with workers(dsn, ledger.path, *options, app=APP) as [worker]:
        begun(ledger)
        cancel_all(dsn)
        begun(ledger, "cancelled")
        wait_for_states(dsn, 30, cancelled=1)
        assert worker.stop() == 0
    assert rows(dsn, ATTEMPTS) == [("cancelled", "cancelled")]


def test_cancelled_while_waiting_behind_another(dsn, ledger, tmp_path):
    """A job that waits in a child behind a running one is cancelled without running; the running one is not disturbed."""
    gate = tmp_path / "gate"
    insert(dsn, "child", 60, "'{}'")  # short ones, so that the worker gives the child several ahead
    insert(dsn, "stoppable", 1, f"jsonb_build_object('gate', '{gate}')")
    insert(dsn, "stoppable", 6, f"jsonb_build_object('gate', '{gate}')")
    with workers(dsn, ledger.path, "-c", "1", app=APP) as [worker]:
        begun(ledger)
        with psycopg.connect(dsn, autocommit=True) as connection:
            waiting = "id > (SELECT min(id) FROM jobrunner.jobs WHERE task = 'stoppable')"
            connection.execute(f"UPDATE jobrunner.jobs SET cancel_requested_at = now() WHERE state = 'running' AND {waiting}")
            connection.execute(f"DELETE FROM jobrunner.jobs WHERE state = 'queued' AND {waiting}")
        wait_until(
            lambda: set(states(dsn)) == {"running", "cancelled", "succeeded"} or states(dsn)["running"] == 1,
            timeout=20,
            what="the others to go",
        )
        wait_until(lambda: states(dsn)["running"] == 1, timeout=10, what="only the first to be left")
        gate.touch()
        wait_until(lambda: states(dsn)["running"] == 0, timeout=20, what="the first to end")
        assert worker.stop() == 0
    assert ledger.count("begin").total() == 1
    assert ledger.count("asked").total() == 0
    assert states(dsn)["succeeded"] == 61


def test_cancelled_in_a_statement(fresh_dsn, ledger):
    """A transactional job cancelled amid a long statement leaves nothing, its statement is ended on the server, its child goes on."""
    effects.prepare(fresh_dsn)
    insert(fresh_dsn, "query", 1, "jsonb_build_object('seconds', 60)")
    with workers(fresh_dsn, ledger.path, "-c", "1", app=APP) as [worker]:
        begun(ledger)
        child = ledger.lines()[0][2]
        cancel_all(fresh_dsn)
        wait_for_states(fresh_dsn, 15, cancelled=1)
        sleeping = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
            "AND query LIKE '%pg_sleep(%' AND state = 'active' AND pid <> pg_backend_pid()"
        )
        wait_until(lambda: rows(fresh_dsn, sleeping) == [(0,)], timeout=20, what="the statement to end")
        assert alive(child)
        insert(fresh_dsn, "query", 1, "jsonb_build_object('seconds', 0)")
        wait_for_states(fresh_dsn, 15, cancelled=1, succeeded=1)
        assert worker.stop() == 0
    assert rows(fresh_dsn, ATTEMPTS) == [("cancelled", "cancelled")]
    assert rows(fresh_dsn, "SELECT count(*) FROM chaos_effects") == [(1,)]


def test_a_time_limit_leaves_nothing(fresh_dsn, ledger):
    """A transactional job that is killed for its time limit has written nothing."""
    effects.prepare(fresh_dsn)
    insert(fresh_dsn, "query", 1, "jsonb_build_object('seconds', 60)", time_limit="1s", max_attempts=1)
    with workers(fresh_dsn, ledger.path, "-c", "1", "--drain", app=APP) as [worker]:
        assert worker.wait() == 0
    assert states(fresh_dsn) == {"failed": 1}
    assert rows(fresh_dsn, "SELECT count(*) FROM chaos_effects") == [(0,)]


@pytest.mark.parametrize("way", WAYS)
def test_a_deploy_tells_running_jobs_at_once(dsn, ledger, never, way):
    """SIGTERM: `should_stop()` is true at once; when the grace is over the task is interrupted, released, and no attempt is used up."""
    insert(dsn, "stoppable", 1, f"jsonb_build_object('gate', '{never}')", max_attempts=1)
    with workers(dsn, ledger.path, *WAYS[way], "--grace", "2s", app=APP) as [worker]:
        begun(ledger)
        worker.signal(signal.SIGTERM)
        assert seconds_until(lambda: ledger.count("asked").total(), timeout=30, what="it to be told") < SLACK
        assert worker.wait(15) == 0
    assert ledger.count("stopped-deploy").total() == 1
    assert rows(dsn, "SELECT state, attempt, crash_count FROM jobrunner.v_jobs") == [("queued", 0, 0)]
    assert rows(dsn, ATTEMPTS) == [("released", "deploy")]


def test_a_second_signal_ends_stubborn_jobs(dsn, ledger, never):
    """A second SIGTERM does not wait for the grace, not even for a task that swallows what is raised: released all the same."""
    insert(dsn, "stoppable", 1, f"jsonb_build_object('gate', '{never}', 'stubborn', true)", max_attempts=1)
    with workers(dsn, ledger.path, "-c", "1", app=APP) as [worker]:
        begun(ledger)
        worker.signal(signal.SIGTERM)
        begun(ledger, "asked")
        worker.signal(signal.SIGTERM)
        assert worker.wait(10) == 143
    assert rows(dsn, "SELECT state, attempt, crash_count FROM jobrunner.v_jobs") == [("queued", 0, 0)]


def test_a_cancelled_job_outlives_its_worker_no_more(dsn, ledger, never):
    """A job that somebody asked to cancel is cancelled, not released, when its worker leaves; and when its worker is killed."""
    insert(dsn, "stoppable", 2, f"jsonb_build_object('gate', '{never}', 'stubborn', true)")
    with workers(dsn, ledger.path, "-c", "1", "--grace", "100ms", app=APP) as [worker]:
        begun(ledger)
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("UPDATE jobrunner.jobs SET cancel_requested_at = now() WHERE state = 'running'")
            worker.signal(signal.SIGTERM)
            assert worker.wait(15) == 0
    wait_for_states(dsn, 5, cancelled=1, queued=1)
    with workers(dsn, ledger.path, "-c", "1", "--lease", "1.5s", app=APP) as [worker]:
        begun(ledger, number=2)
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("UPDATE jobrunner.jobs SET cancel_requested_at = now() WHERE state = 'running'")
        worker.kill()
    with workers(dsn, ledger.path, "-c", "1", app=APP):
        wait_for_states(dsn, 20, cancelled=2)


def test_a_claim_that_is_under_way_is_given_back(dsn, ledger, never):
    """A worker told to stop while the database is at its claim does not leave with jobs that it never took in: they wait for another one."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("CREATE FUNCTION public.dawdle() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(2); RETURN NEW; END'")
        try:
            connection.execute(
                "CREATE TRIGGER dawdle BEFORE UPDATE ON jobrunner.jobs FOR EACH ROW"
                " WHEN (OLD.state = 'queued' AND NEW.state = 'running') EXECUTE FUNCTION public.dawdle()"
            )
            insert(dsn, "cooperative", 1, f"jsonb_build_object('gate', '{never}')")
            claiming = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"
            with workers(dsn, ledger.path, *WAYS["process"], app=APP) as [worker]:
                wait_until(lambda: connection.execute(claiming).fetchone() == (1,), timeout=30, what="the claim")
                assert worker.stop() == 0
        finally:
            connection.execute("DROP FUNCTION public.dawdle() CASCADE")
    assert states(dsn) == {"queued": 1}
    assert rows(dsn, "SELECT attempt, crash_count FROM jobrunner.jobs") == [(0, 0)]
    assert ledger.count("begin").total() == 0
