"""`JobExecutor.map`, its shutdown, and what it refuses: calls are jobs of a real worker."""

from __future__ import annotations

import functools
import gc
import subprocess
import sys
import threading
import time
import weakref
from concurrent import futures
from pathlib import Path
from typing import Any

import psycopg
import pytest

from jobrunner import InvalidPayload
from jobrunner.allowing import FunctionRefused
from jobrunner.compat.futures import JobExecutor
from jobrunner.compat.jobfutures import cancel_all
from jobrunner.settings import CALL
from jobrunner.waiters import Watcher, watcher_of
from jobrunner.watching import LONGEST_PAUSE
from tests.support import futures_app
from tests.support.futures_app import IDLE, PATIENCE
from tests.support.waiting import wait_until

ENDING = """
import pathlib, sys, threading
from jobrunner.compat.futures import JobExecutor
from tests.support import futures_app
futures_app.jobs.use_dsn(sys.argv[1])
future = JobExecutor(futures_app.jobs).submit(futures_app.hold, sys.argv[2])

def wait():
    threading.main_thread().join()
    pathlib.Path(sys.argv[2]).touch()
    print(future.result(30))

threading.Thread(target=wait).start()
"""


# -- map


def test_map(executor, scene):
    """Results come in the order of the arguments; the shortest iterable ends it; all jobs are written at once."""
    assert list(executor.map(futures_app.add, range(5), (10, 20, 30))) == [10, 21, 32]
    assert list(executor.map(futures_app.add, [])) == []
    results = executor.map(pow, range(600), [2] * 600)
    assert scene.one("SELECT count(*) > 600 FROM jobrunner.v_jobs WHERE task = %s", (CALL,))
    assert list(results) == [number**2 for number in range(600)]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_map_in_chunks(executor, scene, size):
    """So many calls are one job; the results are the same."""
    before = scene.one("SELECT count(*) FROM jobrunner.v_jobs")
    assert list(executor.map(futures_app.echo, range(7), "abcdefg", chunksize=size)) == [((number, letter), {}) for number, letter in enumerate("abcdefg")]
    assert scene.one("SELECT count(*) FROM jobrunner.v_jobs") - before == -(-7 // size)
    assert list(executor.map(functools.partial(futures_app.add, 1, third=2), [3, 4], chunksize=2)) == [6, 7]


def test_an_exception_in_a_map(executor, idle):
    """It comes at its place; what has not begun by then is cancelled."""
    results = executor.map(futures_app.fail_at, range(6))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(futures_app.OrderError, match="order 3"):
        next(results)
    with pytest.raises(StopIteration):
        next(results)


def test_a_map_has_a_timeout(idle, scene):
    """It counts from the call; what has not begun is cancelled then."""
    began = time.monotonic()
    results = idle.map(futures_app.add, range(3), timeout=0.2)
    with pytest.raises(futures.TimeoutError):
        next(results)
    assert time.monotonic() - began >= 0.2
    assert scene.one("SELECT count(*) FROM jobrunner.jobs WHERE queue = %s", (IDLE,)) == 0


def test_a_dropped_map_is_cancelled(executor, served, scene, tmp_path):
    """Whoever leaves the iterator before its end cancels what still waits."""
    with JobExecutor(futures_app.jobs, tags=["dropped"]) as own:
        held = [executor.submit(futures_app.hold, str(tmp_path / "go")) for _ in range(3)]
        for future in held:
            wait_until(future.running, timeout=PATIENCE, what="all slots to be taken")
        results: Any = own.map(futures_app.add, range(5))
        with pytest.raises(futures.TimeoutError):
            next(own.map(futures_app.add, range(2), timeout=0))
        (tmp_path / "go").touch()
        assert next(results) == 1
        results.close()
    states = "SELECT count(*) FILTER (WHERE state = 'cancelled'), count(*) FROM jobrunner.v_jobs WHERE tags = '{dropped}'"
    cancelled, total = scene.execute(states).fetchone()
    assert total == 7
    assert cancelled >= 2


def test_a_closed_map_in_chunks(served, scene, tmp_path):
    """In chunks too the iterator can be closed: it ends, and chunks that have not begun are cancelled."""
    ready, go = tmp_path / "ready", tmp_path / "go"
    ready.touch()
    with JobExecutor(futures_app.jobs, tags=["chunks"]) as own:
        results: Any = own.map(futures_app.hold, [str(path) for path in (ready, ready, *[go] * 10)], chunksize=2)
        assert next(results) == str(ready)
        queued = "SELECT count(*) = 2 FROM jobrunner.jobs WHERE tags = '{chunks}' AND state = 'queued'"
        wait_until(lambda: scene.one(queued), timeout=PATIENCE, what="three slots to be taken, and nothing held that waits behind them")
        results.close()
        with pytest.raises(StopIteration):
            next(results)
        go.touch()
    states = "SELECT count(*) FILTER (WHERE state = 'cancelled'), count(*) FROM jobrunner.v_jobs WHERE tags = '{chunks}'"
    cancelled, total = scene.execute(states).fetchone()
    assert (cancelled, total) == (2, 6)


@pytest.mark.parametrize("size", [1, 3])
def test_a_result_that_was_handed_out_is_not_held(executor, size):
    """Who goes through a hundred thousand results has one of them in memory, whatever the size of the chunks."""
    results = executor.map(futures_app.echo, [{number} for number in range(3)], chunksize=size)
    seen = weakref.ref(next(results)[0][0])
    wait_until(lambda: seen() is None, timeout=PATIENCE, what="the first result to be gone")
    assert [args for args, _ in results] == [({1},), ({2},)]


def test_a_map_with_a_buffer(idle, executor, scene):
    """No more jobs are written ahead than the buffer holds, however many arguments there are."""
    taken: list[int] = []

    def numbers():
        for number in range(1000):
            taken.append(number)
            yield number

    results: Any = executor.map(futures_app.add, numbers(), buffersize=3)
    assert len(taken) == 3
    assert [next(results) for _ in range(4)] == [1, 2, 3, 4]
    assert len(taken) == 7
    results.close()


@pytest.mark.parametrize(
    ("sizes", "error"),
    [({"chunksize": 0}, ValueError), ({"chunksize": -1}, ValueError), ({"buffersize": 0}, ValueError), ({"buffersize": "4"}, TypeError), ({"buffersize": 1.5}, TypeError)],
)
def test_sizes_of_a_map_are_checked(idle, sizes, error):
    """A size that makes no sense is refused at the call."""
    with pytest.raises(error):
        idle.map(futures_app.add, [1], **sizes)


# -- shutdown


def test_no_calls_after_a_shutdown(served):
    """`submit` and `map` raise RuntimeError; shutting down twice is nothing."""
    executor = JobExecutor(futures_app.jobs, max_workers=3)
    executor.shutdown()
    executor.shutdown(wait=False, cancel_futures=True)
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.submit(futures_app.add, 1)
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.map(futures_app.add, [1])
    assert (executor._shutdown, executor._max_workers) == (True, 3)
    with pytest.raises(ValueError, match="max_workers"):
        JobExecutor(futures_app.jobs, max_workers=0)


def test_a_shutdown_waits_for_all_jobs(served, scene, tmp_path):
    """Also for those whose futures were dropped, and for the results of a `map` that nobody took."""
    with JobExecutor(futures_app.jobs, tags=["waited"]) as executor:
        for number in range(20):
            executor.submit(futures_app.mark, str(tmp_path / str(number)))
        results = executor.map(futures_app.mark, [str(tmp_path / "a"), str(tmp_path / "b")])
        gc.collect()
    assert len(list(tmp_path.iterdir())) == 22
    assert scene.one("SELECT count(*) FROM jobrunner.jobs WHERE tags = '{waited}'") == 0
    assert list(results) == [None, None]


def test_a_shutdown_looks_often_for_a_map_that_nobody_took(served, monkeypatch):
    """Dropped without a look at its results, a `map` runs, and leaving the executor does not notice the end half a minute late."""
    looked_for = []
    enlist = Watcher.enlist

    def enlisted(watcher, waiting):
        looked_for.append(waiting)
        enlist(watcher, waiting)

    monkeypatch.setattr(Watcher, "enlist", enlisted)
    with JobExecutor(futures_app.jobs) as executor:
        executor.map(futures_app.add, range(3))
        gc.collect()
    assert [waiting.longest_pause for waiting in looked_for] == [LONGEST_PAUSE] * 3


def test_a_shutdown_cancels_what_has_not_begun(idle, executor, tmp_path):
    """With `cancel_futures` the rest is cancelled, and what runs is waited for."""
    waiting = [idle.submit(futures_app.add, number) for number in range(5)]
    idle.shutdown(cancel_futures=True)
    assert all(future.cancelled() for future in waiting)


def test_a_shutdown_cancels_what_a_worker_gives_back(idle, scene, monkeypatch):
    """A worker that has taken calls ahead gives them back when others take long: a shutdown that waits and cancels does not let them run."""
    passes, fails = [], iter([None, psycopg.OperationalError("the server is gone"), None])

    def cancel(home, notices):
        passes.append(len(notices))
        if error := next(fails, None):
            raise error
        cancel_all(home, notices)

    future, worker = idle.submit(futures_app.add, 1), scene.worker()
    scene.set(future.job_id, f"state = 'running', worker_id = {worker}, claimed_at = now(), lease = 1, attempt = 1")
    monkeypatch.setattr("jobrunner.compat.futures.cancel_all", cancel)
    thread = threading.Thread(target=idle.shutdown, kwargs={"cancel_futures": True})
    thread.start()
    try:
        wait_until(lambda: len(passes) == 2, timeout=PATIENCE, what="a second look, at which the server is gone")
    finally:  # or the end of the test would wait for it
        scene.set(future.job_id, "state = 'queued', worker_id = NULL, claimed_at = NULL, attempt = 0")
    thread.join(PATIENCE)
    assert future.cancelled()
    assert passes == [1, 1, 1]
    assert not thread.is_alive()


def test_a_shutdown_that_does_not_wait(served, tmp_path):
    """Jobs go on by themselves and their futures hear of them; what is queued stays so."""
    executor = JobExecutor(futures_app.jobs)
    future = executor.submit(futures_app.hold, str(tmp_path / "go"))
    executor.shutdown(wait=False)
    assert not future.done()
    (tmp_path / "go").touch()
    assert future.result(PATIENCE)


# -- what is refused


def test_what_cannot_travel_is_refused_at_once(idle, scene):
    """The message names the argument and what to do; nothing is written."""
    refused = [
        (lambda: idle.submit(lambda: 1), FunctionRefused, "lambda"),
        (lambda: idle.submit([].append, 1), FunctionRefused, "append"),
        (lambda: idle.submit(idle.submit, 1), FunctionRefused, "method of an object"),
        (lambda: idle.submit(time.strftime), None, ""),
        (lambda: idle.submit(Path.cwd), FunctionRefused, "method of an object"),
        (lambda: idle.submit(vars(futures_app)["system"], "true"), FunctionRefused, "may not run as jobs"),
        (lambda: idle.submit(futures_app.echo, 1, {"app": futures_app.app}), InvalidPayload, r"args\[1\].app"),
        (lambda: idle.submit(futures_app.echo, user=object()), InvalidPayload, "'user' is of type object"),
        (lambda: idle.map(futures_app.echo, [1, object()]), InvalidPayload, r"args\[0\]"),
        (lambda: idle.map(futures_app.echo, [1, object()], chunksize=2), InvalidPayload, r"\[1\].args\[0\]"),
    ]
    before = scene.one("SELECT count(*) FROM jobrunner.jobs")
    for call, error, text in refused:
        if error is None:
            before += 1
            call()
            continue
        with pytest.raises(error, match=text) as caught:
            call()
        assert caught.value.hint
    assert scene.one("SELECT count(*) FROM jobrunner.jobs") == before


@pytest.mark.parametrize(
    "args",
    [
        '{"function": "os:system", "args": ["touch MARK"]}',
        '{"function": "posix:system", "args": ["touch MARK"]}',
        '{"function": "tests.support.futures_app:system", "args": ["touch MARK"]}',
        '{"function": "tests.support.futures_app:os.system", "args": ["touch MARK"]}',
        '{"function": "builtins:eval", "args": ["open(\'MARK\', \'w\')"]}',
        '{"function": "builtins:exec", "args": ["open(\'MARK\', \'w\')"]}',
        '{"function": "subprocess:run", "args": [["touch", "MARK"]]}',
        '{"function": "tests.support.futures_app:Path.touch", "args": [{"$path": "MARK"}]}',
        '{"function": "pathlib:Path.touch", "args": [{"$path": "MARK"}]}',
        '{"function": "tests.support.futures_app:echo", "args": [{"$enum": {"class": "os:PathLike", "name": "x"}}]}',
        '{"function": "tests.support.futures_app:echo", "args": [{"$exception": {"type": "os:system", "args": ["touch MARK"], "state": {}}}]}',
        '{"function": 5}',
        '{"function": "pow", "calls": 3}',
        "{}",
    ],
)
def test_who_inserts_a_row_runs_nothing_of_his_own(scene, served, tmp_path, args):
    """A row that names what the application does not allow fails, and nothing of it has run."""
    mark = tmp_path / "mark"
    [(job_id,)] = scene.execute(
        "INSERT INTO jobrunner.jobs (task, args, max_attempts) VALUES (%s, %s, 1) RETURNING id", (CALL, args.replace("MARK", str(mark)))
    ).fetchall()
    job = futures_app.jobs.job(job_id)
    assert job.wait(PATIENCE) == "failed"
    assert not mark.exists()


def test_a_thread_that_waits_while_the_process_ends(served, tmp_path):
    """The end of the main thread waits for others that are no daemons: one that waits for a job is told all the same."""
    gate = str(tmp_path / "go")
    command = [sys.executable, "-c", ENDING, served, gate]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE * 2)
    assert done.stdout.strip() == gate, done.stderr


def test_leaving_does_not_wait_for_those_who_only_want_to_hear(idle, served):
    """The end of the process closes the watcher at once, with futures of jobs that nobody runs."""
    idle.submit(futures_app.add, 1)
    watcher = watcher_of(futures_app.jobs.dsn)
    thread = watcher._thread
    assert thread is not None
    watcher.close()
    thread.join(PATIENCE)
    assert not thread.is_alive()
