"""Several databases by configuration only: which of them a command works with, and one command that serves them all."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections import Counter

import psycopg
import pytest

from jobrunner import JobRunner
from jobrunner.web import create_app
from tests.support.cli import Program
from tests.support.waiting import wait_until
from tests.support.workers import rows, states

APP = """
from flask import Flask
from jobrunner import JobRunner

app = Flask(__name__)
app.config.from_prefixed_env("SHOP")
jobs = JobRunner(app)


@jobs.task
def add(a: int = 1, b: int = 1) -> int:
    return a + b


@jobs.task(queue="mail")
def send(number: int = 0) -> int:
    add.options(queue="reports").enqueue(number, number)
    return number


@jobs.task(queue="mail", transactional=True)
def book(number: int = 0, *, session) -> int:
    add.options(queue="letters").enqueue(number)
    return number
"""
SESSION_APP = """
import os

import sqlalchemy as sa
from jobrunner import JobRunner
from sqlalchemy.orm import scoped_session, sessionmaker

engine = sa.create_engine(os.environ["JOBRUNNER_DSN"].replace("postgresql", "postgresql+psycopg", 1))
jobs = JobRunner(session=scoped_session(sessionmaker(engine)))


@jobs.task(queue="mail", transactional=True, max_attempts=1)
def book(*, session) -> None:
    session.execute(sa.text("SELECT 1"))


@jobs.task(transactional=True, max_attempts=1)
def note(*, session) -> None:
    session.execute(sa.text("SELECT 1"))
"""
ROUTES = {"mail": "post", "letters": "post", "reports": "reports"}


def configured(databases, routes=ROUTES):
    """The environment that says so."""
    return {"JOBRUNNER_DATABASES": json.dumps(databases), "JOBRUNNER_ROUTES": json.dumps(routes)}


@pytest.fixture
def post(server):
    """The second database."""
    with server.temporary() as own:
        yield own


@pytest.fixture
def reports(server):
    """The third."""
    with server.temporary() as own:
        yield own


@pytest.fixture
def shop(tmp_path, dsn, post, reports):
    """`jobrunner` beside an application with three databases."""
    (tmp_path / "app.py").write_text(APP)
    program = Program(tmp_path, dsn)
    return lambda *words, env=None, **more: program(*words, env=configured({"post": post, "reports": reports}) | (env or {}), **more)


def workers(dsn):
    """Queues of the workers that have been in a database."""
    return [queues for (queues,) in rows(dsn, "SELECT queues FROM jobrunner.workers ORDER BY id")]


def test_one_command_serves_all_databases(shop, dsn, post, reports):
    """Each database has a worker of its own for the queues that live there; what a task enqueues goes to the third database."""
    for number in range(3):
        shop("enqueue", "send", json.dumps({"number": number}))
        shop("enqueue", "add", '{"a": 1, "b": 2}')
    assert (states(post), states(dsn), states(reports)) == ({"queued": 3}, {"queued": 3}, {})
    said = shop("work", "--drain", "-c", "1")
    assert said.err.count("target: ") == 3
    assert {name for name in ("default", "post", "reports") if f"database={name}" in said.err} == {"default", "post", "reports"}
    shop("work", "--drain", "-c", "1", "reports")
    assert (states(post), states(dsn), states(reports)) == ({"succeeded": 3}, {"succeeded": 3}, {"succeeded": 3})
    assert (workers(post), workers(dsn)) == ([["mail", "letters"]], [["default"]])
    assert workers(reports) == [["reports"], ["reports"]]


def test_the_configuration_of_the_app_is_enough(tmp_path, dsn, post):
    """With everything in the Flask config, the same command serves both and a reading command finds one by its name."""
    (tmp_path / "app.py").write_text(APP)
    config = {
        "SHOP_JOBRUNNER_DSN": dsn,
        "SHOP_JOBRUNNER_DATABASES": json.dumps({"post": post}),
        "SHOP_JOBRUNNER_ROUTES": '{"mail": "post"}',
    }
    program = Program(tmp_path, None)
    program("enqueue", "book", env=config)
    program("enqueue", "add", env=config)
    program("work", "--drain", "-c", "1", env=config)
    assert states(post)["succeeded"] == 0, "a child in the default database cannot join the job's transaction"
    [job] = program("jobs", "list", "--database", "post", "--json", env=config).json["items"]
    assert job["task"] == "book"
    assert "lives in the database 'default'" in job["error"]
    assert states(dsn) == {"succeeded": 1}


def test_a_transactional_task_works_in_its_own_database(shop, post):
    """Its session is in the database of its job, and a child whose queue lives there commits with it."""
    shop("enqueue", "book")
    shop("work", "--drain", "-c", "1", "mail,letters")
    assert states(post) == {"succeeded": 2}


def test_a_transactional_task_cannot_use_a_session_elsewhere(tmp_path, dsn, post):
    """When the application's session is in another database than the job, the job fails with a message that says so, and writes nothing."""
    (tmp_path / "app.py").write_text(SESSION_APP)
    program = Program(tmp_path, dsn)
    env = configured({"post": post}, {"mail": "post"})
    for task in ("book", "note"):
        program("enqueue", task, env=env)
    program("work", "--drain", "-c", "1", env=env)
    [job] = program("jobs", "list", "--database", "post", "--json", env=env).json["items"]
    assert job["state"] == "failed"
    assert "cannot use the application's session" in job["error"]
    assert states(dsn) == {"succeeded": 1}, "the same session is right for a job of its own database"


def test_the_dashboard_of_one_database_refuses_jobs_of_another(dsn, post, monkeypatch):
    """A job whose queue lives elsewhere is not written from this dashboard, whose pages would not show it."""
    monkeypatch.setenv("JOBRUNNER_DATABASES", json.dumps({"post": post}))
    monkeypatch.setenv("JOBRUNNER_ROUTES", json.dumps({"mail": "post"}))
    jobs = JobRunner(dsn=dsn, wakeups=False)

    @jobs.task
    def add() -> None:
        """Anything."""

    app = create_app(jobs, auth=lambda _request: "admin")
    client = app.test_client()
    headers = {"Sec-Fetch-Site": "same-origin"}
    refused = client.post("/api/v1/jobs", json={"task": "add", "options": {"queue": "mail"}}, headers=headers)
    assert refused.status_code == 422
    assert "lives in the database 'post'" in refused.text
    assert client.post("/api/v1/jobs", json={"task": "add"}, headers=headers).status_code == 201
    assert (states(dsn), states(post)) == ({"queued": 1}, {})
    app.extensions["jobrunner-web"].reads.close()
    jobs.close()


def test_reading_commands_take_one(shop, post, dsn):
    """`--database` picks one of them, anywhere on the line and without the app; without it commands read the default one."""
    (job_id,) = shop("enqueue", "send").lines()
    assert shop("jobs", "list", "--json").json["items"] == []
    assert [job["id"] for job in shop("--database", "post", "jobs", "list", "--json").json["items"]] == [int(job_id)]
    assert shop("jobs", "list", "--json", "--database", "default").json["items"] == []
    shop("jobs", "cancel", job_id, "--database", "post")
    assert states(post) == {"cancelled": 1}
    assert shop("status", "--database", "post", "--json").code == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["jobs", "list", "--database", "male"], ["there is no database 'male'", "post, reports"]),
        (["work", "--database", "male", "mail"], ["there is no database 'male'"]),
        (["work", "--dsn", "postgresql://nowhere/x"], ["JOBRUNNER_DATABASES is set", "--database NAME"]),
        (["status", "--dsn", "postgresql://nowhere/x", "--database", "post"], ["--dsn and --database"]),
        (["enqueue", "send", "--database", "reports"], ["lives in 'post'"]),
        (["db", "upgrade", "--all-databases", "--database", "post"], ["contradict each other"]),
        (["work", "-c", "2", "--threads", "2"], ["--concurrency is for processes"]),
    ],
)
def test_what_contradicts_itself_is_refused(shop, words, said):
    """A name that is not there and options that contradict each other end with 2, with what there is, before anything starts."""
    done = shop(*words, ok=None)
    assert done.code == 2
    assert all(word in done.err for word in said), done.err
    assert done.err.count("error: ") <= 1
    assert "worker started" not in done.err


@pytest.mark.parametrize("command", [("work", "--drain"), ("cron",), ("enqueue", "send"), ("jobs", "list", "--database", "post")])
def test_a_wrong_configuration_is_refused(tmp_path, dsn, post, command):
    """A queue routed to nowhere and one address under two names end with 2 whatever the command."""
    (tmp_path / "app.py").write_text(APP)
    program = Program(tmp_path, dsn)
    for databases, routes, words in (
        ({"post": post}, {"mail": "male"}, "sends queue 'mail' to a database 'male'"),
        ({"post": post, "mail": post}, {}, "'post' and 'mail' are the same one"),
    ):
        said = program(*command, env=configured(databases, routes), ok=None)
        assert said.code == 2, said.err
        assert words in said.err


def test_no_default_database(tmp_path, post, reports):
    """Without a default database the routed queues are served, and one that has no route is refused; nothing is started."""
    (tmp_path / "app.py").write_text(APP)
    program = Program(tmp_path, None)
    env = configured({"post": post, "reports": reports})
    program("enqueue", "send", env=env)
    program("work", "--drain", "-c", "1", env=env)
    assert states(post) == {"succeeded": 1}
    for command in (("work", "--drain", "default"), ("enqueue", "add"), ("jobs", "list")):
        said = program(*command, env=env, ok=None)
        assert said.code == 2
        assert "no default database" in said.err
        assert "post, reports" in said.err
    assert not (tmp_path / ".jobrunner").exists()


def test_a_queue_that_has_moved_is_worked_off_where_it_was(shop, dsn, post):
    """After a new route, `--database` serves what was left behind in the old place, and says that the queue lives elsewhere."""
    shop("enqueue", "send", env={"JOBRUNNER_DATABASES": "", "JOBRUNNER_ROUTES": ""})
    assert states(dsn) == {"queued": 1}
    said = shop("work", "--drain", "-c", "1", "--database", "default", "mail")
    assert "queue mail lives in post: this worker serves what is left of it in default" in said.err
    assert (states(dsn), states(post)) == ({"succeeded": 1}, {})


def test_migrations_on_all(server, tmp_path):
    """All databases are upgraded; one that does not answer is said, keeps no other from it, and gives the exit code."""
    (tmp_path / "app.py").write_text("raise RuntimeError('the application was imported')\n")
    with server.temporary(template="template0") as one, server.temporary(template="template0") as two:
        program = Program(tmp_path, one)
        gone = "postgresql://nobody@127.0.0.1:1/gone"
        said = program("db", "upgrade", "--all-databases", "--json", env=configured({"a": gone, "two": two}, {}), ok=None)
        assert said.code == 3
        assert [(each["database"], each["exit"]) for each in said.json["databases"]] == [("default", 0), ("a", 3), ("two", 0)]
        assert "127.0.0.1:1" in said.err
        assert states(one) == states(two) == {}
        again = program("db", "upgrade", "--all-databases", env=configured({"two": two}, {}))
        assert again.err.count("nothing to do") == 2
        found = program("doctor", "--setup", "--all-databases", "--json", env=configured({"a": gone, "two": two}, {}), ok=None)
        assert found.code == 1
        assert [(each["database"], each["ok"]) for each in found.json["databases"]] == [("default", False), ("a", False), ("two", False)]
        assert "app" in {check["code"] for check in found.json["databases"][0]["checks"] if check["state"] == "bad"}


def test_cron_on_all(shop, dsn, post, reports):
    """A run for each database, each alone in the slot of its own; the summaries name them, and the exit code is the worst."""
    shop("enqueue", "send")
    said = shop("cron", "--summary")
    found = {line["database"]: line for line in map(json.loads, said.lines())}
    assert {name: line["pool"] for name, line in found.items()} == {"default": "default", "post": "letters,mail", "reports": "reports"}
    assert found["post"]["ok"] == 1
    assert said.err == ""
    rows_of = "SELECT count(*)::int FROM jobrunner.worker_runs WHERE kind = 'cron'"
    assert rows(dsn, rows_of) == rows(post, rows_of) == rows(reports, rows_of) == [(1,)]
    with psycopg.connect(post, autocommit=True) as connection:
        connection.execute("DROP SCHEMA jobrunner CASCADE")
    broken = shop("cron", "--summary", ok=None)
    assert broken.code == 4
    assert Counter(json.loads(line)["database"] for line in broken.lines()) == {"default": 1, "reports": 1}
    assert "database=post" in broken.err


def _fleet(tmp_path, dsn, post):
    (tmp_path / "app.py").write_text(APP)
    program = Program(tmp_path, dsn)
    return program, configured({"post": post}, {"mail": "post"})


def _pids(dsn):
    return [pid for (pid,) in rows(dsn, "SELECT pid FROM jobrunner.v_workers WHERE state = 'alive'")]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all(tmp_path, dsn, post, number):
    """SIGTERM and Ctrl-C reach every worker; each leaves in order and the command with 0."""
    program, env = _fleet(tmp_path, dsn, post)
    with program.started("work", "-c", "1", env=env) as fleet:
        wait_until(lambda: _pids(dsn) and _pids(post), timeout=60, what="both workers")
        wait_until(lambda: fleet.err.count("worker started") == 2, timeout=60, what="both to have imported the app")
        assert fleet.stop(number) == 0
    for each in (dsn, post):
        assert rows(each, "SELECT reason, exit_code FROM jobrunner.v_worker_runs") == [("signal", 0)]


def test_a_worker_that_dies_is_started_again(tmp_path, dsn, post):
    """After kill -9 of one worker the command says so and starts another; the other database's goes on as the same process."""
    program, env = _fleet(tmp_path, dsn, post)
    with program.started("work", "-c", "1", env=env) as fleet:
        wait_until(lambda: fleet.err.count("worker started") == 2, timeout=60, what="both workers")
        [other], [victim] = _pids(dsn), _pids(post)
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: fleet.err.count("worker started") == 3, timeout=60, what="another worker")
        assert "starting it again" in fleet.err
        assert "exit=137" in fleet.err
        assert _pids(dsn) == [other]
        program("enqueue", "send", env=env)
        wait_until(lambda: states(post) == {"succeeded": 1}, timeout=60, what="the job to be done")
        assert fleet.stop() == 0


def test_what_is_wrong_with_all_ends_the_command(tmp_path, dsn, post):
    """When no worker can start, the command ends with the code that a single worker ends with, instead of trying for ever."""
    program, env = _fleet(tmp_path, dsn, post)
    (tmp_path / "app.py").write_text("raise RuntimeError('broken')\n")
    said = program("work", env=env, ok=None)
    assert said.code == 2
    assert "RuntimeError: broken" in said.err


def test_the_death_of_the_command_ends_its_workers(tmp_path, dsn, post):
    """After kill -9 of the command itself no worker stays behind: each gets a SIGTERM and leaves in order."""
    program, env = _fleet(tmp_path, dsn, post)
    with program.started("work", "-c", "1", env=env) as fleet:
        wait_until(lambda: fleet.err.count("worker started") == 2, timeout=60, what="both workers")
        fleet.process.kill()
        over = "SELECT reason, exit_code FROM jobrunner.v_worker_runs"
        wait_until(lambda: rows(dsn, over) == rows(post, over) == [("signal", 0)], timeout=60, what="both workers to leave")


def test_dev_works_on_all(tmp_path, dsn, post):
    """`jobrunner dev` serves the queues of both databases; Ctrl-C ends web server and workers with 0."""
    (tmp_path / "app.py").write_text(APP)
    config = {
        "SHOP_JOBRUNNER_DSN": dsn,
        "SHOP_JOBRUNNER_DATABASES": json.dumps({"post": post}),
        "SHOP_JOBRUNNER_ROUTES": '{"mail": "post"}',
    }
    program = Program(tmp_path, None)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with program.started("dev", "--port", port, env=config) as dev:
        wait_until(lambda: dev.out.count("worker started") == 2, timeout=60, what="both workers")
        program("enqueue", "send", env=config)
        wait_until(lambda: states(post) == {"succeeded": 1}, timeout=60, what="the job to be done")
        assert dev.stop(signal.SIGINT) == 0
    for each in (dsn, post):
        assert rows(each, "SELECT reason, exit_code FROM jobrunner.v_worker_runs") == [("signal", 0)]
