"""`jobrunner cron`: what it says, which code it leaves with, how long it stays, and who has the slot."""

from __future__ import annotations

import json
import re
import signal
import socket
import time
from pathlib import Path

import psycopg
import pytest

from jobrunner.errors import DatabaseUnreachable
from tests.support.cli import APP, Program
from tests.support.waiting import wait_until
from tests.support.workers import insert, rows, states

SECRET = "hunter2-and-more"
SUMMARY_KEYS = {
    "ran", "ok", "failed", "crashed", "jobs_failed", "left", "next_due", "seconds", "reason", "exit", "pool", "slot", "worker_id",
}  # fmt: skip
SLOW_APP = """
import pathlib, time
while not pathlib.Path("import-now").exists():
    time.sleep(0.01)
"""
SLOTS = "SELECT pool, pool_slot FROM jobrunner.workers WHERE stopped_at IS NULL AND cardinality(tasks) > 0 ORDER BY 1, 2"


def runs(dsn, columns="reason, exit_code"):
    """The runs on record, oldest first."""
    return rows(dsn, f"SELECT {columns} FROM jobrunner.v_worker_runs ORDER BY id")


def hold(program, name="one", **env):
    """Enqueue a job that runs until its file is there; returns the files that say it began and let it end."""
    began, release = program.home / f"{name}.began", program.home / f"{name}.release"
    program("-q", "enqueue", "hold", json.dumps({"started": str(began), "release": str(release)}))
    return began, release


def logged(said):
    """The one line on stderr, as its fields."""
    (line,) = said.err.splitlines()
    fields = dict(re.findall(r'(\w+)=("(?:[^"\\]|\\.)*"|\S+)', line))
    return {key: json.loads(value) if value.startswith('"') else value for key, value in fields.items()}


def test_silent_when_all_is_well(program):
    """Not a byte on stdout or stderr, though the app prints at its import, a job prints and another fails; 0; the run is on record."""
    program("-q", "enqueue", "add", '{"a": 1, "b": 2}')
    program("-q", "enqueue", "divide", '{"a": 1, "b": 0}')
    said = program("cron", "mail,default", "-c", "1")
    assert (said.code, said.out, said.err) == (0, "", "")
    assert states(program.dsn) == {"succeeded": 1, "failed": 1}
    columns = "kind, pool, pool_slot, reason, exit_code, error, claimed_count, succeeded_count, failed_count, left_count"
    assert runs(program.dsn, columns) == [("cron", "default,mail", 1, "drained", 0, None, 2, 1, 1, 0)]


def test_what_the_app_prints_shows_with_v(program):
    """With -v the app's output and the worker's log come through."""
    program("-q", "enqueue", "add", '{"a": 1, "b": 2}')
    said = program("-v", "cron")
    assert (said.out.count("the app is imported"), said.out.count("adding")) == (1, 1)
    assert 'msg="worker started"' in said.err


def test_summary(program):
    """One line of JSON: what ran, what is left, when the next job is due; the same as on record."""
    program("-q", "enqueue", "add", '{"a": 1, "b": 2}')
    program("-q", "enqueue", "divide", '{"a": 1, "b": 0}')
    program("-q", "enqueue", "add", '{"a": 1, "b": 2}', "--at", "2099-01-02T03:04:05Z")
    with psycopg.connect(program.dsn, autocommit=True) as connection:
        connection.execute("INSERT INTO jobrunner.jobs (task) VALUES ('nobody_has_it')")
    said = program("cron", "default,mail", "--pool", "shop", "--summary")
    assert said.err == ""
    (line,) = said.lines()
    found = json.loads(line)
    assert set(found) == SUMMARY_KEYS
    assert 0 < found.pop("seconds") < 60
    worker_id = found.pop("worker_id")
    assert found == {
        "ran": 2, "ok": 1, "failed": 1, "crashed": 0, "jobs_failed": 1, "left": 1, "next_due": "2099-01-02T03:04:05Z", "reason": "drained",
        "exit": 0, "pool": "shop", "slot": 1,
    }  # fmt: skip
    query = "SELECT worker_id, left_count, next_due_at = '2099-01-02T03:04:05Z' FROM jobrunner.v_worker_runs"
    assert rows(program.dsn, query) == [(worker_id, 1, True)]


@pytest.mark.parametrize(("args", "code"), [('{"a": 1, "b": 0}', 1), ('{"a": 1, "b": 1}', 0)])
def test_1_only_when_asked_and_a_job_failed(program, args, code):
    """--fail-on-job-failure leaves with 1 when a job ended as failed, silently; the record has the code."""
    program("-q", "enqueue", "divide", args)
    said = program("cron", "mail", "--fail-on-job-failure", ok=None)
    assert (said.code, said.out, said.err) == (code, "", "")
    assert runs(program.dsn) == [("drained", code)]


def test_an_attempt_that_is_tried_again_is_no_failed_job(program):
    """A job that raised and has attempts left does not make --fail-on-job-failure leave with 1."""
    program("-q", "enqueue", "control", '{"what": "retry"}')
    assert program("cron", "--fail-on-job-failure").code == 0
    assert rows(program.dsn, "SELECT state FROM jobrunner.v_jobs") == [("retrying",)]


def test_2_the_app_cannot_be_imported(program):
    """One logfmt line, without the password that the app's error quotes; the run is on record with its error and left its slot."""
    error = f"raise RuntimeError('refused: postgresql://shop:{SECRET}@db/shop')\n"
    (program.home / "app.py").write_text(error)
    for _ in range(2):
        said = program("cron", ok=None)
        found = logged(said)
        assert (said.code, said.out, found["level"], found["exit"], found["pool"]) == (2, "", "error", "2", "default")
        assert "RuntimeError" in found["msg"]
        assert SECRET not in said.err
    assert runs(program.dsn) == [("error", 2)] * 2
    for (text,) in runs(program.dsn, "error"):
        assert text.startswith("AppImportError: could not import")
        assert SECRET not in text


@pytest.mark.parametrize("option", [["--for", "0s"], ["--for", "x"], ["--slots", "0"], ["--pool", ""], ["mail:0"]])
def test_2_usage(program, option):
    """Options that make no sense are refused, and name what they are."""
    said = program("cron", *option, ok=None)
    assert (said.code, said.out) == (2, "")
    assert option[0].split(":")[0] in said.err
    assert runs(program.dsn) == []


def test_2_settings_that_make_no_sense(program):
    """A retention that is no duration, or next to none, is refused by its name before anything is taken."""
    for value in ("soon", "1h"):
        said = program("cron", env={"JOBRUNNER_KEEP_LOGS": value}, ok=None)
        assert (said.code, logged(said)["exit"]) == (2, "2")
        assert f"JOBRUNNER_KEEP_LOGS='{value}'" in logged(said)["msg"]
    assert runs(program.dsn) == []


def test_3_database_unreachable(program):
    """It is tried for ten seconds; then one logfmt line says where, why and what to try, and 3."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    began = time.monotonic()
    said = program("cron", env={"JOBRUNNER_DSN": f"postgresql://shop:{SECRET}@127.0.0.1:{port}/orders"}, ok=None)
    assert time.monotonic() - began > 8
    found = logged(said)
    assert (said.code, said.out, found["exit"]) == (3, "", "3")
    assert found["msg"] == f"cannot reach PostgreSQL at 127.0.0.1:{port} (connection refused)"
    assert "tried: JOBRUNNER_DSN" in found["hint"]
    assert SECRET not in said.err


def test_3_login_refused_is_not_tried_again(program, server):
    """What no waiting mends is not waited for."""
    began = time.monotonic()
    said = program("cron", env={"JOBRUNNER_DSN": server.dsn("no_such_database")}, ok=None)
    assert (said.code, "no such database" in logged(said)["msg"]) == (3, True)
    assert time.monotonic() - began < 10


def test_4_schema_missing(tmp_path, empty_dsn):
    """A database without our tables is 4, with the command that makes them, on one line."""
    (tmp_path / "app.py").write_text(APP)
    said = Program(tmp_path, empty_dsn)("cron", ok=None)
    assert (said.code, said.out, logged(said)["exit"]) == (4, "", "4")
    assert "jobrunner db upgrade" in logged(said)["hint"]


def test_a_taken_slot(program):
    """While a run has the slot, another start leaves at once: silently with 0, with --strict with 5; other pools and slots are free."""
    began, release = hold(program)
    with program.started("cron") as first:
        wait_until(began.exists, timeout=60, what="the job to begin")
        (program.home / "app.py").write_text("raise RuntimeError('a start that finds no slot imports nothing')\n")
        said = program("cron")
        assert (said.code, said.out, said.err) == (0, "", "")
        assert program("cron", "--strict", ok=None) == (said.__class__(5, "", ""))
        summary = program("cron", "--summary").json
        assert (summary["reason"], summary["ran"], summary["slot"], summary["worker_id"]) == ("busy", 0, None, None)
        (program.home / "app.py").write_text(APP)
        assert program("cron", "--pool", "another", "--summary").json["slot"] == 1
        assert program("cron", "--slots", "2", "--summary").json["slot"] == 2
        release.touch()
        assert first.process.wait(60) == 0
        assert (first.out, first.err) == ("", "")
    assert program("cron", "--strict").code == 0
    assert sorted(runs(program.dsn, "pool, pool_slot")) == [("another", 1), ("default", 1), ("default", 1), ("default", 2)]


def test_for_stays_and_listens_and_leaves_in_time(program):
    """With --for it takes what is enqueued meanwhile, and leaves by itself when the time is over."""
    began = time.monotonic()
    with program.started("cron", "--for", "12s", "--summary") as run:
        wait_until(lambda: rows(program.dsn, SLOTS) == [("default", 1)], timeout=60, what="the run to have its slot")
        insert(program.dsn, "add", 1, """'{"a": 1, "b": 2}'::jsonb""")
        assert run.process.wait(60) == 0
    assert time.monotonic() - began >= 12
    found = json.loads(run.out)
    assert (found["reason"], found["ok"], run.err) == ("time", 1, "")
    assert runs(program.dsn) == [("time", 0)]


def test_the_time_is_over_for_a_running_job(program):
    """A job that runs at the end of the time has the grace, then it is given back: no attempt used up, and still nothing is printed."""
    began, _ = hold(program)
    with program.started("cron", "--for", "12s", "--grace", "1s") as run:
        wait_until(began.exists, timeout=60, what="the job to begin")
        assert run.process.wait(60) == 0
        assert (run.out, run.err) == ("", "")
    assert rows(program.dsn, "SELECT state, attempt, crash_count FROM jobrunner.v_jobs") == [("queued", 0, 0)]
    assert rows(program.dsn, "SELECT outcome, exit_cause FROM jobrunner.v_attempts") == [("released", "deploy")]
    assert runs(program.dsn, "reason, exit_code, left_count") == [("time", 0, 1)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order(program, number):
    """The job is given back after the grace, the slot is free, the run is on record; 0 and silence."""
    began, _ = hold(program)
    with program.started("cron", "--grace", "0.2s") as run:
        wait_until(began.exists, timeout=60, what="the job to begin")
        assert run.stop(number) == 0
        assert (run.out, run.err) == ("", "")
    assert rows(program.dsn, "SELECT state, attempt FROM jobrunner.v_jobs") == [("queued", 0)]
    assert runs(program.dsn) == [("signal", 0)]


def test_a_second_signal_is_now(program):
    """A second signal does not wait for the grace, and the code says so; the record too."""
    began, _ = hold(program)
    with program.started("cron", "-v") as run:
        wait_until(began.exists, timeout=60, what="the job to begin")
        run.process.send_signal(signal.SIGTERM)
        run.wait_for("stopping")
        assert run.stop() == 143
    assert runs(program.dsn) == [("signal", 143)]
    assert rows(program.dsn, "SELECT state, attempt FROM jobrunner.v_jobs") == [("queued", 0)]


def test_a_signal_while_the_app_is_imported(program):
    """An import that takes long does not hold up the end, and the slot is free at once."""
    source = program.home / "app.py"
    source.write_text(SLOW_APP + source.read_text())
    with program.started("cron") as run:
        taken = "SELECT count(*) FROM jobrunner.workers WHERE stopped_at IS NULL"
        wait_until(lambda: rows(program.dsn, taken) == [(1,)], timeout=60, what="the slot to be taken")
        assert run.stop() == 0
        assert (run.out, run.err) == ("", "")
    assert runs(program.dsn) == [("signal", 0)]
    (program.home / "import-now").touch()
    assert program("cron", "--strict").code == 0


def test_a_lease_lost_while_the_app_is_imported(program):
    """A run that stood still past its lease before it began finds its slot taken over, says so, and runs nothing."""
    began, release = hold(program)
    source = program.home / "app.py"
    source.write_text(SLOW_APP + source.read_text())
    with program.started("cron", "--lease", "1s", "--strict") as first:
        taken = "SELECT count(*) FROM jobrunner.workers WHERE stopped_at IS NULL"
        wait_until(lambda: rows(program.dsn, taken) == [(1,)], timeout=60, what="the slot to be taken")
        first.process.send_signal(signal.SIGSTOP)
        over = "SELECT lease_expires_at < now() FROM jobrunner.workers"
        wait_until(lambda: rows(program.dsn, over) == [(True,)], timeout=30, what="the lease to be over")
        (program.home / "import-now").touch()
        with program.started("cron") as second:
            wait_until(began.exists, timeout=60, what="the job to begin in the second run")
            first.process.send_signal(signal.SIGCONT)
            assert first.process.wait(60) == 5
            release.touch()
            assert second.process.wait(60) == 0
        assert "took the slot of a lost worker" in second.err
        assert "lease lost while the app was imported" in first.err
        assert "another worker has the slot by now" in first.err
    assert runs(program.dsn) == [("lost", None), ("drained", 0)]
    assert rows(program.dsn, "SELECT state, lease FROM jobrunner.v_jobs") == [("succeeded", 1)]


def test_a_killed_run_is_taken_over(program):
    """After kill -9 the next start within the lease leaves the slot alone; the one after it takes over, runs the job again and says so."""
    began, release = hold(program)
    with program.started("cron", "--lease", "10m") as first:
        wait_until(began.exists, timeout=60, what="the job to begin")
        first.process.kill()
        first.process.wait()
    assert program("cron", "--strict", ok=None).code == 5
    release.touch()
    rows(program.dsn, "UPDATE jobrunner.workers SET lease_expires_at = now() RETURNING 1")  # as if ten minutes had gone by
    said = program("cron", "--summary")
    found = json.loads(said.out)
    assert (said.code, found["ok"], found["reason"]) == (0, 1, "drained")
    assert "took the slot of a lost worker" in said.err or "rescued the jobs of a lost worker" in said.err
    assert states(program.dsn) == {"succeeded": 1}
    assert ("lost", None) in runs(program.dsn)


def test_the_database_comes_back_in_time(durable_server, tmp_path):
    """A start while PostgreSQL restarts waits for it, and then works without a word."""
    from jobrunner import migrate

    dsn = durable_server.dsn("postgres")
    migrate.upgrade(dsn)
    (tmp_path / "app.py").write_text(APP)
    program = Program(tmp_path, dsn)
    program("-q", "enqueue", "add", '{"a": 1, "b": 2}')
    durable_server.stop()
    with program.started("cron", "-c", "1") as run:
        durable_server.start()
        assert run.process.wait(60) == 0
        assert (run.out, run.err) == ("", "")
    assert states(dsn) == {"succeeded": 1}


def test_every_reason_is_either_waited_for_or_not():
    """Whether another try may help is known of every reason that connecting can give."""
    from jobrunner import connecting

    lasting = {reason for _, reason, _ in connecting._REASONS if not connecting.may_pass(DatabaseUnreachable("db", reason, origin="--dsn"))}
    passing = {reason for _, reason, _ in connecting._REASONS} - lasting
    assert passing == {
        "too many connections", "unknown host", "connection refused", "no server on that socket", "no route to that host",
        "the server is starting up", "the server is shutting down", "no answer in time", "the connection was closed",
    }  # fmt: skip
    assert connecting.may_pass(DatabaseUnreachable("db", "etwas anderes", origin="--dsn"))


def test_drain_and_daemon_leave_their_run_too(program):
    """Every kind of worker leaves a row: why it left, with which code, what it did."""
    program("-q", "enqueue", "add", '{"a": 1, "b": 2}')
    program("work", "--drain")
    program("work", "--max-seconds", "0.1")
    with program.started("work") as daemon:
        daemon.wait_for("worker started")
        assert daemon.stop() == 0
    program("-q", "enqueue", "add", '{"a": 1, "b": 2}')
    program("work", "--max-jobs", "1")
    assert program("work", "--app", "no_such_module", ok=None).code == 2
    assert runs(program.dsn, "kind, reason, exit_code, succeeded_count") == [
        ("drain", "drained", 0, 1), ("daemon", "time", 0, 0), ("daemon", "signal", 0, 0), ("daemon", "done", 0, 1), ("daemon", "error", 2, 0),
    ]  # fmt: skip


def test_the_summarys_keys_are_described():
    """The how-to has a row for each key of the summary, and its example has them all in their order."""
    text = (Path(__file__).resolve().parents[2] / "docs" / "how-to" / "cron.md").read_text().partition("## The summary")[2]
    example = json.loads(text.partition("```json\n")[2].partition("\n```")[0])
    assert set(example) == SUMMARY_KEYS
    assert all(re.search(rf"^\| [^|]*`{key}`", text, re.MULTILINE) for key in SUMMARY_KEYS)
    assert example["ran"] == example["ok"] + example["failed"] + example["crashed"]
