"""The embedded worker's setting, what shows that a process serves, and how another process finds the app."""

from __future__ import annotations

import contextlib
import os
import site
import sys
import tempfile
import threading
from types import ModuleType, SimpleNamespace
from wsgiref.util import setup_testing_defaults

import pytest
from flask import Flask
from werkzeug.test import EnvironBuilder

from jobrunner import ConfigurationError, JobRunner
from jobrunner.compat.flask_executor import Executor
from jobrunner.compat.futures import JobExecutor
from jobrunner.hosting import address, host, serving
from jobrunner.hosting.beating import beating
from jobrunner.hosting.host import Host
from jobrunner.hosting.setting import NEVER, VARIABLE, Setting, find_grace, find_setting, is_forbidden, parse
from jobrunner.worker import roots
from tests.support.waiting import wait_until


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("threads:2", Setting("threads", 2)),
        ("processes:2", Setting("processes", 2)),
        ("2", Setting("threads", 2)),
        (2, Setting("threads", 2)),
        (" threads:3 ", Setting("threads", 3)),
        ("threads:2 mail:4,default", Setting("threads", 2, "mail:4,default")),
        ("off", None),
        ("OFF", None),
        ("0", None),
        (0, None),
        (False, None),
        ("", None),
        ("threads:0", None),
    ],
)
def test_what_may_be_said(value, expected):
    """Kind and number, a number alone for threads, queues behind a space, or nothing at all."""
    assert parse(value, "it") == expected
    if expected is not None:
        assert parse(str(expected), "it") == expected


@pytest.mark.parametrize("value", [True, "on", "yes", "thread:2", "threads", "threads:", "threads:x", "threads:-1", -1, 2.0, "1001", ["threads:2"]])
def test_what_says_nothing_is_refused(value):
    """The message names the source and the value; the hint shows what can be written."""
    with pytest.raises(ConfigurationError, match=r"THERE=.*is no embedded worker") as caught:
        parse(value, "THERE")
    assert "threads:2" in caught.value.hint


@pytest.mark.parametrize("queues", ["mail:0", "mail:", ":2", "mail,", "mail,mail", "mail:x", "mail:2,mail:3"])
def test_queues_that_make_no_sense_are_refused(queues):
    """The message names the queues."""
    with pytest.raises(ConfigurationError, match="are no queues"):
        parse(f"threads:2 {queues}", "it")


def test_the_order_of_sources(monkeypatch):
    """The argument, then the environment, then the Flask config; an argument of False is an answer, None is not."""
    config = {VARIABLE: "threads:3"}
    assert find_setting(None, {}) is None
    assert find_setting(None, config) == Setting("threads", 3)
    monkeypatch.setenv(VARIABLE, "processes:4")
    assert find_setting(None, config) == Setting("processes", 4)
    assert find_setting("threads:5", config) == Setting("threads", 5)
    assert find_setting(False, config) is None
    monkeypatch.setenv(VARIABLE, "off")
    assert find_setting(None, config) is None
    monkeypatch.setenv(VARIABLE, "much")
    with pytest.raises(ConfigurationError, match=f"^{VARIABLE}='much'"):
        JobRunner()
    with pytest.raises(ConfigurationError, match="JobRunner: embedded_worker='many'"):
        JobRunner(embedded_worker="many")
    monkeypatch.delenv(VARIABLE)
    app = Flask("shop")
    app.config[VARIABLE] = "lots"
    with pytest.raises(ConfigurationError, match=f"Flask config {VARIABLE}='lots'"):
        JobRunner(app)


def test_the_grace(monkeypatch):
    """Below gunicorn's own by default, short in development, as the config says, as the environment says."""
    config = {"JOBRUNNER_EMBEDDED_GRACE": "3s"}
    assert find_grace({}, development=False).total_seconds() == 20
    assert find_grace({}, development=True).total_seconds() == 5
    assert find_grace(config, development=True).total_seconds() == 3
    monkeypatch.setenv("JOBRUNNER_EMBEDDED_GRACE", "1m")
    assert find_grace(config, development=False).total_seconds() == 60
    monkeypatch.setenv("JOBRUNNER_EMBEDDED_GRACE", "long")
    with pytest.raises(ConfigurationError, match="JOBRUNNER_EMBEDDED_GRACE='long'"):
        JobRunner(Flask("shop"), embedded_worker="threads:1")


def real(**more):
    """What a server adds to a request, by the rules of PEP 3333."""
    environ: dict[str, object] = {}
    setup_testing_defaults(environ)
    return environ | more


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        (real(SERVER_SOFTWARE="gunicorn/26.2.0"), True),
        (real(SERVER_SOFTWARE="waitress"), True),
        (real(SERVER_SOFTWARE="Werkzeug/3.1.3"), True),
        (real(**{"uwsgi.version": b"2.0"}), True),
        (real(**{"mod_wsgi.version": (5, 0, 0)}), True),
        (real(**{"wsgi.file_wrapper": object}), True),
        (real(), False),
        (EnvironBuilder(path="/").get_environ(), False),
        (real(SERVER_SOFTWARE="Apache/2.4", **{"wsgi.run_once": True}), False),
        (real(SERVER_SOFTWARE="Werkzeug/3.1.3", **{"wsgi.multiprocess": True}), False),
        (real(SERVER_SOFTWARE="gunicorn/26.2.0", **{"wsgi.multiprocess": True}), True),
    ],
)
def test_which_requests_show_that_a_process_serves(environ, expected):
    """Those of servers that stay, by what they add; not those of test clients, of CGI, of a process for each request."""
    assert serving.is_served(environ) is expected


def test_a_test_starts_nothing(monkeypatch):
    """Neither a test client, nor a real server in a process of pytest, nor an app that is being tested, nor where it is forbidden."""
    app = Flask("shop")
    jobs = JobRunner(app, dsn="postgresql:///nowhere", embedded_worker="threads:1")
    host = Host(app, jobs)
    before = threading.active_count()
    app.test_client().get("/")
    assert not host.notice(real(SERVER_SOFTWARE="Werkzeug/3.1.3"))
    monkeypatch.setattr(serving, "is_tested", lambda: False)
    app.testing = True
    assert not host.notice(real(SERVER_SOFTWARE="Werkzeug/3.1.3"))
    app.testing = False
    assert not is_forbidden()
    monkeypatch.setenv(NEVER, "1")
    assert is_forbidden()
    assert host.notice(real(SERVER_SOFTWARE="Werkzeug/3.1.3"))
    assert threading.active_count() == before


class Worker:
    """As much of a gunicorn worker as is looked at."""

    def __init__(self):
        self.signs: list[str] = []
        self.nr = self.max_requests = 0

    def run(self):
        self.signs.append("run")

    def notify(self):
        self.signs.append("alive")


def test_gunicorn_has_signs_of_life_while_its_worker_prepares(monkeypatch):
    """The first start of a project's own PostgreSQL may take longer than gunicorn waits for a worker that says nothing."""
    worker = Worker()
    app = Flask("shop")
    accompanied = Host(app, JobRunner(app, dsn="postgresql:///nowhere", embedded_worker="threads:1"))
    monkeypatch.setattr(Host, "_run", lambda *_: None)

    def prepare(_jobs):
        wait_until(lambda: worker.signs.count("alive") >= 3, timeout=30, what="signs of life")
        worker.signs.append("prepared")

    monkeypatch.setattr(host, "_prepare", prepare)
    serving.accompany(worker, accompanied.begin, accompanied.leave)
    worker.run()
    assert worker.signs.index("prepared") < worker.signs.index("run")


@pytest.mark.parametrize(
    ("leaving", "served", "expected"),
    [(None, 0, True), (None, 5, False), (SystemExit(0), 0, True), (SystemExit(1), 0, False), (ValueError(), 0, False)],
    ids=["told", "recycled", "signal", "hanging", "broken"],
)
def test_who_may_wait_for_its_worker(monkeypatch, leaving, served, expected):
    """A gunicorn worker that was told to leave; not one that leaves to be replaced, nor one that was found hanging or is broken."""
    worker, waits = Worker(), []
    worker.nr, worker.max_requests = served, 5

    def run():
        if leaving is not None:
            raise leaving

    monkeypatch.setattr(worker, "run", run)
    serving.accompany(worker, lambda beat: beat(), lambda **given: waits.append(given["wait"]))
    with contextlib.nullcontext() if leaving is None else pytest.raises(type(leaving)):
        worker.run()
    assert waits == [expected]


def test_a_second_signal_amid_the_leaving_does_not_end_the_wait():
    """A terminal's Ctrl-C comes twice. Where the second one breaks the leaving off, the end of the process leaves again, and waits."""
    app = Flask("shop")
    leaver = Host(app, JobRunner(app, dsn="postgresql:///nowhere", embedded_worker="threads:1"))
    done: list[str] = []

    class Beside:
        pid = 1

        def let_go(self):
            done.append("let go")
            if len(done) == 1:
                raise SystemExit(0)

        def wait(self, *_):
            done.append("waited")
            return True

    leaver._worker = Beside()  # type: ignore[assignment]
    with pytest.raises(SystemExit):
        leaver.leave()
    leaver.leave()
    leaver.leave()
    assert done == ["let go", "let go", "waited"]


def test_what_was_done_beside_signs_of_life_raises_here():
    """As if it had been done in this thread, with and without anybody who wants signs."""
    for beat in (None, lambda: None):
        with pytest.raises(ZeroDivisionError):
            beating(lambda: 1 / 0, beat)


@pytest.fixture
def module(monkeypatch, tmp_path):
    """A module by name, with a file."""

    def make(name, file, **values):
        made = ModuleType(name)
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        vars(made).update(values, __file__=str(path))
        monkeypatch.setitem(sys.modules, name, made)
        return path

    monkeypatch.chdir(tmp_path)
    return make


def test_the_address_is_where_this_very_app_is(module, tmp_path, monkeypatch):
    """The module that holds the app, by its name here and by its file elsewhere; what was named outright goes before that."""
    app = Flask("flaskless_shop")
    with pytest.raises(ConfigurationError, match="no module holds the app 'flaskless_shop'"):
        address.find_address(app, None)
    assert address.find_address(app, "wsgi:make('x')") == "wsgi:make('x')"
    module("flaskless_shop", "flaskless_shop/__init__.py", other=Flask("flaskless_shop"))
    assert address.find_address(app, None) == "flaskless_shop"
    module("flaskless_shop.web", "flaskless_shop/web.py", application=app)
    assert address.find_address(app, "wsgi:make('x')") == "flaskless_shop.web:application"
    file = module("flaskless_shop.web", "src/flaskless_shop/web.py", application=app)
    (file.parent / "__init__.py").touch()
    assert address.find_address(app, None) == f"{file}:application"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", str(tmp_path / "src")]))
    assert address.find_address(app, None) == "flaskless_shop.web:application"
    monkeypatch.setenv("JOBRUNNER_APP", "named:app")
    assert address.find_address(app, None) == "named:app"


def test_a_worker_has_the_module_under_the_same_name(module, tmp_path, monkeypatch):
    """What is found in another way than by the worker's own path, and whose file alone would give it another name, is imported by its name.

    Rows name functions by their module: in a worker that has it as `web`, those of `flaskless_shop.web` would be strangers.
    """
    app = Flask("flaskless_shop.web")
    module("flaskless_shop.web", "src/flaskless_shop/web.py", application=app)  # no `__init__.py`: a namespace package
    where = address.find_address(app, None)
    assert where == "flaskless_shop.web:application"
    monkeypatch.setenv("PYTHONPATH", "/before")
    assert address.root_of(where) == address.root_of("flaskless_shop.web:make('x')") == str(tmp_path / "src")
    assert address.environment(JobRunner(app, dsn="postgresql://h/shop"))["PYTHONPATH"] == "/before"  # programs that jobs start inherit it
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "src"))
    assert address.root_of(where) is None
    monkeypatch.delenv("PYTHONPATH")
    module("flaskless_shop.web", "flaskless_shop/web.py", application=app)  # below the working directory
    assert address.root_of(where) is None


def test_the_directory_of_the_app_is_behind_the_standard_library(monkeypatch):
    """Nothing in it is taken for a module of Python's own, and no installed package for the application."""
    installed = site.getsitepackages()[0]
    monkeypatch.setattr(sys, "path", ["", "/given", "/python/library", installed, "/editable"])
    monkeypatch.setattr(roots, "added", [])
    for _ in range(2):
        roots.add("/shop/src")
    assert sys.path == ["", "/given", "/python/library", "/shop/src", installed, "/editable"]
    assert roots.added == ["/shop/src"]


def test_a_module_that_was_loaded_from_a_file_is_found_by_it(module):
    """Nothing on any path gives a module this name: its file is all there is."""
    app = Flask("flaskless_shop")
    file = module("flaskless_shop", "elsewhere/other_name.py", app=app)
    assert address.find_address(app, None) == f"{file}:app"


def test_the_program_itself_is_found_by_its_file(module, tmp_path):
    """An app in the file that Python was started with is imported from that file, whose name is another then."""
    app = Flask("__main__")
    file = module("__main__", "elsewhere/serve.py", app=app)
    assert address.find_address(app, None) == f"{file}:app"


def test_the_program_of_a_package_is_found_by_its_name(module, tmp_path, monkeypatch):
    """`python -m shop.web` is what rows name `shop.web`, whether the package has an `__init__.py` or not."""
    app = Flask("__main__")
    module("__main__", "src/flaskless_shop/web.py", app=app, __spec__=SimpleNamespace(name="flaskless_shop.web"))
    where = address.find_address(app, None)
    assert where == "flaskless_shop.web:app"
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert address.root_of(where) == str(tmp_path / "src")


def test_the_worker_s_environment(monkeypatch):
    """The database that was found, nothing that starts a second worker or a second server."""
    monkeypatch.setenv("WERKZEUG_RUN_MAIN", "true")
    app = Flask("shop")
    app.config |= {"JOBRUNNER_DSN": "postgresql://h/shop", "JOBRUNNER_DATABASES": {"post": "postgresql://h/post"}, "JOBRUNNER_ROUTES": {"mail": "post"}}
    jobs = JobRunner(app, embedded_worker="threads:1")

    @jobs.task
    def a(): ...

    @jobs.task(queue="slow")
    def b(): ...

    found = address.environment(jobs)
    assert (found["JOBRUNNER_DSN"], found[NEVER], found["FLASK_RUN_FROM_CLI"]) == ("postgresql://h/shop", "1", "true")
    assert found["JOBRUNNER_ROUTES"] == '{"mail": "post"}'
    assert "WERKZEUG_RUN_MAIN" not in found
    assert address.queues(jobs, Setting("threads", 1)) == "default,slow,mail"
    assert address.queues(jobs, Setting("threads", 1, "mail:2")) == "mail:2"


def test_the_queues_of_executors_are_served():
    """A named executor's jobs are in the queue of its name, which no task and no route names; nobody would run them."""
    app = Flask("shop")
    app.config |= {"JOBRUNNER_DSN": "postgresql://h/shop", "MAIL_EXECUTOR_TYPE": "jobs"}
    Executor(app, "mail")
    jobs = app.extensions["jobrunner"]
    JobExecutor(jobs, queue="reports")
    assert jobs.queue_names() == ["mail", "reports"]
    assert address.queues(jobs, Setting("threads", 1)) == "default,mail,reports"


def test_two_apps_of_one_module_need_two_workers(module):
    """Two that one module holds, or that one factory has made, are told apart by their address: each worker imports one of them."""
    shop, admin, made = (Flask("flaskless_shop") for _ in range(3))
    module("flaskless_shop", "flaskless_shop.py", shop=shop, admin=admin)

    def key(app, known=None):
        return address.key(app, JobRunner(dsn="postgresql://h/a"), Setting("threads", 1), known)

    assert len({key(shop), key(admin), key(made, "flaskless_shop:make('a')"), key(made, "flaskless_shop:make('b')")}) == 4
    assert key(shop) == key(shop, "flaskless_shop:make('a')")  # the module holds it, whatever the server was told


def test_there_is_no_seat_before_there_is_an_address(monkeypatch, tmp_path):
    """The seat is made when it is known where the app is, and not before: it would be another one than that of the other processes, for good."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    app = Flask("flaskless_shop")
    hosted = Host(app, JobRunner(app, dsn="postgresql:///nowhere", embedded_worker="threads:1"))
    for _ in range(2):
        hosted._again_at = 0.0
        with pytest.raises(ConfigurationError, match="no module holds the app"):
            hosted._has_seat(Setting("threads", 1))
        hosted._put_off()
    assert (hosted._seat, hosted._pause) == (None, 4 * host.PAUSE)
    hosted._known = "flaskless_shop:make('x')"
    hosted._again_at = float("inf")
    assert not hosted._has_seat(Setting("threads", 1))
    hosted._again_at = 0.0
    assert hosted._has_seat(Setting("threads", 1))
    hosted.leave(wait=False)


def test_what_needs_a_worker_of_its_own():
    """The same app on another database, or to be run in another way, is another seat; the same again is the same."""
    def key(dsn, setting):
        app = Flask("shop")
        return address.key(app, JobRunner(app, dsn=dsn), parse(setting, "it") or Setting("threads", 1), "shop:app")

    assert key("postgresql://h/a", "threads:2") == key("postgresql://h/a", "2")
    assert len({key("postgresql://h/a", "2"), key("postgresql://h/b", "2"), key("postgresql://h/a", "3"), key("postgresql://h/a", "processes:2")}) == 4
    assert "secret" not in key("postgresql://u:secret@h/a", "2")
