"""What a real worker makes of Celery tasks that crash, run too long or are stopped, and what it says at its start."""

from __future__ import annotations

import signal
import socket

import psycopg
import pytest

from jobrunner.compat.celery.exceptions import TimeLimitExceeded, WorkerLostError
from tests.compat.celery.conftest import APPS
from tests.support.waiting import wait_until
from tests.support.workers import workers

PATIENCE = 60  # seconds
APP = f"{APPS}/behaving.py"


@pytest.fixture
def behaving(load, tmp_path, monkeypatch):
    """The app, whose tasks note what they do below `tmp_path`."""
    monkeypatch.setenv("BEHAVING_DIR", str(tmp_path))
    return load("behaving")


def notes(tmp_path):
    """What the tasks and receivers have noted."""
    path = tmp_path / "notes"
    return path.read_text().splitlines() if path.exists() else []


def wait_for_note(tmp_path, line):
    """Wait until a line has been noted."""
    wait_until(lambda: line in notes(tmp_path), timeout=PATIENCE, what=f"{line!r}")


def test_a_task_whose_process_died_has_failed_visibly(behaving, dsn, tmp_path):
    """Without acks_late it is not begun again: WorkerLostError, quarantined, and brought back by an operator."""
    sent = behaving.crash.delay()
    with workers(dsn, tmp_path / "ledger", "celery", "--drain", app=APP) as [worker]:
        worker.wait()
    assert (sent.state, type(sent.info)) == ("FAILURE", WorkerLostError)
    assert notes(tmp_path).count("crash began") == 1
    with pytest.raises(WorkerLostError):
        sent.get(timeout=PATIENCE)
    home, job_id = behaving.celery.backend.find(sent.id)
    home.job(job_id).retry()
    assert sent.state == "FAILURE"  # a result that was final is kept
    assert behaving.celery.AsyncResult(sent.id).state == "PENDING"
    with workers(dsn, tmp_path / "ledger", "celery", "--drain", app=APP) as [worker]:
        worker.wait()
    assert notes(tmp_path).count("crash began") == 2


@pytest.mark.parametrize("variable", ["celery", "retry"])
def test_acks_late_or_the_setting_lets_it_run_again(behaving, dsn, tmp_path, monkeypatch, variable):
    """acks_late=True: it runs again, with any setting. JOBRUNNER_CELERY_ON_CRASH=retry: so does one without."""
    monkeypatch.setenv("JOBRUNNER_CELERY_ON_CRASH", variable)
    late, early = behaving.crash_once.delay(), behaving.crash.delay()
    with workers(dsn, tmp_path / "ledger", "celery", "-c", "1", app=APP):
        assert late.get(timeout=PATIENCE) == "survived"
        wait_until(early.ready, timeout=PATIENCE, what="the task that always crashes to have ended")
    assert early.state == "FAILURE"
    assert notes(tmp_path).count("crash_once began") == 2
    assert notes(tmp_path).count("crash began") == (1 if variable == "celery" else 3)


def test_time_limits_raise_and_kill(behaving, dsn, tmp_path):
    """The soft one raises in the task, where Celery's name for it is caught; the hard one is FAILURE with TimeLimitExceeded."""
    hard, soft = behaving.endless.delay(), behaving.soft.delay()
    with workers(dsn, tmp_path / "ledger", "celery", "-c", "2", app=APP):
        assert soft.get(timeout=PATIENCE) == "cleaned up"
        wait_until(hard.ready, timeout=PATIENCE, what="the limit to have ended the task")
    assert (hard.state, type(hard.info)) == ("FAILURE", TimeLimitExceeded)
    assert "time_limit of 1 s" in str(hard.info)


def test_a_deploy_does_not_make_a_task_run_twice(behaving, dsn, tmp_path):
    """Stopped amid its run, one without acks_late has failed; one with it is given back and runs again."""
    once, again = behaving.once.delay(), behaving.again.delay()
    with workers(dsn, tmp_path / "ledger", "celery", "-c", "2", "--grace", "0s", app=APP) as [worker]:
        wait_for_note(tmp_path, "once began")
        wait_for_note(tmp_path, "again began")
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0
    assert (once.state, type(once.info), again.state) == ("FAILURE", WorkerLostError, "PENDING")
    (tmp_path / "second").touch()
    with workers(dsn, tmp_path / "ledger", "celery", "--drain", app=APP) as [worker]:
        assert worker.wait() == 0
    assert again.get(timeout=PATIENCE) == "ran again"
    assert notes(tmp_path).count("once began") == 1


def test_a_task_that_had_to_be_killed_for_a_deploy_is_not_begun_again(behaving, dsn, tmp_path):
    """It does not let itself be stopped, so its process is killed and the job given back; the next worker fails it instead of running it."""
    sent = behaving.stubborn.delay()
    with workers(dsn, tmp_path / "ledger", "celery", "-c", "1", "--grace", "0s", app=APP) as [worker]:
        wait_for_note(tmp_path, "stubborn began")
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0
    with workers(dsn, tmp_path / "ledger", "celery", "--drain", app=APP) as [worker]:
        assert worker.wait() == 0
    assert (sent.state, type(sent.info)) == ("FAILURE", WorkerLostError)
    assert notes(tmp_path).count("stubborn began") == 1


def test_a_task_that_was_stopped_before_it_began_runs_afterwards(behaving, dsn, tmp_path):
    """Without acks_late as well: nothing of its body had run, so it is given back, and not called interrupted."""
    sent = behaving.stopped_early.delay()
    with workers(dsn, tmp_path / "ledger", "celery", "-c", "1", "--grace", "0s", app=APP) as [worker]:
        wait_for_note(tmp_path, "stopped_early began")
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0
    assert sent.state == "PENDING"
    (tmp_path / "second").touch()
    with workers(dsn, tmp_path / "ledger", "celery", "--drain", app=APP) as [worker]:
        assert worker.wait() == 0
    assert sent.get(timeout=PATIENCE) == "ran"


def test_a_crash_after_a_retry_was_asked_for_costs_nothing(behaving, dsn, tmp_path):
    """The retry follows when it was asked for, not at once, and the body has not run once more for it."""
    sent = behaving.dies_after_retry.delay()
    with workers(dsn, tmp_path / "ledger", "celery", "-c", "1", app=APP), psycopg.connect(dsn, autocommit=True) as connection:
        query = "SELECT state, attempt, run_at > now() + interval '50 minutes' FROM jobrunner.v_jobs"
        wait_until(lambda: connection.execute(query).fetchone() == ("retrying", 1, True), timeout=PATIENCE, what="the retry to be waited for")
        outcomes = "SELECT outcome FROM jobrunner.v_attempts ORDER BY lease"
        assert [outcome for (outcome,) in connection.execute(outcomes)] == ["crashed", "retried"]
        assert sent.state == "RETRY"
        assert [line for line in notes(tmp_path) if line.startswith("dies_after_retry")] == ["dies_after_retry 0"]
        connection.execute("UPDATE jobrunner.jobs SET run_at = now()")
        assert sent.get(timeout=PATIENCE) == "done"
    assert [line for line in notes(tmp_path) if line.startswith("dies_after_retry")] == ["dies_after_retry 0", "dies_after_retry 1"]


def test_a_task_knows_the_name_of_its_worker(behaving, dsn, tmp_path):
    """What `--name` says is `request.hostname`, and that of the worker in its signals; `celery@host` without it."""
    named = behaving.hostname.delay()
    with workers(dsn, tmp_path / "ledger", "celery", "--drain", "--name", "mail@here", app=APP) as [worker]:
        assert worker.wait() == 0
    assert named.get(timeout=PATIENCE) == "mail@here"
    assert "worker of worker_ready behaving mail" in notes(tmp_path)
    unnamed = behaving.hostname.delay()
    with workers(dsn, tmp_path / "ledger", "celery", "--drain", app=APP) as [worker]:
        assert worker.wait() == 0
    assert unnamed.get(timeout=PATIENCE) == f"celery@{socket.gethostname()}"


def test_a_connection_of_a_receiver_is_closed_before_the_first_child(behaving, dsn, tmp_path):
    """A receiver of worker_ready may send a task: the process from which children are forked keeps no connection of it."""
    environment = {"BEHAVING_SENDS": "1"}
    with workers(dsn, tmp_path / "ledger", "celery", "-c", "1", app=APP, environment=environment), psycopg.connect(dsn, autocommit=True) as connection:
        wait_for_note(tmp_path, "signal worker_process_init")
        assert connection.execute("SELECT queue FROM jobrunner.v_jobs").fetchall() == [("elsewhere",)]
        query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'jobrunner' AND datname = current_database()"
        wait_until(lambda: connection.execute(query).fetchone() == (0,), timeout=PATIENCE, what="no connection to be left")
        assert behaving.add.delay(1, 2).get(timeout=PATIENCE) == 3


def test_limits_of_a_worker_are_for_tasks_that_have_none(behaving, dsn, tmp_path):
    """--time-limit kills and --soft-time-limit raises, in tasks without one; a limit of a task's own goes before them."""
    own, hard = behaving.own_limits.delay(), behaving.once.delay()
    with workers(dsn, tmp_path / "ledger", "celery", "-c", "2", "--time-limit", "1s", app=APP):
        assert own.get(timeout=PATIENCE) == "took its time"
        wait_until(hard.ready, timeout=PATIENCE, what="the limit to have ended the task")
    assert (hard.state, type(hard.info)) == ("FAILURE", TimeLimitExceeded)
    assert "time_limit of 1 s" in str(hard.info)
    soft, memory = behaving.unlimited.delay(), behaving.unlimited.delay()
    with psycopg.connect(dsn, autocommit=True) as connection:  # a job with limits of another kind
        _, job_id = behaving.celery.backend.find(memory.id)
        connection.execute("UPDATE jobrunner.jobs SET memory_limit = 2000000000 WHERE id = %s", (job_id,))
    with workers(dsn, tmp_path / "ledger", "celery", "-c", "2", "--soft-time-limit", "3s", app=APP):
        assert soft.get(timeout=PATIENCE) == memory.get(timeout=PATIENCE) == "cleaned up"


def test_a_rate_is_that_of_the_worker(behaving, dsn, tmp_path):
    """All its children share it, and who is too early takes no slot: another task runs meanwhile. It can be switched off."""
    for _ in range(6):
        behaving.hourly.delay()
    with workers(dsn, tmp_path / "ledger", "celery", "-c", "3", app=APP), psycopg.connect(dsn, autocommit=True) as connection:
        query = "SELECT state, count(*) FROM jobrunner.v_jobs WHERE task = 'behaving.hourly' GROUP BY 1 ORDER BY 1"
        wait_until(lambda: connection.execute(query).fetchall() == [("scheduled", 5), ("succeeded", 1)], timeout=PATIENCE, what="one of them to have run")
        assert behaving.add.delay(1, 2).get(timeout=PATIENCE) == 3
    unlimited = {"BEHAVING_UNLIMITED": "1"}
    sent = [behaving.hourly.delay() for _ in range(3)]
    with workers(dsn, tmp_path / "ledger", "celery", "--drain", app=APP, environment=unlimited) as [worker]:
        assert worker.wait() == 0
    assert [one.state for one in sent] == ["SUCCESS"] * 3


def test_a_worker_says_what_becomes_of_the_configuration(behaving, dsn, tmp_path):
    """Three deviations; each setting that is set; options, signals and schedules that are not honoured; and no value of any."""
    with workers(dsn, tmp_path / "ledger", "celery", "--drain", app=APP, environment={"BEHAVING_BEAT": "1"}) as [worker]:
        assert worker.wait() == 0
        lines = [line.split(maxsplit=2) for line in worker.text().splitlines() if line.startswith("  ")]
    found = {(rating, what) for rating, what, *_ in lines}
    assert {what for rating, what in found if rating == "deviation"} == {"crash:", "data:", "commit:"}
    assert {("understood", "broker_url"), ("ignored", "worker_prefetch_multiplier"), ("unsupported", "beat_schedule"), ("understood", "rate_limit")} <= found
    assert any(words[:2] == ["unsupported", "signal"] and words[2].startswith("beat_init ") for words in lines)
    assert ("understood", "task_default_rate_limit") in found
    assert "hunter2" not in worker.text()
    assert "swordfish" not in worker.text()


def test_signals_of_a_worker_come_in_order(behaving, dsn, tmp_path):
    """Modules, logging, the worker, its children, the task, and the ends; with the arguments that Celery gives."""
    behaving.add.delay(1, 2)
    with workers(dsn, tmp_path / "ledger", "celery", "-c", "1", "--drain", app=APP) as [worker]:
        assert worker.wait() == 0
    wait_for_note(tmp_path, "signal worker_shutdown")
    order = [line.removeprefix("signal ").split()[0] for line in notes(tmp_path) if line.startswith("signal ")]
    start = ["import_modules", "celeryd_init", "after_setup_logger", "after_setup_task_logger", "celeryd_after_setup", "worker_init", "worker_ready"]
    # The command looks at the app in a process of its own first, to ask for its database: its modules are imported there as well.
    own = order[order.index("celeryd_init") - 1 :]
    assert own[: len(start)] == start
    assert own.index("worker_process_init") < own.index("task_prerun") < own.index("task_success") < own.index("task_postrun")
    assert own.index("task_postrun") < own.index("worker_process_shutdown") < own.index("worker_shutdown")
    assert "signal task_prerun args kwargs task task_id" in notes(tmp_path)
    assert "signal task_postrun args kwargs retval state task task_id" in notes(tmp_path)
    assert "signal worker_process_shutdown exitcode pid" in notes(tmp_path)
    for name in ("celeryd_init", "celeryd_after_setup", "worker_init", "worker_ready", "worker_shutdown"):
        assert f"worker of {name} behaving celery" in notes(tmp_path)


def test_what_a_task_logs_is_in_the_jobs_log_and_on_stderr(behaving, dsn, tmp_path):
    """The task's logger prints with name and id at the level that was asked for, once; the job's log has the record as well."""
    sent = behaving.add.delay(1, 2)
    environment = {"JOBRUNNER_CELERY_LOGLEVEL": "INFO"}
    with workers(dsn, tmp_path / "ledger", "celery", "--drain", app=APP, environment=environment) as [worker]:
        assert worker.wait() == 0
        printed = [line for line in worker.text().splitlines() if "adding" in line]
    assert [line.split("] ", 1)[1] for line in printed] == [f"behaving.add[{sent.id}]: adding"]
    with psycopg.connect(dsn) as connection:
        kept = connection.execute("SELECT logger, message FROM jobrunner.v_logs ORDER BY line").fetchall()
    assert ("behaving", "adding") in kept
    assert any(name == "celery.app.trace" and f"behaving.add[{sent.id}] succeeded in" in message for name, message in kept)


def test_what_a_task_prints_is_logged(behaving, dsn, tmp_path):
    """A record for each line, by Celery's logger, on stderr and in the job's log; with `worker_redirect_stdouts` off it is printed."""
    sent = behaving.speak.delay()
    with workers(dsn, tmp_path / "ledger", "celery", "--drain", app=APP) as [worker]:
        assert worker.wait() == 0
        assert [line.split("] ", 1)[1] for line in worker.text().splitlines() if line.endswith(("in parts", "half a line", "logged"))] == [
            "said in parts", "logged", "half a line",
        ]  # fmt: skip
    with psycopg.connect(dsn) as connection:
        kept = connection.execute("SELECT logger, level, message FROM jobrunner.v_logs WHERE logger <> 'celery.app.trace' ORDER BY line").fetchall()
    assert [(name, message) for name, _, message in kept] == [
        ("celery.redirected", "said in parts"), ("of_somebody", "logged"), ("celery.redirected", "half a line"),
    ]  # fmt: skip
    assert sent.state == "SUCCESS"
    behaving.speak.delay()
    with workers(dsn, tmp_path / "ledger", "celery", "--drain", app=APP, environment={"BEHAVING_PRINTS": "1"}) as [worker]:
        assert worker.wait() == 0
        assert "said in parts" in worker.text().splitlines()


def test_formats_of_the_log_are_those_of_the_settings(behaving, dsn, tmp_path):
    """That of tasks, and that of everything else; with `worker_hijack_root_logger` off a worker adds no handler."""
    for environment, wanted in (({"BEHAVING_FORMAT": "own"}, ["behaving.add says adding", "rest said in parts"]), ({"BEHAVING_FORMAT": "none"}, [])):
        behaving.add.delay(1, 2)
        behaving.speak.delay()
        environment["JOBRUNNER_CELERY_LOGLEVEL"] = "INFO"
        with workers(dsn, tmp_path / "ledger", "celery", "-c", "1", "--drain", app=APP, environment=environment) as [worker]:
            assert worker.wait() == 0
            printed = [line for line in worker.text().splitlines() if line.endswith((" adding", " in parts"))]
        assert [line for line in printed if line != "said in parts"] == wanted


def test_a_receiver_of_setup_logging_does_it_all(behaving, dsn, tmp_path):
    """Then no handler of ours is there."""
    behaving.add.delay(1, 2)
    with workers(dsn, tmp_path / "ledger", "celery", "--drain", app=APP, environment={"BEHAVING_LOGGING": "1"}) as [worker]:
        assert worker.wait() == 0
        printed = [line for line in worker.text().splitlines() if "adding" in line]
    assert printed == ["own adding"]
