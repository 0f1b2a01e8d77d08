"""Flask-Executor's interface over threads and processes: a changed import changes nothing else."""

from __future__ import annotations

import logging
import threading
from concurrent import futures
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, current_app, g, request, session

from jobrunner import ConfigurationError
from jobrunner.app import find_jobrunner
from jobrunner.compat.celery import Celery
from jobrunner.compat.flask_executor import Executor
from jobrunner.compat.flask_executor.executor import ExecutorJob, propagate_exceptions_callback
from jobrunner.compat.flask_executor.futures import FutureCollection, FutureProxy
from jobrunner.compat.flask_executor.helpers import InstanceProxy, str2bool
from tests.support.cli import Program
from tests.support.waiting import wait_until

PATIENCE = 30  # seconds until what should happen is given up
GUIDE = Path(__file__).parents[2] / "docs" / "migrate" / "flask-executor.md"
AROUND = """
import sys


def double(number):
    return number * 2, number


if __name__ == "__main__":
    if sys.argv[1] == "start":
        executor.submit_stored("double", double, 21)
        assert list(executor.map(pow, [], [])) == []
    if sys.argv[-1] == "ask":
        print(executor.futures.result("double", timeout=60))
"""


@pytest.fixture
def app():
    app = Flask("pools")
    app.config.update(SECRET_KEY="x", SHOP="books")
    return app


@pytest.fixture
def executor(app):
    executor = Executor(app)
    yield executor
    executor.shutdown()


def square(number):
    return number * number


def fail():
    raise ValueError("no")


# -- making one


def test_threads_are_the_default(app, executor):
    """The pool is made at once, passes for itself, and its attributes are there."""
    assert isinstance(executor._self, ThreadPoolExecutor)
    assert isinstance(executor, ThreadPoolExecutor)
    assert app.extensions["executor"] is executor
    assert app.config["EXECUTOR_TYPE"] == "thread"
    assert executor._shutdown is False
    assert executor._max_workers > 0


@pytest.mark.parametrize(("kind", "cls"), [("thread", ThreadPoolExecutor), ("process", ProcessPoolExecutor)])
@pytest.mark.parametrize("workers", [3, "3"])
def test_the_type_and_the_workers(app, kind, cls, workers):
    """As the configuration says, in a factory too."""
    app.config.update(EXECUTOR_TYPE=kind, EXECUTOR_MAX_WORKERS=workers, EXECUTOR_FUTURES_MAX_LENGTH="7")
    executor = Executor()
    executor.init_app(app)
    assert isinstance(executor, cls)
    assert isinstance(executor, futures.Executor)
    assert executor._max_workers == 3
    assert executor.futures.max_length == 7
    executor.shutdown()


def test_an_unknown_type(app):
    """It is refused, with its name."""
    app.config["EXECUTOR_TYPE"] = "greenlet"
    with pytest.raises(ValueError, match="greenlet is not a valid executor type"):
        Executor(app)


def test_names(app):
    """A named executor has its own configuration and extension; a name is one word."""
    app.config.update(EXECUTOR_MAX_WORKERS=2, MAIL_EXECUTOR_MAX_WORKERS=4)
    plain, mail = Executor(app), Executor(app, name="mail")
    assert (plain._max_workers, mail._max_workers) == (2, 4)
    assert app.extensions["mailexecutor"] is mail
    assert (mail.name, mail.EXECUTOR_TYPE, mail.EXECUTOR_PUSH_APP_CONTEXT) == ("mail", "MAIL_EXECUTOR_TYPE", "MAIL_EXECUTOR_PUSH_APP_CONTEXT")
    with pytest.raises(ValueError, match="letters, numbers or underscores"):
        Executor(app, name="two words")
    plain.shutdown()
    mail.shutdown()


# -- calls


def test_submit_and_map(app, executor):
    """Inside and outside of requests."""
    assert executor.submit(square, 3).result(PATIENCE) == 9
    assert list(executor.map(square, range(4), timeout=PATIENCE)) == [0, 1, 4, 9]
    with app.test_request_context("/x"):
        assert executor.submit(square, 3).result(PATIENCE) == 9


def test_processes(app):
    """Functions run in other processes; nothing of the request goes with them."""
    app.config["EXECUTOR_TYPE"] = "process"
    with Executor(app) as executor, app.test_request_context("/x"):
        assert executor.submit(pow, 3, 2).result(PATIENCE) == 9
        assert list(executor.map(pow, [1, 2], [2, 2], chunksize=2)) == [1, 4]
        with pytest.raises(TypeError, match="Can't decorate"):
            executor.job(square)


def test_contexts_go_with_a_call(app, executor):
    """A call sees the app, the request, the session and a copy of `g` as they were, also after the request."""

    def look():
        g.mine = g.get("mine", 0) + 1
        return current_app.config["SHOP"], request.path, session["user"], g.tenant, g.mine, threading.current_thread() is not threading.main_thread()

    with app.test_request_context("/orders"):
        g.tenant = [1]
        session["user"] = 5
        first = executor.submit(look)
        results = executor.map(lambda _: look(), range(5))
        g.tenant = [2]
        assert not hasattr(g, "mine")
    assert first.result(PATIENCE) == ("books", "/orders", 5, [1], 1, True)
    assert set(map(str, results)) == {str(first.result())}


@pytest.mark.parametrize("off", [False, "false", 0, "0", None])
def test_without_an_app_context_of_its_own(app, off):
    """With `EXECUTOR_PUSH_APP_CONTEXT` off only the request is copied."""
    app.config["EXECUTOR_PUSH_APP_CONTEXT"] = off
    with Executor(app) as executor:
        with app.test_request_context("/orders"):
            g.tenant = 1
            assert executor.submit(lambda: (request.path, g.get("tenant"))).result(PATIENCE) == ("/orders", None)
        assert executor.submit(lambda: bool(current_app)).result(PATIENCE) is False


def test_decorated_functions(app, executor):
    """They are submitted by themselves, and a plain call runs them here."""

    @executor.job
    def triple(number):
        """Three times."""
        return number * 3

    assert isinstance(triple, ExecutorJob)
    assert (vars(triple)["__name__"], triple.__doc__, vars(triple)["__wrapped__"]) == ("triple", "Three times.", triple.fn)
    assert triple(2) == 6
    assert triple.submit(3).result(PATIENCE) == 9
    assert list(triple.map([1, 2])) == [3, 6]
    assert triple.submit_stored("three", 1).result(PATIENCE) == 3
    assert executor.futures.pop("three").result(0) == 3


# -- callbacks


def test_default_callbacks(app, executor):
    """They are called with each future that is submitted from then on."""
    called: list[object] = []
    executor.submit(square, 1)
    executor.add_default_done_callback(called.append)
    future = executor.submit(square, 2)
    wait_until(lambda: called == [future], timeout=PATIENCE, what="the callback")


def test_exceptions_are_propagated_when_asked_for(app, caplog):
    """`EXECUTOR_PROPAGATE_EXCEPTIONS` has `concurrent.futures` log what a call raises."""
    app.config["EXECUTOR_PROPAGATE_EXCEPTIONS"] = "true"
    with Executor(app) as executor, caplog.at_level(logging.ERROR, "concurrent.futures"):
        future = executor.submit(fail)
        with pytest.raises(ValueError, match="no"):
            future.result(PATIENCE)
        executor.submit(square, 1).result(PATIENCE)
    assert "ValueError: no" in caplog.text
    done: Future[int] = Future()
    done.set_result(1)
    propagate_exceptions_callback(done)


def test_exceptions_are_propagated_once(app):
    """Also by an executor that is given another app, or the same one once more, as for a flip of its type."""
    app.config["EXECUTOR_PROPAGATE_EXCEPTIONS"] = "true"
    executor = Executor(app)
    executor.shutdown()
    executor.init_app(app)
    assert executor._default_done_callbacks == [propagate_exceptions_callback]
    executor.shutdown()


def test_callbacks_have_contexts(app, executor):
    """A callback sees the request in which it was added, and can submit."""
    seen: list[object] = []
    with app.test_request_context("/orders"):
        g.tenant = 1
        future = executor.submit(square, 2)
        future.add_done_callback(lambda done: seen.append((request.path, g.tenant, done.result(), executor.submit(square, 3).result(PATIENCE))))
    wait_until(lambda: seen == [("/orders", 1, 4, 9)], timeout=PATIENCE, what="the callback")
    future.add_done_callback(lambda _: seen.append(current_app.name))
    wait_until(lambda: seen[-1] == "pools", timeout=PATIENCE, what="the callback outside of a request")


# -- futures


def test_a_proxy_is_a_future(executor):
    """It passes for one, is equal to the one that it stands for, and goes into `wait` and `as_completed`."""
    future = executor.submit(square, 2)
    assert isinstance(future, Future)
    assert isinstance(future, FutureProxy)
    assert future == future._self
    assert hash(future) == hash(future._self)
    assert future == FutureProxy(future._self, executor)
    assert futures.wait([future], PATIENCE).done == {future}
    assert list(futures.as_completed([future], PATIENCE)) == [future]
    assert (future._state, future.exception(0)) == ("FINISHED", None)
    assert repr(future).startswith("<FutureProxy( <Future")


def test_a_proxy_of_anything():
    """Attributes and class are the other object's, but for those of the proxy's own classes."""

    class Proxy(InstanceProxy):
        own = 1

    proxy = Proxy([3])
    assert isinstance(proxy, list)
    assert (proxy.own, proxy.count(3), proxy._self) == (1, 1, [3])
    proxy.own = 2
    assert proxy.own == 2
    assert repr(proxy) == "<Proxy( [3] )>"
    with pytest.raises(AttributeError):
        proxy.missing  # noqa: B018


def test_a_collection_of_futures():
    """Methods and attributes by key; None for one that is not there; the oldest are dropped; a key is taken once."""
    collection, first = FutureCollection(max_length=2), Future[int]()
    collection.add("a", first)
    first.set_result(3)
    assert (collection.done("a"), collection.result("a", timeout=1), collection._state("a")) == (True, 3, "FINISHED")
    assert (collection.done("b"), collection.pop("b")) == (None, None)
    assert first in collection
    with pytest.raises(ValueError, match="future_key a already exists"):
        collection.add("a", Future())
    with pytest.raises(AttributeError):
        collection.missing("a")
    collection.add(0, Future())
    collection.add((1, 2), Future())
    assert len(collection) == 2
    assert first not in collection
    assert collection._futures.get("a") is None
    assert FutureCollection().max_length == 50


def test_stored_futures(executor):
    """A stored future is found by its key until it is popped; a second one with the key is not submitted."""
    ran = threading.Event()
    stored = executor.submit_stored("report", square, 4)
    assert executor.futures.result("report", PATIENCE) == 16
    assert stored in executor.futures
    with pytest.raises(ValueError, match="report already exists"):
        executor.submit_stored("report", ran.set)
    assert executor.futures.pop("report") == stored
    assert stored not in executor.futures
    assert not ran.is_set()


@pytest.mark.parametrize(("value", "truth"), [(True, True), ("YES", True), ("t", True), (1, True), ("0", False), (False, False), (None, False), ("on", False)])
def test_flags(value, truth):
    """A flag means yes by the words that Flask-Executor takes."""
    assert str2bool(value) is truth


@pytest.mark.parametrize("names", ["user.id", ["request"], ["g."], "cookies.x"])
def test_what_cannot_be_captured(app, names):
    """A name that stands for nothing is refused where the executor is made."""
    app.config.update(EXECUTOR_TYPE="jobs", EXECUTOR_CAPTURE=names)
    with pytest.raises(ConfigurationError, match="EXECUTOR_CAPTURE"):
        Executor(app)


# -- from pools to jobs


@pytest.mark.parametrize("lines", ["the import", "both"])
def test_the_first_lines_of_the_guide(tmp_path, dsn, lines):
    """The change that `docs/migrate/flask-executor.md` begins with: with the import alone calls run as before; with both, in a worker."""
    diff = GUIDE.read_text().split("```diff\n")[1].split("```")[0].splitlines()
    assert [line[0] for line in diff if line] == ["-", "+", " ", "+", " "]
    after = [line[1:] for line in diff if line[:1] in {"+", " "}]
    if lines == "the import":
        after = [line for line in after if "EXECUTOR_TYPE" not in line]
    (tmp_path / "shop.py").write_text("\n".join(["from flask import Flask", *after, AROUND]))
    script = Program(tmp_path, dsn, ("shop.py",))
    if lines == "the import":
        assert script("start", "ask").out == "(42, 21)\n"
        return
    script("start")
    worker = Program(tmp_path, dsn)
    worker("--app", "shop", "work", "--drain")
    assert script("ask").out == "(42, 21)\n"
    [job] = worker("jobs", "list", "--json").json["items"]
    assert (job["task"], job["state"]) == ("jobrunner.call", "succeeded")


def test_an_app_that_has_a_jobrunner_by_way_of_celery():
    """The executor takes that one: with a JobRunner of its own, workers of the app would not have Celery's tasks."""
    own = Flask("shop")
    own.config.update(EXECUTOR_TYPE="jobs", JOBRUNNER_DSN="postgresql://nobody@127.0.0.1:1/nowhere")
    celery = own.extensions["celery"] = Celery("shop", set_as_current=False)
    calls: Any = Executor(own)
    assert calls._self._jobs is celery.__jobrunner__
    assert find_jobrunner(own) is celery.__jobrunner__
    celery.close()


def test_what_is_wrong_with_a_jobrunner_that_is_there_is_said():
    """A malformed setting is the error, and not that the app has a JobRunner already."""
    own = Flask("shop")
    own.config.update(EXECUTOR_TYPE="jobs", JOBRUNNER_DSN="postgresql://nobody@127.0.0.1:1/nowhere", JOBRUNNER_EMBEDDED_WORKER="many")
    celery = own.extensions["celery"] = Celery("shop", set_as_current=False)
    with pytest.raises(ConfigurationError, match="JOBRUNNER_EMBEDDED_WORKER"):
        Executor(own)
    celery.close()
