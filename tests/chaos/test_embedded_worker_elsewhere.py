"""The embedded worker beside other servers than gunicorn, in a project without any configuration, and where there must be none."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import pytest

from jobrunner.embedded import Server
from jobrunner.hosting.setting import NEVER
from tests.support.commands import run
from tests.support.waiting import wait_until
from tests.support.webservers import FLASK, GUNICORN, PATIENCE, embedded_workers, python_processes, serving
from tests.support.workers import Ledger, insert, rows, states, wait_for_states

pytestmark = [pytest.mark.chaos, pytest.mark.needs("linux")]

FRESH = """
from flask import Flask
from jobrunner import JobRunner

app = Flask(__name__)
jobs = JobRunner(app, embedded_worker="threads:2")


@jobs.task
def add(a: int, b: int) -> int:
    return a + b


@app.post("/add/<int:a>/<int:b>")
def enqueue_add(a, b):
    return {"sum": add.enqueue(a, b).result(timeout=60)}
"""
FACTORY = """
from flask import Flask
from jobrunner import JobRunner

jobs = JobRunner(embedded_worker=1)


@jobs.task
def where() -> str:
    from flask import current_app

    return current_app.config["PLACE"]


def create_app(place="nowhere"):
    app = Flask(__name__)
    app.config["PLACE"] = place
    jobs.init_app(app)
    return app
"""
CALLS = """
from flask import Flask
from jobrunner import JobRunner
from jobrunner.compat.flask_executor import Executor
from jobrunner.compat.futures import JobExecutor

app = Flask(__name__)
app.config["MAIL_EXECUTOR_TYPE"] = "jobs"
jobs = JobRunner(app)
reports, mail = JobExecutor(jobs, queue="reports"), Executor(app, "mail")


def pair(number):
    return number, __name__


@app.get("/calls")
def calls():
    mail.submit_stored("one", pair, 3)
    found = jobs.background(pair, 1).result(timeout=60), reports.submit(pair, 2).result(60), mail.futures.result("one", 60)
    mail.futures.pop("one")
    return {"found": found, "mapped": list(reports.map(pair, [4, 5], timeout=60)), "tuples": [type(each).__name__ for each in found]}
"""
WAITRESS = """
from shop import app
from waitress import create_server

server = create_server(app, host="127.0.0.1", port=0)
print(f"http://127.0.0.1:{server.effective_port}", flush=True)
server.run()
"""


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "ledger")


@pytest.fixture
def environment(dsn, ledger):
    """What the server finds."""
    return {"JOBRUNNER_DSN": dsn, "JOBRUNNER_EMBEDDED_WORKER": "2", "JOBRUNNER_CHAOS_LEDGER": str(ledger.path), "FLASK_APP": "shop"}


@pytest.fixture
def open_home():
    """A directory that the account of an embedded PostgreSQL can enter; its cluster is destroyed afterwards."""
    path = Path(tempfile.mkdtemp(prefix="jobrunner-embedding-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    Server(path / "pg").destroy()
    shutil.rmtree(path)


def settle(server):
    """Ask for a page, and be sure that whatever that starts has been started."""
    server.ask()
    return server.worker()


DEVELOPING = {
    "flask run": FLASK,
    "flask run with the reloader": (*FLASK, "--debug"),
    "app.run": ("-c", "import shop; shop.app.run(port=0)"),
    "app.run with the reloader": ("serve.py",),
}


@pytest.mark.parametrize("way", DEVELOPING)
def test_the_development_server(dsn, ledger, tmp_path, environment, way):
    """Werkzeug's server: one worker, in the process that serves, as soon as it serves and before any request; Ctrl-C ends both."""
    debug = "reloader" in way
    insert(dsn, "work", 1, "jsonb_build_object('number', 2)")
    (tmp_path / "serve.py").write_text("import shop\n\nshop.app.run(port=0, debug=True)\n")
    with serving(tmp_path, *DEVELOPING[way], env=environment) as server:
        wait_for_states(dsn, PATIENCE, succeeded=1)
        served = server.ask("/work/1", post=True)["pid"]
        assert server.worker().parent == served
        assert (served != server.process.pid) is debug
        wait_for_states(dsn, PATIENCE, succeeded=2)
        assert server.text.count('msg="worker started"') == int(debug)  # production's log level leaves it out
        os.killpg(server.process.pid, signal.SIGINT)
        server.process.wait(PATIENCE)
        wait_until(lambda: python_processes(tmp_path) == [], timeout=PATIENCE, what="everybody to leave")
    assert ledger.count("end") == {"1": 1, "2": 1}


def test_the_reloader_brings_the_new_code(dsn, tmp_path, environment):
    """A saved file gives one new worker that runs what was saved; the old one leaves."""
    with serving(tmp_path, *FLASK, "--debug", env=environment) as server:
        first = settle(server)
        (tmp_path / "shop.py").write_text((tmp_path / "shop.py").read_text().replace("return current_app.name", 'return "new"'))
        wait_until(lambda: first not in server.workers(), timeout=PATIENCE, what="the old one to leave")
        second = settle(server)
        assert second.parent != first.parent
        insert(dsn, "work", 1)
        wait_for_states(dsn, PATIENCE, succeeded=1)
    assert rows(dsn, "SELECT result FROM jobrunner.v_jobs") == [("new",)]


def test_a_fresh_project(open_home):
    """With nothing configured the first request starts a PostgreSQL of the project's own, with our schema, and the worker runs its job."""
    (open_home / "shop.py").write_text(FRESH)
    environment = {"JOBRUNNER_EMBEDDED_DIR": str(open_home / "pg")}
    with serving(open_home, *GUNICORN, "-w", "4", "--timeout", "90", "shop:app", env=environment, app=None) as server:
        assert server.ask("/add/2/3", post=True) == {"sum": 5}
        assert server.ask("/add/4/5", post=True) == {"sum": 9}
        assert len(server.workers()) == 1
        assert server.stop() == 0
        assert server.workers() == []


@pytest.mark.parametrize("options", [(), ("--preload",)], ids=["after fork", "preloaded"])
def test_a_factory_with_arguments(dsn, tmp_path, environment, options):
    """What gunicorn was told to call is what the worker calls."""
    (tmp_path / "shop.py").write_text(FACTORY)
    insert(dsn, "where", 1, "'{}'")
    with serving(tmp_path, *GUNICORN, *options, "shop:create_app('here')", env=environment, app=None) as server:
        wait_for_states(dsn, PATIENCE, succeeded=1)
        assert server.stop() == 0
    assert rows(dsn, "SELECT result FROM jobrunner.v_jobs") == [("here",)]


def test_two_apps_of_one_factory(dsn, tmp_path, environment):
    """Two servers that make different apps of one factory have a worker each, of their own app."""
    (tmp_path / "shop.py").write_text(FACTORY)
    one, other = ((*GUNICORN, f"shop:create_app({place!r})") for place in ("here", "there"))
    with serving(tmp_path, *one, env=environment, app=None) as first, serving(tmp_path, *other, env=environment, app=None) as second:
        wait_until(lambda: len(first.workers()) == 2, timeout=PATIENCE, what="two workers")
        assert {each.parent for each in first.workers()} == {first.children()[0], second.children()[0]}
        assert first.stop() == 0
        assert second.stop() == 0


@pytest.mark.parametrize("package", [False, True], ids=["namespace", "package"])
def test_calls_of_functions_that_are_no_tasks(dsn, tmp_path, environment, package):
    """`background`, a `JobExecutor` and a named Executor of an app without tasks, which only the server's own path finds: the worker
    serves their queues, and has their functions under the same name."""
    (tmp_path / "src" / "depot").mkdir(parents=True)
    (tmp_path / "src" / "depot" / "web.py").write_text(CALLS)
    if package:
        (tmp_path / "src" / "depot" / "__init__.py").touch()
    options = ("-k", "gthread", "--threads", "2", "--pythonpath", str(tmp_path / "src"), "depot.web:app")
    with serving(tmp_path, *GUNICORN, *options, env=environment, app=None) as server:
        found = server.ask("/calls")
        assert found["found"] == [[1, "depot.web"], [2, "depot.web"], [3, "depot.web"]]
        assert found["mapped"] == [[4, "depot.web"], [5, "depot.web"]]
        assert found["tuples"] == ["tuple"] * 3
        assert rows(dsn, "SELECT queues FROM jobrunner.v_workers") == [(["default", "mail", "reports"],)]
        assert server.stop() == 0
    assert states(dsn) == {"succeeded": 5}


def test_a_worker_of_processes_for_chosen_queues(dsn, ledger, tmp_path, environment):
    """`processes:2` with queues: each job in a process, and only those queues."""
    insert(dsn, "work", 4, queue="mail")
    insert(dsn, "work", 1)
    with serving(tmp_path, *GUNICORN, "shop:app", env={**environment, "JOBRUNNER_EMBEDDED_WORKER": "processes:2 mail:1"}) as server:
        wait_for_states(dsn, PATIENCE, succeeded=4, queued=1)
        assert rows(dsn, "SELECT queues, slots FROM jobrunner.v_workers") == [(["mail"], 2)]
        assert server.stop() == 0


def test_several_databases(dsn, fresh_dsn, ledger, tmp_path, environment):
    """With several databases one process serves all of them, and all of it leaves with the server; what runs has its grace."""
    gate = tmp_path / "gate"
    routes = {"JOBRUNNER_DATABASES": json.dumps({"post": fresh_dsn}), "JOBRUNNER_ROUTES": json.dumps({"held": "post"})}
    insert(dsn, "work", 3)
    insert(fresh_dsn, "hold", 1, f"jsonb_build_object('number', 9, 'gate', '{gate}')", queue="held")
    with serving(tmp_path, *GUNICORN, "-w", "2", "shop:app", env={**environment, **routes, "JOBRUNNER_EMBEDDED_GRACE": "20s"}) as server:
        wait_for_states(dsn, PATIENCE, succeeded=3)
        wait_until(lambda: ledger.count("begin")["9"], timeout=PATIENCE, what="the held job to begin")
        assert len({each.parent for each in server.workers()}) == 1
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: len(server.children()) == 1, timeout=PATIENCE, what="the other web process to leave")
        gate.touch()
        assert server.process.wait(PATIENCE) == 0
        wait_until(lambda: python_processes(tmp_path) == [], timeout=PATIENCE, what="everybody to leave")
    assert states(fresh_dsn) == {"succeeded": 1}
    assert rows(fresh_dsn, "SELECT kind, reason, exit_code FROM jobrunner.v_worker_runs") == [("embedded", "signal", 0)]


def test_no_place_for_a_lock(dsn, ledger, tmp_path, environment):
    """Where somebody else has what should be the private directory, each web process has a worker of its own; the log says so, once each."""
    (tmp_path / f"jobrunner-{os.geteuid()}").touch()
    insert(dsn, "work", 10)
    with serving(tmp_path, *GUNICORN, "-w", "2", "shop:app", env=environment) as server:
        wait_until(lambda: len({each.parent for each in server.workers()}) == 2, timeout=PATIENCE, what="two workers")
        wait_for_states(dsn, PATIENCE, succeeded=10)
        assert server.stop() == 0
        assert server.text.count("no place for a lock, so this web process has a worker of its own") == 2
        assert server.workers() == []
    assert set(ledger.count("end").values()) == {1}


def test_any_other_server(dsn, tmp_path, environment):
    """waitress, as any WSGI server that stays: the worker comes with the first request and leaves with the server."""
    with serving(tmp_path, "-c", WAITRESS, env=environment) as server:
        assert server.ask("/work/1", post=True)["pid"] == server.worker().parent == server.process.pid
        wait_for_states(dsn, PATIENCE, succeeded=1)
        server.process.send_signal(signal.SIGINT)
        server.process.wait(PATIENCE)
        assert python_processes(tmp_path) == []


QUIET = {
    "imported": ("-c", "import shop, threading; print(threading.active_count())"),
    "a test client": ("-c", "import shop, threading; shop.app.test_client().get('/'); print(threading.active_count())"),
    "flask shell": ("-m", "flask", "shell"),
    "flask routes": ("-m", "flask", "routes"),
    "flask jobs": ("-m", "flask", "jobs", "status"),
    "jobrunner enqueue": ("-m", "jobrunner", "--app", "shop", "enqueue", "work", '{"number": 1}'),
}


@pytest.mark.parametrize("way", QUIET)
def test_where_nothing_is_served_nothing_starts(dsn, tmp_path, environment, way):
    """A shell, a command, a test client, an import: no thread, no worker, no connection of one."""
    shutil.copyfile(Path(__file__).parents[1] / "support" / "embedding_app.py", tmp_path / "shop.py")
    done = run(sys.executable, *QUIET[way], cwd=tmp_path, dsn=dsn, env={**environment, "PYTHONPATH": os.pathsep.join(sys.path)}, ok=False)
    assert done.returncode in {0, 1}, done.stderr
    if way in {"imported", "a test client"}:
        assert done.stdout.strip() == "1"
    assert embedded_workers(tmp_path) == []
    assert rows(dsn, "SELECT count(*) FROM jobrunner.workers") == [(0,)]


def test_a_worker_has_none_itself(dsn, tmp_path, environment):
    """A worker whose app says that it has one, and `jobrunner dev`, which has one, start no second."""
    insert(dsn, "work", 1)
    with serving(tmp_path, *GUNICORN, "shop:app", env={**environment, NEVER: "1"}) as server:
        server.ask()
        with serving(tmp_path, "-m", "jobrunner", "work", "--app", "shop", "--drain", env=environment, app=None) as worker:
            assert worker.process.wait(PATIENCE) == 0
        assert states(dsn) == {"succeeded": 1}
        assert server.workers() == []
        assert server.stop() == 0
