"""`jobrunner work`, `status`, `web` and `dev`: the commands that run for long."""

from __future__ import annotations

import os
import re
import signal
import socket
import urllib.request

import pytest

from jobrunner.settings import describe_target
from tests.support.seed import seed
from tests.support.waiting import wait_until

STATUS_KEYS = {
    "target",
    "at",
    "schema",
    "read_only",
    "workers_alive",
    "workers_lost",
    "slots",
    "running",
    "last_seen_at",
    "failed_last_hour",
    "queues",
    "workers",
    "unserved",
    "problems",
}

WORKER_KEYS = {
    "id", "name", "host", "pid", "kind", "version", "state", "queues", "tasks", "slots", "running", "started_at", "heartbeat_at",
    "stopped_at", "last_exit", "rss_bytes", "succeeded_count", "failed_count", "crashed_count", "pool", "pool_slot", "claimed_count",
    "memory_bytes", "running_jobs",
}  # fmt: skip
RUNNING_KEYS = {"slot", "job_id", "task", "attempt", "run_ms", "memory"}


def free_port():
    """A port that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def get(url):
    """The body of a page."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read().decode()


def test_drain_runs_what_is_due_and_leaves(program):
    """--drain works off the given queues and ends with 0, failed jobs or not; other queues are left alone."""
    for line in (["add", '{"a": 1, "b": 2}'], ["divide", '{"a": 1, "b": 0}'], ["add", '{"a": 1, "b": 2}', "--queue", "other"]):
        program("enqueue", *line)
    said = program("work", "--queues", "mail:1,default", "--drain", "-c", "2")
    assert said.err.startswith(f"target: {describe_target(program.dsn)} schema jobrunner\n")
    states = {(job["task"], job["queue"]): job["state"] for job in program("jobs", "list", "--json").json["items"]}
    assert states == {("add", "default"): "succeeded", ("divide", "mail"): "failed", ("add", "other"): "queued"}


def test_a_quiet_drain_is_silent(program):
    """What cron would mail: nothing, when the worker did its work, also when a job failed."""
    source = program.home / "app.py"
    source.write_text(source.read_text().replace('print("the app is imported")', ""))
    program("enqueue", "divide", '{"a": 1, "b": 0}')
    said = program("-q", "work", "mail", "--drain")
    assert (said.out, said.err) == ("", "")


def test_worker_options_reach_the_worker(program):
    """Name, slots, queues, kind and log format are what the worker shows; SIGTERM ends it with 0."""
    options = [
        "--name",
        "lisa",
        "-c",
        "3",
        "--grace",
        "5s",
        "--lease",
        "20s",
        "--poll",
        "200ms",
        "--no-listen",
        "--log-format",
        "json",
        "-v",
    ]
    with program.started("work", "mail:2,default", *options) as worker:
        worker.wait_for('"msg": "worker started"')
        row = program("status", "--json").json["workers"][0]
        assert (row["name"], row["slots"], row["queues"], row["kind"], row["state"]) == ("lisa", 3, ["mail", "default"], "daemon", "alive")
        assert worker.stop() == 0


@pytest.mark.parametrize("options", [["--max-jobs", "1"], ["--max-seconds", "0.5"]])
def test_a_worker_leaves_after_its_share(program, options):
    """--max-jobs and --max-seconds end a worker by itself, with 0."""
    program("enqueue", "add", '{"a": 1, "b": 2}')
    assert program("work", *options).code == 0


def test_queues_are_given_once(program):
    """As an argument or as an option, not both; and each queue once."""
    assert program("work", "mail", "--queues", "default", ok=None).code == 2
    assert "queue 'mail' is named twice" in program("work", "mail,mail:2", ok=None).err


def test_status_on_one_screen(program):
    """Target, schema, queues with counts, workers, and what is wrong, with what to do."""
    program("enqueue", "add", '{"a": 1, "b": 2}')
    out = program("status").out
    assert out.startswith(f"{describe_target(program.dsn)}  schema ")
    assert re.search(r"^default +1 ", out, re.MULTILINE)
    assert "! no worker is alive, and jobs wait\n" in out
    document = program("status", "--json").json
    assert set(document) == STATUS_KEYS
    assert document["queues"][0]["ready"] == 1
    assert document["problems"][0]["code"] == "no_worker"


def test_status_shows_what_workers_run(reader, connection):
    """Workers with their pool, what they claimed and what they use with all their jobs; and below them each slot with its job."""
    ids = seed(connection, 20)
    out = reader("status").out
    assert re.search(r"^worker-1@web-1 +alive +daemon +- .* 358\.0 MB ", out, re.MULTILINE)
    assert re.search(r"^cron@web-1 +stopped +cron +nightly/1 ", out, re.MULTILINE)
    assert re.search(rf"^worker-1@web-1 +3 +{ids['running']} +billing\.invoice +1 +\S+ +102\.0 MB$", out, re.MULTILINE)
    workers = reader("status", "--json").json["workers"]
    assert all(set(worker) == WORKER_KEYS for worker in workers)
    running = next(worker for worker in workers if worker["name"] == "worker-1@web-1")["running_jobs"]
    assert [(job["slot"], job["task"], job["attempt"], job["memory"]) for job in running][2] == (3, "billing.invoice", 1, 102_000_000)
    assert all(set(job) == RUNNING_KEYS for job in running)


def test_status_again_and_again(program):
    """--watch repeats until Ctrl-C, which is the way it ends: 0."""
    with program.started("status", "--watch", "0.2") as watching:
        wait_until(lambda: watching.out.count("schema") >= 2, timeout=30, what="two screens are printed")
        assert watching.stop(signal.SIGINT) == 0
        assert watching.err == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_web_serves_until_told_to_stop(reader, number):
    """The dashboard needs no app, says where it is, and both signals end it with 0."""
    with reader.started("web", "--port", "0", "--read-only") as web:
        web.wait_for("Ctrl-C stops")
        url = re.findall(r"http://\S+/", web.err)[0]
        assert "jobrunner" in get(url).lower()
        assert web.stop(number) == 0


def test_web_refuses_to_be_open_to_everybody(reader):
    """On an address that others reach it does not start without an access check."""
    said = reader("web", "--host", "0.0.0.0", "--port", free_port(), ok=None)
    assert said.code == 2
    assert "JOBRUNNER_WEB_PASSWORD" in said.err


def test_dev_runs_web_and_worker_and_stops_both(program):
    """One terminal: the app's pages, the dashboard beside them, a worker on every queue of the tasks; Ctrl-C ends all with 0."""
    port = free_port()
    number = program("-q", "enqueue", "divide", '{"a": 4, "b": 2}').out.strip()
    with program.started("dev", "--port", port) as dev:
        dev.wait_for("worker started")
        assert program("jobs", "wait", number, "--timeout", "30s").out == f"{number}  succeeded\n"
        wait_until(lambda: "Running on" in dev.out, timeout=30, what="the web server listens")
        assert get(f"http://127.0.0.1:{port}/") == "hello from the app"
        assert "jobrunner" in get(f"http://127.0.0.1:{port}/jobrunner/").lower()
        assert re.search(r"^web    \| ", dev.out, re.MULTILINE)
        assert re.search(r"^worker \| ", dev.out, re.MULTILINE)
        assert dev.stop(signal.SIGINT) == 0
    assert program("status", "--json").json["workers_alive"] == 0


def test_dev_restarts_when_code_changes(program):
    """A saved file restarts web and worker; a broken one waits for the next save."""
    source = program.home / "app.py"
    with program.started("dev", "--port", free_port()) as dev:
        dev.wait_for("worker started")
        good = source.read_text()
        source.write_text("broken(\n")
        dev.wait_for("waiting for the next change")
        source.write_text(good + "\n@jobs.task\ndef fresh() -> str:\n    return 'new code'\n")
        os.utime(source, (2_000_000_000, 2_000_000_000))
        number = program("-q", "enqueue", "fresh").out.strip()
        assert program("jobs", "wait", number, "--timeout", "40s").code == 0
        assert dev.stop() == 0


def test_dev_ends_when_one_half_does(program):
    """Without a reload to wait for, the end of one child ends the other, and the command is not a success."""
    with program.started("dev", "--port", free_port(), "--no-reload") as dev:
        dev.wait_for("worker started")
        pid = program("status", "--json").json["workers"][0]["pid"]
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: dev.process.poll() is not None, timeout=30, what="dev ends")
        assert dev.process.returncode == 1
        assert "worker ended with -9: stopping" in dev.err


def test_dev_killed_leaves_nothing(program):
    """When `dev` is killed -9, web server and worker end by themselves."""
    port = free_port()
    with program.started("dev", "--port", port, "--no-reload") as dev:
        dev.wait_for("worker started")
        wait_until(lambda: "Running on" in dev.out, timeout=30, what="the web server listens")
        dev.process.kill()
        wait_until(lambda: program("status", "--json").json["workers_alive"] == 0, timeout=30, what="the worker has left in order")
        wait_until(lambda: not _listens(port), timeout=10, what="nobody listens any more")


def _listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", int(port))) == 0
