"""Limits of single jobs: where they come from, what happens when one is exceeded, what is on record, and that nobody else pays.

Each limit against each way to break it is `tools/limits_matrix.py`, which test_limits_matrix.py runs.
"""

from __future__ import annotations

import os
import signal
from typing import Any

import psycopg
import pytest

from jobrunner import JobRunner
from tests.support import limits_tasks
from tests.support.limits_app import GROWN
from tests.support.waiting import wait_until
from tests.support.workers import alive, insert, rows, states, wait_for_states, workers

pytestmark = pytest.mark.chaos

MB = 1_000_000
SAMPLED = {"JOBRUNNER_CGROUPS": "off"}
# limit → its value, what uses it up, exit_cause; where a cell of the matrix needs another value, it has it.
LIMITS = {
    "soft_time_limit": ("900ms", "wait", "timeout"),
    "time_limit": ("300ms", "wait", "timeout"),
    "cpu_limit": ("300ms", "burn", "cpu"),
    "memory_limit": (100 * MB, "grow", "memory"),
    "output_limit": (1000, "chatter", "output"),
    "max_processes": (5, "spawn", "processes"),
}
EITHER_WAY = pytest.mark.parametrize("environment", [{}, SAMPLED], ids=["groups", "sampling"])


class Notes:
    """The ledger of `limits_app`."""

    def __init__(self, path):
        self.path = path

    def events(self):
        """(event, cell, pid) of every line."""
        whole = self.path.read_text().rpartition("\n")[0] if self.path.exists() else ""  # the last line may not be all there yet
        return [(event, cell, int(pid)) for event, cell, pid, *_ in map(str.split, whole.splitlines())]

    def pid(self, event, cell):
        """The process that noted an event; 0 before."""
        return next((pid for *what, pid in self.events() if what == [event, cell]), 0)


@pytest.fixture
def notes(tmp_path):
    return Notes(tmp_path / "ledger")


def run(dsn, notes, *options, environment=None):
    """Start a worker with one slot; see `workers`."""
    return workers(dsn, notes.path, "-c", "1", *options, app=limits_tasks.__file__, environment=environment)


def drain(dsn, notes, environment=None):
    """Run all that is due, and the retries that become due at once."""
    with run(dsn, notes, "--drain", environment=environment) as [worker]:
        assert worker.wait() == 0


def attempts(dsn, columns) -> list[tuple[Any, ...]]:
    """Of all attempts, in order."""
    return rows(dsn, f"SELECT {columns} FROM jobrunner.v_attempts ORDER BY job_id, lease")


@pytest.mark.parametrize("place", ["task", "options", "update"])
def test_limits_come_from_the_row(dsn, notes, place):
    """A limit holds whether the task has it by default, an enqueue set it, or plain SQL changed the row before the start."""
    for limit, (value, load, _) in LIMITS.items():
        jobs = JobRunner(dsn=dsn)
        policy: dict[str, Any] = {limit: value} if place == "task" else {}
        task = jobs.task(name="limited", max_attempts=1, **policy)(_limited)
        job = task.options(**({limit: value} if place == "options" else {})).enqueue(load)
        if place == "update":
            with psycopg.connect(dsn) as connection:
                connection.execute(f"UPDATE jobrunner.jobs SET {limit} = %s WHERE id = %s", (value, job.id))
    drain(dsn, notes)
    assert states(dsn) == {"failed": len(LIMITS)}
    assert attempts(dsn, "exit_cause") == [(cause,) for _, _, cause in LIMITS.values()]
    assert rows(dsn, "SELECT DISTINCT attempt, crash_count FROM jobrunner.v_jobs") == [(1, 0)]


def _limited(load: str) -> None:
    """As in the application, which the worker runs: here it is only enqueued."""


def test_an_exceeded_limit_follows_the_retry_policy(dsn, notes):
    """An attempt that exceeds a limit is used up; the next follows after the job's backoff, and the last one fails the job."""
    policy = {"max_attempts": 2, "backoff": "constant", "backoff_base": "3s", "backoff_jitter": 0}
    insert(dsn, "limited", 1, "jsonb_build_object('load', 'wait')", time_limit="200ms", **policy)
    with run(dsn, notes, "--max-jobs", "1") as [worker]:
        assert worker.wait() == 0
    assert states(dsn) == {"retrying": 1}
    assert rows(dsn, "SELECT attempt, crash_count, run_at - last_error_at = backoff_base FROM jobrunner.jobs") == [(1, 0, True)]
    with run(dsn, notes):
        wait_for_states(dsn, 20, failed=1)
    assert attempts(dsn, "outcome, attempt, exit_cause") == [("retried", 1, "timeout"), ("failed", 2, "timeout")]
    assert rows(dsn, "SELECT max(started_at) - min(finished_at) >= interval '2990 ms' FROM jobrunner.v_attempts") == [(True,)]


@EITHER_WAY
def test_more_memory_on_retry(dsn, notes, environment):
    """With `memory_limit_on_retry` the attempt after one that ran out of memory has that many times the limit, in the row as well."""
    policy = {"max_attempts": 3, "backoff": "constant", "backoff_base": "0", "memory_limit": 100 * MB, "memory_limit_on_retry": 2}
    insert(dsn, "take", 1, f"jsonb_build_object('size', {110 * MB}, 'seconds', 1)", **policy)
    drain(dsn, notes, environment)
    assert rows(dsn, "SELECT state, attempt, memory_limit FROM jobrunner.v_jobs") == [("succeeded", 2, 200 * MB)]
    assert attempts(dsn, "outcome, exit_cause") == [("retried", "memory"), ("succeeded", None)]


def test_successes_are_measured(dsn, notes):
    """A success has its CPU time, waited-for processes included, and its own peak of memory: not that of an earlier job in its child."""
    insert(dsn, "take", 1, f"jsonb_build_object('size', {150 * MB})")
    insert(dsn, "burn_cpu", 1, "jsonb_build_object('seconds', 0.4)")
    drain(dsn, notes)
    query = "SELECT result, peak_memory, cpu_ms FROM jobrunner.job_history WHERE state = 'succeeded' ORDER BY id"
    found: list[tuple[Any, ...]] = rows(dsn, query)
    [(first, large, _), (second, small, cpu_ms)] = found
    assert first == second, "both ran in one process"
    assert 150 * MB < large < 250 * MB
    assert 10 * MB < small < 120 * MB
    assert 380 <= cpu_ms < 2000


@EITHER_WAY
def test_memory_of_a_grandchild_counts(dsn, notes, environment):
    """What a process of a process of the job holds counts against its memory limit, and is in the record."""
    insert(dsn, "take_below", 1, f"jsonb_build_object('size', {150 * MB}, 'seconds', 20)", memory_limit=120 * MB, max_attempts=1)
    insert(dsn, "take_below", 1, f"jsonb_build_object('size', {150 * MB}, 'seconds', 1.5)", memory_limit=400 * MB, max_attempts=1)
    drain(dsn, notes, environment)
    assert attempts(dsn, "outcome, exit_cause") == [("failed", "memory"), ("succeeded", None)]
    [(exceeded,), (within,)] = attempts(dsn, "peak_memory")
    assert exceeded >= 120 * MB
    assert within >= 150 * MB


@pytest.mark.needs("cgroups")
def test_a_helper_killed_for_memory_is_no_success(dsn, notes):
    """When the kernel kills a process of a job for its memory limit, the attempt has failed for memory whatever its task returned."""
    insert(dsn, "take_below_and_return", 1, f"jsonb_build_object('size', {400 * MB})", memory_limit=120 * MB, max_attempts=1)
    insert(dsn, "take", 1, f"jsonb_build_object('size', {MB})", memory_limit=120 * MB, max_attempts=1)
    drain(dsn, notes)
    assert attempts(dsn, "outcome, exit_cause") == [("failed", "memory"), ("succeeded", None)]


@EITHER_WAY
def test_limits_of_one_job_do_not_hold_the_next(dsn, notes, environment):
    """A job without limits that runs in the process of one with limits has none of them, and is not blamed for them."""
    insert(dsn, "take", 1, f"jsonb_build_object('size', {MB})", memory_limit=100 * MB, max_processes=2, cpu_limit="1s")
    insert(dsn, "take", 1, f"jsonb_build_object('size', {GROWN}, 'seconds', 0.5)")
    insert(dsn, "address_space", 1, "'{}'::jsonb")
    drain(dsn, notes, environment)
    assert states(dsn) == {"succeeded": 3}
    [(first,), (second,), (mapped,)] = rows(dsn, "SELECT result FROM jobrunner.v_jobs ORDER BY id")
    assert first == second, "both ran in one process"
    assert mapped == -1


@EITHER_WAY
def test_threads_are_no_processes(dsn, notes, environment):
    """Threads do not count against `max_processes`, though the kernel's own limit counts them."""
    insert(dsn, "threads", 1, "jsonb_build_object('count', 60)", max_processes=2, max_attempts=1)
    drain(dsn, notes, environment)
    assert attempts(dsn, "outcome, exit_cause") == [("succeeded", None)]


def test_address_space_is_the_backstop(dsn, notes):
    """Memory that is asked for in one go far above the limit is refused: MemoryError, on record as memory, and nothing was touched."""
    insert(dsn, "reserve", 1, "jsonb_build_object('size', 4000000000)", memory_limit=100 * MB, max_attempts=1)
    insert(dsn, "reserve", 1, "jsonb_build_object('size', 1000000)", memory_limit=100 * MB, max_attempts=1)
    drain(dsn, notes)
    assert attempts(dsn, "outcome, error_type, exit_cause") == [("failed", "MemoryError", "memory"), ("succeeded", None, None)]
    [(peak,), _] = attempts(dsn, "peak_memory")
    assert peak < 100 * MB


@EITHER_WAY
@pytest.mark.parametrize("go_on", [False, True], ids=["returned", "limit"])
def test_a_daemon_ends_with_its_job(dsn, notes, environment, go_on):
    """A double-forked process that ignores SIGTERM is dead when its job has ended: by its return, or by its limit."""
    args = f"jsonb_build_object('load', 'wait', 'go_on', {str(go_on).lower()})"
    insert(dsn, "leave_daemon", 1, args, time_limit="1s", max_attempts=1)
    with run(dsn, notes, environment=environment):
        wait_for_states(dsn, 20, **({"failed": 1} if go_on else {"succeeded": 1}))
        daemon = notes.pid("pid", "daemon")
        wait_until(lambda: not alive(daemon), timeout=10, what="the daemon to be dead, long before it ends by itself")


def test_left_processes_cost_the_child(dsn, notes):
    """A job that leaves a process behind has succeeded; the next one runs in a fresh process, and the one left behind is dead."""
    insert(dsn, "leave_daemon", 1, "jsonb_build_object('load', 'burn')")
    insert(dsn, "where", 1, "'{}'::jsonb")
    drain(dsn, notes)
    assert not alive(notes.pid("pid", "daemon"))
    [(first,), (second,)] = rows(dsn, "SELECT result FROM jobrunner.v_jobs WHERE state = 'succeeded' ORDER BY id")
    assert first != second


@pytest.mark.parametrize(("task", "caught"), [("clean_up", "caught-0.9"), ("clean_up_async", "caught-timeout")])
def test_the_soft_limit_can_be_cleaned_up_after(dsn, notes, task, caught):
    """The soft limit raises in the task, which can clean up: let through it is a timeout, swallowed the task may return."""
    for how in ("clean", "swallow"):
        insert(dsn, task, 1, f"jsonb_build_object('how', '{how}')", soft_time_limit="900ms", time_limit="20s", max_attempts=1)
    drain(dsn, notes)
    assert attempts(dsn, "outcome, error_type, exit_cause") == [
        ("failed", "jobrunner.errors.SoftTimeLimitExceeded", "timeout"),
        ("succeeded", None, None),
    ]
    assert [(event, cell) for event, cell, _ in notes.events()] == [
        (caught, "clean"), ("cleaned", "clean"), (caught, "swallow"), ("cleaned", "swallow"),
    ]  # fmt: skip
    assert rows(dsn, "SELECT result FROM jobrunner.job_history WHERE state = 'succeeded'") == [("in time",)]


def test_who_returns_when_he_is_ended_has_succeeded(dsn, notes):
    """A task that returns at SIGTERM within the second of grace has succeeded, and the next job does not meet that SIGTERM."""
    insert(dsn, "finish_late", 10, "'{}'::jsonb", time_limit="500ms", max_attempts=1, max_crashes=1)
    insert(dsn, "where", 10, "'{}'::jsonb", max_attempts=1, max_crashes=1)
    drain(dsn, notes)
    assert states(dsn) == {"succeeded": 20}


def test_who_raises_when_he_is_ended_was_ended(dsn, notes):
    """What a task raises because it is being ended does not hide why; where it was stays in the traceback."""
    insert(dsn, "raise_late", 1, "'{}'::jsonb", time_limit="1s", max_attempts=1)
    drain(dsn, notes)
    [(error_type, cause, traceback)] = attempts(dsn, "error_type, exit_cause, traceback")
    assert (error_type, cause) == ("jobrunner.errors.TimeLimitExceeded", "timeout")
    assert "raise SystemExit(3)" in str(traceback)


@pytest.mark.parametrize("columns", [{}, {"memory_limit": 200 * MB, "cpu_limit": "20s"}], ids=["unlimited", "limited"])
def test_a_kill_from_outside_is_a_crash(dsn, notes, columns):
    """SIGKILL from elsewhere is no limit exceeded: it is a crash, `signal 9`, and uses up no attempt."""
    insert(dsn, "wait_for_kill", 1, "'{}'::jsonb", max_crashes=1, **columns)
    with run(dsn, notes) as [worker]:
        os.kill(wait_until(lambda: notes.pid("begin", "kill"), timeout=20, what="the job to begin"), signal.SIGKILL)
        wait_for_states(dsn, 20, quarantined=1)
        assert worker.process.poll() is None
    [(outcome, error_type, cause, message)] = attempts(dsn, "outcome, error_type, exit_cause, message")
    assert (outcome, error_type, cause) == ("quarantined", "jobrunner.errors.WorkerProcessDied", "signal 9")
    assert "died (signal 9)" in str(message)


def test_a_job_that_closes_its_ties_is_told_so(dsn, notes):
    """A job that closes the sockets of its process is a crash whose message says that, not a riddle about signal 9."""
    insert(dsn, "close_everything", 1, "'{}'::jsonb", max_crashes=1)
    insert(dsn, "where", 1, "'{}'::jsonb")
    drain(dsn, notes)
    assert states(dsn) == {"quarantined": 1, "succeeded": 1}
    assert "closed the sockets" in str(attempts(dsn, "message")[0])


def test_an_alarm_that_a_job_leaves_does_not_strike_the_next(dsn, notes):
    """An alarm is the process's: one that is armed when its job ends is disarmed, before it can end somebody else's."""
    insert(dsn, "leave_alarm", 1, "'{}'::jsonb", max_attempts=1)
    insert(dsn, "take", 1, "jsonb_build_object('size', 1, 'seconds', 1.5)", max_attempts=1)
    drain(dsn, notes)
    [(first,), (second,)] = rows(dsn, "SELECT result FROM jobrunner.v_jobs WHERE state = 'succeeded' ORDER BY id")
    assert first == second, "not in one process: nothing was shown"


def test_closed_streams_cost_the_child(dsn, notes):
    """A job that closes stdout does not leave that to the next one, which prints in a fresh process."""
    insert(dsn, "close_streams", 1, "'{}'::jsonb", max_attempts=1)
    insert(dsn, "where", 1, "'{}'::jsonb", max_attempts=1)
    drain(dsn, notes)
    [(first,), (second,)] = rows(dsn, "SELECT result FROM jobrunner.v_jobs WHERE state = 'succeeded' ORDER BY id")
    assert first != second
