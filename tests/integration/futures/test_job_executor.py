"""`JobExecutor` is an executor of `concurrent.futures`: its calls are jobs of a real worker, its futures are real ones."""

from __future__ import annotations

import asyncio
import functools
import gc
import operator
import os
import time
import weakref
from concurrent import futures
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import pytest

from jobrunner import JobNotFound
from jobrunner.compat.futures import JobExecutor, JobFuture
from jobrunner.compat.jobfutures import UNWANTED_PAUSE
from jobrunner.errors import RemoteTraceback, UnstorableResult, WorkerProcessDied
from jobrunner.settings import CALL
from jobrunner.values import RemoteError
from jobrunner.watching import LONGEST_PAUSE
from tests.support import futures_app
from tests.support.futures_app import PATIENCE
from tests.support.waiting import wait_until
from tests.support.workers import workers

# -- values


def test_a_call_is_a_job(executor, scene):
    """The result comes back; the row says which function ran with what."""
    future = executor.submit(futures_app.add, 2, third=3)
    assert issubclass(type(future), futures.Future)
    assert future.result(PATIENCE) == 6
    row = scene.execute("SELECT task, args, state, max_attempts FROM jobrunner.v_jobs WHERE id = %s", (future.job_id,)).fetchone()
    assert row == (CALL, {"function": "tests.support.futures_app:add", "args": [2], "kwargs": {"third": 3}}, "succeeded", 1)


def test_builtins_partials_tasks_and_coroutines(executor):
    """A partial is its function with more arguments; a coroutine is awaited; C functions and decorated ones run, too."""
    assert executor.submit(pow, 2, 5).result(PATIENCE) == 32
    assert executor.submit(operator.mul, 6, 7).result(PATIENCE) == 42
    assert executor.submit(functools.partial(futures_app.add, 1, third=5), 2).result(PATIENCE) == 8
    assert executor.submit(futures_app.double, 4).result(PATIENCE) == 8
    assert executor.submit(futures_app.echo_async, (1,)).result(PATIENCE) == ((1,), CALL)


def test_values_come_back_as_what_they_are(executor):
    """Arguments and results are equal and of the same types after their way through the database and back."""
    values: tuple[object, ...] = (
        (1, (2,)), {3, "a"}, frozenset({(1,)}), b"\0\xff", datetime(2026, 1, 1, tzinfo=UTC), date(2026, 1, 1), timedelta(days=-1), Decimal("1.10"),
        UUID(int=5), Path("/a"), futures_app.Colour.RED, 1e300, float("-inf"), 10**50, "\0", {1: 2, "$tuple": [1]}, None, [],
    )  # fmt: skip
    args, kwargs = executor.submit(futures_app.echo, *values, named={"a": (1,)}).result(PATIENCE)
    assert (args, kwargs) == (values, {"named": {"a": (1,)}})
    assert [type(value) for value in args] == [type(value) for value in values]


# -- exceptions


@pytest.mark.parametrize(
    ("kind", "expected", "text"),
    [
        ("builtin", ValueError, "('no', 1, (2, {3}))"),
        ("file", FileNotFoundError, "[Errno 2] No such file or directory: '/nowhere/at/all'"),
        ("own", futures_app.OrderError, "order 5: gone"),
        ("exit", SystemExit, "3"),
    ],
)
def test_exceptions_come_back_as_what_they_are(executor, kind, expected, text):
    """Built-in ones and those of an allowed module: type, arguments, attributes; the worker's traceback is their cause."""
    error = executor.submit(futures_app.fail, kind).exception(PATIENCE)
    assert (type(error), str(error)) == (expected, text)
    assert isinstance(error.__cause__, RemoteTraceback)
    assert "futures_app.py" in error.__cause__.tb
    assert getattr(error, "number", 5) == 5
    assert getattr(error, "filename", None) == ("/nowhere/at/all" if kind == "file" else None)


def test_an_exception_that_is_false(executor):
    """One with a length of 0 is raised all the same, with what it carries: a failed call never looks like one that returned None."""
    future = executor.submit(futures_app.fail, "false")
    with pytest.raises(futures_app.NothingError) as caught:
        future.result(PATIENCE)
    assert caught.value.args == ("nothing", 5)
    assert future.exception(0) is caught.value
    with pytest.raises(futures_app.NothingError):
        next(executor.map(futures_app.fail, ["false"]))


def test_an_exception_does_not_hold_its_future(executor):
    """Whoever keeps what a call raised does not keep its future, nor those of a `map`, by the frames of the traceback."""
    future = executor.submit(futures_app.fail, "builtin")
    seen = weakref.ref(future)
    with pytest.raises(ValueError, match="no") as caught:
        future.result(PATIENCE)
    del future
    wait_until(lambda: seen() is None, timeout=PATIENCE, what="the future to be gone")
    results = executor.map(futures_app.fail, ["builtin", "own"])
    with pytest.raises(ValueError, match="no") as of_map:
        next(results)
    names = [frame.frame.f_locals for error in (caught, of_map) for frame in error.traceback]
    assert not [value for found in names for value in found.values() if isinstance(value, JobFuture)]
    assert not any(found.get("waiting") for found in names)


def test_an_exception_from_elsewhere_has_its_name_and_text(executor):
    """A class of a module that is not allowed is not rebuilt."""
    error = executor.submit(futures_app.fail, "foreign").exception(PATIENCE)
    assert isinstance(error, RemoteError)
    assert (error.type_name, error.text) == ("json.decoder.JSONDecodeError", "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)")
    assert isinstance(error.__cause__, RemoteTraceback)
    assert "json.loads" in error.__cause__.tb


def test_what_cannot_come_back(executor):
    """A result that cannot travel is the call's error, and says what to return."""
    with pytest.raises(UnstorableResult, match=r"return value\[0\] is of type object.*return an id"):
        executor.submit(futures_app.unreturnable).result(PATIENCE)
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        executor.submit(futures_app.add).result(PATIENCE)


def test_a_call_that_kills_its_process(served):
    """The future is told; the worker and the other calls go on."""
    with JobExecutor(futures_app.jobs, max_crashes=1) as executor:
        error = executor.submit(futures_app.fail, "killed").exception(PATIENCE)
        assert isinstance(error, WorkerProcessDied)
        assert "signal 9" in str(error)
        assert executor.submit(futures_app.add, 1).result(PATIENCE) == 2


def test_a_call_outlives_its_worker(served, tmp_path):
    """Killed amid a call with the whole worker, the job runs again in another one, and the future that waits gets its result."""
    options = ("fragile", "-c", "1", "--poll", "0.2s", "--lease", "3s")
    future = JobExecutor(futures_app.jobs, queue="fragile").submit(futures_app.hold, str(tmp_path / "go"))
    with workers(served, tmp_path / "ledger", *options, app="tests.support.futures_app") as [first]:
        wait_until(future.running, timeout=PATIENCE, what="the job to run")
        first.kill()
    assert not future.done()
    (tmp_path / "go").touch()
    with workers(served, tmp_path / "ledger", *options, app="tests.support.futures_app"):
        assert future.result(PATIENCE) == str(tmp_path / "go")
    assert futures_app.jobs.job(future.job_id).state == "succeeded"


def test_attempts_and_the_checkpoint_of_a_call(served):
    """The next attempt finds no checkpoint of ours; after the last one what the exception carried is there all the same."""
    with JobExecutor(futures_app.jobs, max_attempts=2, backoff_base=0) as executor:
        assert executor.submit(futures_app.checkpointing).result(PATIENCE) is None
        error = executor.submit(futures_app.fail, "own").exception(PATIENCE)
    assert isinstance(error, futures_app.OrderError)
    assert error.number == 5


def test_a_retry_by_hand_finds_no_checkpoint_of_ours(executor):
    """What was kept of the exception is not taken for a checkpoint of the function's own."""
    future = executor.submit(futures_app.remember)
    assert isinstance(future.exception(PATIENCE), futures_app.OrderError)
    job = futures_app.jobs.job(future.job_id)
    job.retry()
    job.wait(PATIENCE)
    assert executor.future(future.job_id).exception(0).args == ("order 2: found None",)


# -- states


def test_a_future_runs_and_cannot_be_cancelled_then(executor, tmp_path):
    """PENDING, RUNNING, FINISHED follow the job; a running job is not cancelled."""
    future = executor.submit(futures_app.hold, str(tmp_path / "go"))
    wait_until(future.running, timeout=PATIENCE, what="the future to be running")
    assert not future.cancel()
    assert not future.done()
    with pytest.raises(futures.TimeoutError):
        future.result(0)
    (tmp_path / "go").touch()
    assert future.result(PATIENCE) == str(tmp_path / "go")
    assert (future.running(), future.done(), future.cancelled(), future.cancel()) == (False, True, False, False)


def test_a_job_that_waits_is_cancelled_in_the_database(idle, scene):
    """`cancel` is True, once and again; whoever waits is told, callbacks run, and the row is cancelled."""
    first, second = idle.submit(futures_app.add, 1), idle.submit(futures_app.add, 1)
    called: list[object] = []
    first.add_done_callback(called.append)
    assert first.cancel()
    assert first.cancel()
    assert (first.cancelled(), first.done(), called) == (True, True, [first])
    with pytest.raises(futures.CancelledError):
        first.result(0)
    done, waiting = futures.wait([first, second], timeout=0)
    assert (done, waiting) == ({first}, {second})
    states = "SELECT array_agg(state ORDER BY id) FROM jobrunner.v_jobs WHERE id = ANY (%s)"
    assert scene.one(states, ([first.job_id, second.job_id],)) == ["cancelled", "queued"]


def test_a_job_that_somebody_else_cancels(idle):
    """The operator's cancel is the future's."""
    future = idle.submit(futures_app.add, 1)
    futures_app.jobs.job(future.job_id).cancel()
    with pytest.raises(futures.CancelledError):
        future.result(PATIENCE)
    assert future.cancelled()


def test_cancelling_what_is_cancelled_already(idle, scene, monkeypatch):
    """True whoever did it, at once: an operator, another thread of this process, or one whose word is on its way."""
    monkeypatch.setattr(JobFuture, "watch", lambda _: None)  # nobody has told this process
    by_operator, by_thread = idle.submit(futures_app.add, 1), idle.submit(futures_app.add, 1)
    futures_app.jobs.job(by_operator.job_id).cancel()
    assert by_operator.cancel()
    assert by_operator.cancelled()
    by_thread.notice.settled.set()  # seen by the watcher, and not delivered yet
    futures_app.jobs.job(by_thread.job_id).cancel()
    assert by_thread.cancel()
    by_thread.notice.settled.clear()
    gone = idle.future(idle.submit(futures_app.add, 1).job_id)
    scene.execute("DELETE FROM jobrunner.jobs WHERE id = %s", (gone.job_id,))
    assert not gone.cancel()


def test_a_job_between_two_attempts_is_cancelled(idle, scene):
    """A future that was running counts as cancelled when its job waited for the next attempt."""
    future = idle.submit(futures_app.add, 1)
    worker = scene.worker()
    scene.set(future.job_id, f"state = 'running', worker_id = {worker}, claimed_at = now(), lease = 1, attempt = 1")
    wait_until(future.running, timeout=PATIENCE, what="the future to be running")
    scene.set(future.job_id, "state = 'queued', worker_id = NULL, claimed_at = NULL")
    assert future.cancel()
    assert future.cancelled()


def test_waiting_for_several(executor, idle):
    """`wait` and `as_completed` of the standard library take these futures, together with others."""
    quick = [executor.submit(futures_app.add, number) for number in range(3)]
    never = idle.submit(futures_app.add, 1)
    done, waiting = futures.wait([*quick, never], timeout=PATIENCE, return_when=futures.FIRST_COMPLETED)
    assert done
    assert done | waiting == {*quick, never}
    assert sorted(future.result() for future in futures.as_completed(quick, timeout=PATIENCE)) == [1, 2, 3]
    failing = executor.submit(futures_app.fail, "own")
    done, _ = futures.wait([failing, never], timeout=PATIENCE, return_when=futures.FIRST_EXCEPTION)
    assert failing in done


def test_in_an_event_loop(executor, idle):
    """`asyncio.wrap_future` gives results and exceptions; cancelling the wrapper cancels the job."""

    async def main():
        assert await asyncio.wrap_future(executor.submit(futures_app.add, 1)) == 2
        with pytest.raises(futures_app.OrderError):
            await asyncio.wrap_future(executor.submit(futures_app.fail, "own"))
        assert await asyncio.get_running_loop().run_in_executor(executor, futures_app.add, 5) == 6
        future = idle.submit(futures_app.add, 1)
        wrapped = asyncio.wrap_future(future)
        wrapped.cancel()
        with pytest.raises(asyncio.CancelledError):
            await wrapped
        return future

    assert asyncio.run(asyncio.wait_for(main(), PATIENCE)).cancelled()


def test_callbacks(executor):
    """They get the future, whether it is done already or was dropped; one that raises does not keep others from being called."""
    called: list[object] = []
    future = executor.submit(futures_app.add, 1)
    future.add_done_callback(lambda _: 1 / 0)
    future.add_done_callback(lambda done: called.append(done.result()))
    futures.wait([future], PATIENCE)
    future.add_done_callback(called.append)
    wait_until(lambda: len(called) == 2, timeout=PATIENCE, what="both callbacks")
    assert set(map(type, called)) == {int, JobFuture}
    executor.submit(futures_app.add, 5).add_done_callback(lambda done: called.append(done.result()))
    gc.collect()
    wait_until(lambda: 6 in called, timeout=PATIENCE, what="the callback of a dropped future")


def test_a_future_that_nobody_holds_is_looked_for_rarely(idle):
    """Whoever fires and forgets a hundred thousand calls does not make the watcher ask for all of them four times a second."""
    future = idle.submit(futures_app.add, 1)
    notice = future.notice
    assert notice.longest_pause == LONGEST_PAUSE
    del future
    gc.collect()
    assert notice.longest_pause == UNWANTED_PAUSE


def test_a_future_of_a_job_that_is_there(executor, idle, tmp_path):
    """Any process makes a future of a job's id: finished, running or waiting as the job is now."""
    done = executor.submit(futures_app.add, 1)
    assert done.result(PATIENCE) == 2
    other = JobExecutor(futures_app.jobs)
    again = other.future(done.job_id)
    assert again.done()
    assert again.result(0) == 2
    held = executor.submit(futures_app.hold, str(tmp_path / "go"))
    wait_until(lambda: other.future(held.job_id).running(), timeout=PATIENCE, what="the job to be running")
    again = other.future(held.job_id)
    (tmp_path / "go").touch()
    assert again.result(PATIENCE)
    assert other.future(idle.submit(futures_app.add, 1).job_id).cancel()
    with pytest.raises(JobNotFound):
        other.future(10**15)


def test_a_forked_process_hears_of_the_jobs_of_its_parent(executor):
    """A server that loads the application and forks: a future from before the fork has its result there, as in the parent."""
    future = executor.submit(time.sleep, 1.5)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if future.result(PATIENCE / 2) is None else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert future.result(PATIENCE) is None
