"""Flask-Executor's interface over jobs: one value of the configuration, and calls outlive the process, futures are found from any."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from concurrent import futures
from typing import Any

import psycopg
import pytest
from flask import Flask, current_app, g, has_request_context, request

from jobrunner import ConfigurationError, InvalidPayload, JobRunner
from jobrunner.allowing import FunctionRefused
from jobrunner.compat.flask_executor import Executor
from jobrunner.compat.flask_executor.futures import FutureProxy
from jobrunner.compat.futures import JobExecutor
from tests.support import futures_app
from tests.support.rows import Scene
from tests.support.waiting import wait_until
from tests.support.workers import workers

PATIENCE = 60  # seconds until what should happen is given up
app, executor, small = futures_app.app, futures_app.executor, futures_app.small
OTHER = """
import json, sys
from tests.support import futures_app
futures_app.jobs.use_dsn(sys.argv[1])
stored = futures_app.executor.futures
missing, present = stored.done("nothing"), "report" in stored._futures
result = stored.result("report", timeout=60)
print(json.dumps([missing, present, result, stored.done("report"), stored._state("report"), len(stored), list(stored._futures)]))
print(json.dumps(stored.pop("report").result()))
"""


@pytest.fixture(scope="module")
def served(server, tmp_path_factory):
    """A database with a worker of the application, for both queues."""
    ledger = tmp_path_factory.mktemp("flask") / "ledger"
    with server.temporary() as dsn:
        futures_app.jobs.use_dsn(dsn)
        with workers(dsn, ledger, "default,small", "-c", "2", "--poll", "0.2s", app="tests.support.futures_app"):
            yield dsn
        futures_app.jobs.close()


@pytest.fixture
def scene(served):
    with psycopg.connect(served, autocommit=True) as connection:
        yield Scene(connection)
        connection.execute("DELETE FROM jobrunner.job_references")


def test_one_value_of_the_configuration(served):
    """The executor is one over jobs; nothing was connected for that."""
    for kind in (JobExecutor, futures.Executor):
        assert isinstance(executor, kind)
    assert app.extensions["executor"] is executor
    assert (executor._shutdown, executor._max_workers) == (False, None)
    alone = Flask("alone")
    alone.config.update(EXECUTOR_TYPE="jobs", EXECUTOR_MAX_WORKERS="4", JOBRUNNER_DSN="postgresql://nobody@127.0.0.1:1/nowhere")
    assert Executor(alone)._max_workers == 4
    assert isinstance(alone.extensions["jobrunner"], JobRunner)


def test_calls(scene):
    """`submit`, `map` and decorated functions run in a worker; futures are proxies as before."""
    future = executor.submit(futures_app.add, 2, third=3)
    assert isinstance(future, FutureProxy)
    assert isinstance(future, futures.Future)
    assert future.result(PATIENCE) == 6
    assert list(executor.map(pow, range(4), [2] * 4, chunksize=2)) == [0, 1, 4, 9]
    assert futures_app.double(4) == 8
    assert futures_app.double.submit(4).result(PATIENCE) == 8
    assert list(futures_app.double.map([1, 2], timeout=PATIENCE)) == [2, 4]
    assert futures_app.triple.submit(4).result(PATIENCE) == 12  # defined inside a function
    with pytest.raises(futures_app.OrderError):
        executor.submit(futures_app.fail, "own").result(PATIENCE)
    assert futures.wait([executor.submit(pow, 2, 2)], PATIENCE).not_done == set()


def test_what_goes_along_with_a_call(served):
    """The worker has an app context of its own; of the request and `g` it has what `EXECUTOR_CAPTURE` names, and no more."""
    with app.test_request_context("/orders", headers={"X-Request-ID": "r-1", "X-Secret": "s"}):
        g.tenant, g.secret = ("t", 1), "s"
        found = executor.submit(futures_app.around).result(PATIENCE)
    assert found == {"shop": "books", "g": {"tenant": ("t", 1), "captured": {"request.path": "/orders", "request.headers.X-Request-ID": "r-1"}}, "job": "default"}
    assert executor.submit(futures_app.around).result(PATIENCE) == {"shop": "books", "g": {}, "job": "default"}
    assert small.submit(futures_app.around).result(PATIENCE)["job"] == "small"
    with app.app_context():
        g.tenant = 5
        assert [found["g"] for found in executor.map(futures_app.around_of, [1])] == [{"tenant": 5}]
        g.tenant = object()
        with pytest.raises(InvalidPayload, match=r"g\.tenant"):
            executor.submit(futures_app.around)


def test_everything_of_g_that_can_travel(served, monkeypatch):
    """With `g.*` what cannot travel is left out."""
    monkeypatch.setattr(executor._self, "_capture", ("g.*",))
    with app.app_context():
        g.tenant, g.connection = 5, object()
        assert executor.submit(futures_app.around).result(PATIENCE)["g"] == {"tenant": 5}


def test_options_of_the_jobs(scene, served):
    """`EXECUTOR_OPTIONS` are those of `task.options`; without them a call that raises has failed."""
    own = Flask(futures_app.__name__)
    own.config.update(EXECUTOR_TYPE="jobs", JOBRUNNER_DSN=served, EXECUTOR_OPTIONS={"max_attempts": 3, "tags": ["own"], "delay": 60})
    calls: Any = Executor(own)
    future = calls.submit(futures_app.add, 1)
    row = "SELECT max_attempts, tags, run_at > created_at FROM jobrunner.v_jobs WHERE id = %s"
    assert scene.execute(row, (future.job_id,)).fetchone() == (3, ["own"], True)
    assert future.cancel()
    own.config["EXECUTOR_OPTIONS"] = {"max_atempts": 3}
    with pytest.raises(ConfigurationError, match="max_atempts"):
        Executor(own)


def test_what_may_not_be_called(served):
    """A function of another module is refused where it is submitted, with what to do."""
    with pytest.raises(FunctionRefused, match="may not run as jobs") as caught:
        executor.submit(json.loads, "{}")
    assert "JOBRUNNER_ALLOWED_MODULES" in caught.value.hint


# -- stored futures


def test_stored_futures(scene):
    """By key: methods, attributes, and None for one that is not there; a key is taken once, and then nothing was submitted."""
    stored = executor.submit_stored("report", futures_app.add, 1)
    assert isinstance(stored, FutureProxy)
    assert stored in executor.futures
    assert (executor.futures.done("nothing"), executor.futures.pop("nothing")) == (None, None)
    count = scene.one("SELECT count(*) FROM jobrunner.v_jobs")
    with pytest.raises(ValueError, match="future_key report already exists"):
        executor.submit_stored("report", futures_app.add, 2)
    assert scene.one("SELECT count(*) FROM jobrunner.v_jobs") == count
    assert executor.futures.result("report", timeout=PATIENCE) == 2
    assert (executor.futures.done("report"), executor.futures._state("report"), executor.futures.cancel("report")) == (True, "FINISHED", False)
    assert executor.futures._futures.get("report") == stored
    assert executor.futures.pop("report") == stored
    assert stored not in executor.futures
    assert len(executor.futures) == 0


def test_stored_futures_are_found_by_another_process(scene, served):
    """A process that has submitted nothing waits for the result, and takes the key away for all."""
    executor.submit_stored("report", futures_app.echo, 1, "a")
    command = [sys.executable, "-c", OTHER, served]
    first, second = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE * 2).stdout.splitlines()
    assert json.loads(first) == [None, True, [[1, "a"], {}], True, "FINISHED", 1, ["report"]]
    assert json.loads(second) == [[1, "a"], {}]
    assert executor.futures.done("report") is None


def test_a_key_is_taken_once(scene, monkeypatch):
    """Two processes that see the same future done and pop it: one gets it. A key that was given anew in between is the new job's."""
    stored: Any = executor.futures
    first: Any = executor.submit_stored("report", futures_app.add, 1)
    second: Any = executor.submit(futures_app.add, 2)
    future_of = stored.future_of

    def interrupted(*between):
        def look(job_id):
            found = future_of(job_id)
            monkeypatch.setattr(stored, "future_of", future_of)
            stored.references.drop(stored.space, "report")  # another process was faster
            for future in between:
                stored.add("report", future)
            return found

        monkeypatch.setattr(stored, "future_of", look)

    interrupted()
    assert stored.pop("report") is None
    stored.add("report", first)
    interrupted(second)
    popped: Any = stored.pop("report")
    assert popped.job_id == second.job_id
    assert len(stored) == 0


def test_the_state_is_that_of_this_moment(scene, tmp_path):
    """PENDING, RUNNING and FINISHED follow the job without waiting for it."""
    executor.submit_stored("held", futures_app.hold, str(tmp_path / "go"))
    wait_until(lambda: executor.futures.running("held"), timeout=PATIENCE, what="the job to run")
    assert (executor.futures.done("held"), executor.futures._state("held"), executor.futures.cancel("held")) == (False, "RUNNING", False)
    (tmp_path / "go").touch()
    wait_until(lambda: executor.futures.done("held"), timeout=PATIENCE, what="the job to end")


@pytest.mark.parametrize("key", [0, (1, "a"), "json:1", "", "é", "a\0b", b"x", None])
def test_keys_of_all_kinds(scene, key):
    """Every key that a dict could have and that can travel; those that are not equal are not taken for each other."""
    stored = executor.submit_stored(key, futures_app.add, 1)
    assert executor.futures._futures.get(key) == stored
    assert list(executor.futures._futures) == [key]
    assert executor.futures.done(str(key) + " ") is None
    assert executor.futures.pop(key) == stored


def test_a_key_that_cannot_travel(scene):
    """It is refused before anything is submitted."""
    count = scene.one("SELECT count(*) FROM jobrunner.v_jobs")
    with pytest.raises(TypeError, match="future_key is of type object"):
        executor.submit_stored(object(), futures_app.add, 1)
    assert scene.one("SELECT count(*) FROM jobrunner.v_jobs") == count


def test_a_future_is_given_a_key(scene):
    """`add` stores a future of a job, once; a future of a thread is none that others could find."""
    future = executor.submit(futures_app.add, 1)
    executor.futures.add("later", future)
    assert executor.futures.result("later", PATIENCE) == 2
    with pytest.raises(ValueError, match="already exists"):
        executor.futures.add("later", future)
    with pytest.raises(TypeError, match="futures of jobs"):
        executor.futures.add("thread", futures.Future())


def test_the_oldest_finished_ones_are_dropped(scene, tmp_path):
    """With `EXECUTOR_FUTURES_MAX_LENGTH` no more are kept, but none is dropped before it is finished."""
    assert small.futures.max_length == 2
    small.submit_stored("held", futures_app.hold, str(tmp_path / "go"))
    for number in range(3):
        small.submit_stored(number, futures_app.add, number).result(PATIENCE)
    assert list(small.futures._futures) == ["held", 1, 2]
    (tmp_path / "go").touch()
    small.futures.result("held", PATIENCE)
    small.submit_stored(3, futures_app.add, 3).result(PATIENCE)
    assert list(small.futures._futures) == [2, 3]
    assert len(executor.futures) == 0  # of another executor


def test_a_key_whose_job_is_gone(scene):
    """It reads as one that is not there."""
    gone = "INSERT INTO jobrunner.job_references (space, key, job_id) VALUES ('executor:', 'gone', 1000000000)"
    scene.execute(gone)
    assert executor.futures.done("gone") is None
    assert "gone" not in executor.futures._futures
    assert list(executor.futures._futures.values()) == []
    assert executor.futures.pop("gone") is None
    assert len(executor.futures) == 0
    scene.execute(gone)
    stored = executor.submit_stored("gone", futures_app.add, 1)  # so it can be given again
    assert executor.futures._futures.get("gone") == stored
    with pytest.raises(ValueError, match="gone already exists"):
        executor.submit_stored("gone", futures_app.add, 1)
    executor.futures.pop("gone")
    scene.execute(gone)
    executor.futures.add("gone", stored)
    assert executor.futures._futures.get("gone") == stored


def test_two_processes_that_store_a_key_whose_job_is_gone(scene, monkeypatch):
    """One of them has it; the other is told, and has submitted nothing."""
    scene.execute("INSERT INTO jobrunner.job_references (space, key, job_id) VALUES ('executor:', 'gone', 1000000000)")
    stored: Any = executor.futures
    count, drop = scene.one("SELECT count(*) FROM jobrunner.v_jobs"), stored.references.drop

    def drop_and_be_slow(self, *given):
        monkeypatch.undo()
        drop(*given)
        executor.submit_stored("gone", futures_app.add, 1)  # another process was faster

    monkeypatch.setattr(type(stored.references), "drop", drop_and_be_slow)
    with pytest.raises(ValueError, match="gone already exists"):
        executor.submit_stored("gone", futures_app.add, 2)
    assert executor.futures.result("gone", PATIENCE) == 2
    assert scene.one("SELECT count(*) FROM jobrunner.v_jobs") == count + 1


def test_what_was_stored_is_stored(scene, monkeypatch, caplog):
    """When old futures cannot be dropped, that is logged: the caller has the future of the job that is written, and the next call drops them."""

    def fail(*_):
        raise psycopg.OperationalError("gone away")

    for number in range(2):
        small.submit_stored(number, futures_app.add, number).result(PATIENCE)
    with monkeypatch.context() as broken, caplog.at_level(logging.ERROR, "jobrunner.futures"):
        broken.setattr("jobrunner.references.References.trim", fail)
        assert small.submit_stored(2, futures_app.add, 2).result(PATIENCE) == 3
        small.futures.add(3, small.submit(futures_app.add, 3))
    assert caplog.text.count("could not be dropped") == 2
    assert len(small.futures) == 4
    small.futures.result(3, PATIENCE)
    small.submit_stored(4, futures_app.add, 4).result(PATIENCE)
    assert list(small.futures._futures) == [3, 4]


# -- callbacks


def test_callbacks_run_here(served):
    """In this process, in an app context, with the request in which they were added."""
    seen = []

    def note(future):
        seen.append((future.result(), current_app.name == app.name, has_request_context() and request.path))

    with app.test_request_context("/orders"):
        executor.submit(futures_app.add, 1).add_done_callback(note)
    executor.submit(futures_app.add, 2).add_done_callback(note)
    executor.add_default_done_callback(note)
    try:
        executor.submit(futures_app.add, 3)
        wait_until(lambda: len(seen) == 3, timeout=PATIENCE, what="all callbacks")
    finally:
        executor._default_done_callbacks.clear()
    assert sorted(seen) == [(2, True, "/orders"), (3, True, False), (4, True, False)]


def test_exceptions_are_propagated_when_asked_for(served, caplog):
    """What a job raises is logged in the process that submitted it."""
    own = Flask(futures_app.__name__)
    own.config.update(EXECUTOR_TYPE="jobs", EXECUTOR_PROPAGATE_EXCEPTIONS=True, JOBRUNNER_DSN=served)
    with caplog.at_level(logging.ERROR, "concurrent.futures"), Executor(own) as propagating:
        propagating.submit(futures_app.fail, "own")
    wait_until(lambda: "OrderError: order 5: gone" in caplog.text, timeout=PATIENCE, what="the exception to be logged")


# -- one value of the configuration


def test_flipping_the_type(scene, served):
    """One Executor, one call after the other in threads, as jobs, in processes, as jobs and in threads again: the same results each time."""
    calls = Executor()

    def flipped(kind):
        own = Flask(futures_app.__name__)
        own.config.update(EXECUTOR_TYPE=kind, JOBRUNNER_DSN=served)
        calls.init_app(own)
        with own.test_request_context("/orders"):
            assert calls.submit(futures_app.add, 2, third=3).result(PATIENCE) == 6
            assert list(calls.map(pow, [1, 2, 3], [2, 2, 2], timeout=PATIENCE)) == [1, 4, 9]
            stored = calls.submit_stored("answer", futures_app.echo, (1, 2))
            assert stored in calls.futures
            with pytest.raises(ValueError, match="answer already exists"):
                calls.futures.add("answer", stored)
            assert calls.futures.result("answer", timeout=PATIENCE) == (((1, 2),), {})
            assert calls.futures.pop("answer") == stored
            assert calls.futures.max_length == (None if kind == "jobs" else 50)
            with pytest.raises(ValueError, match="no"):
                calls.submit(futures_app.fail, "builtin").result(PATIENCE)
        calls.shutdown()

    before = scene.one("SELECT count(*) FROM jobrunner.v_jobs")
    for kind in ("thread", "jobs", "process", "jobs", "thread"):
        flipped(kind)
    assert scene.one("SELECT count(*) FROM jobrunner.v_jobs") == before + 2 * 6


def test_it_works_in_a_view(served):
    """The example of Flask-Executor's documentation: one request starts, others ask."""
    own = Flask(futures_app.__name__)
    own.config.update(EXECUTOR_TYPE="jobs", JOBRUNNER_DSN=served)
    calls = Executor(own)

    @own.route("/start")
    def start():
        calls.submit_stored("power", pow, 3, 4)
        return {"result": "success"}

    @own.route("/result")
    def result():
        if not calls.futures.done("power"):
            return {"status": calls.futures._state("power")}
        future = calls.futures.pop("power")
        return {"status": "done", "result": future and future.result()}

    client = own.test_client()
    assert client.get("/start").json == {"result": "success"}
    expected = {"status": "done", "result": 81}
    wait_until(lambda: client.get("/result").json == expected, timeout=PATIENCE, what="the result")
    assert client.get("/result").json == {"status": None}
