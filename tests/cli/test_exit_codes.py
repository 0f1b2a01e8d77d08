"""Every exit code, with the text that goes with it."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from jobrunner import migrate
from jobrunner.settings import describe_target
from tests.support.cli import Program
from tests.support.waiting import wait_until

SECRET = "hunter2-and-more"


def test_0_done_and_nothing_to_do(reader):
    """A command that did what it was asked ends with 0, also when there was nothing to do."""
    assert reader("jobs", "list").code == 0
    assert reader("db", "upgrade").err.endswith(f"nothing to do: the schema is at {migrate.version(reader.dsn).head}\n")


def test_1_what_was_asked_about_is_bad(program):
    """`--wait` for a job that fails ends with 1 and says how to see more."""
    number = program("enqueue", "divide", '{"a": 1, "b": 0}').out.strip()
    program("work", "mail", "--drain")
    said = program("jobs", "wait", number, ok=None)
    assert (said.code, said.out) == (1, f"{number}  failed\n")
    assert f"error: job {number} failed\n  see:   jobrunner jobs show {number} " in said.err
    assert said.err.rstrip().endswith("[exit 1]")


@pytest.mark.parametrize(
    "line",
    [
        ["wrk"],
        ["--jsn"],
        ["jobs", "list", "--limit", "0"],
        ["jobs", "show"],
        ["jobs", "show", "x"],
        ["jobs", "list", "state:faild"],
        ["work", "mail:0"],
    ],
)
def test_2_usage(reader, line):
    """A command line that makes no sense ends with 2, in the shape of every error."""
    said = reader(*line, ok=None)
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith("error: ")
    assert said.err.rstrip().endswith("[exit 2]")


def test_2_names_the_close_ones(reader):
    """An unknown command is answered with the one that was probably meant, and the exact three lines."""
    said = reader("jobs", "lisst", ok=None)
    assert said.err == (
        "error: there is no command 'lisst'. Did you mean 'list'?\n"
        "  usage: jobrunner jobs [OPTIONS] COMMAND [ARGS]...\n"
        f"{'  see:   jobrunner jobs --help':<72}  [exit 2]\n"
    )


def test_3_nobody_listens(reader):
    """A refused connection says where, why, where the address came from, and what to try; never the password."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said = reader("status", env={"JOBRUNNER_DSN": f"postgresql://shop:{SECRET}@127.0.0.1:{port}/orders"}, ok=None)
    lines = said.err.splitlines()
    assert (said.code, said.out) == (3, "")
    assert lines[0] == f"error: cannot reach PostgreSQL at 127.0.0.1:{port} (connection refused)"
    assert lines[1] == "  tried: JOBRUNNER_DSN · user shop · database orders"
    assert lines[2].startswith("  try:   ")
    assert lines[2].endswith("[exit 3]")
    assert SECRET not in said.err


def test_3_login_refused(reader, server):
    """A login that the server refuses is 3 as well, with the server's reason."""
    for dsn in (reader.dsn + ("&" if "?" in reader.dsn else "?") + "user=nobody_of_that_name", server.dsn("no_such_database")):
        said = reader("jobs", "list", "--dsn", dsn, ok=None)
        assert said.code == 3
        assert "(no such " in said.err
        assert "  tried: --dsn · user " in said.err


@pytest.mark.parametrize("line", [["-v", "status"], ["jobs", "list"], ["-v", "db", "current"], ["-v", "work"]])
def test_passwords_are_never_printed(reader, line):
    """Not in an error, not in a traceback with -v, not in the target of a command that writes."""
    dsn = f"postgresql://shop:{SECRET}@127.0.0.1:1/orders?connect_timeout=2"
    said = reader(*line, "--dsn", dsn, ok=None)
    assert said.code == 3
    assert SECRET not in said.out + said.err


def test_4_schema_missing(tmp_path, empty_dsn):
    """A database without our tables is 4, with the command that makes them, for commands that read, write and work."""
    (tmp_path / "app.py").write_text("from jobrunner import JobRunner\njobs = JobRunner()\n@jobs.task\ndef add(): ...\n")
    program = Program(tmp_path, empty_dsn)
    target = describe_target(empty_dsn)
    for line in (
        ["jobs", "list"],
        ["status"],
        ["jobs", "retry", 1],
        ["enqueue", "add"],
        ["work", "--drain"],
        ["db", "check"],
        ["web", "--port", "0"],
    ):
        said = program(*line, ok=None)
        expected = f'error: schema "jobrunner" does not exist in {target}\n{"  run:   jobrunner db upgrade":<72}  [exit 4]\n'
        assert (said.code, expected in said.err) == (4, True), (line, said.err)


@pytest.mark.parametrize(("version", "text"), [("0000", "newer than this program knows"), ("9999", "newer than this program knows")])
def test_4_schema_of_another_program(reader, fresh_dsn, version, text):
    """A revision that this program does not know is 4, and is not touched by an upgrade."""
    with psycopg.connect(fresh_dsn, autocommit=True) as connection:
        connection.execute("UPDATE jobrunner.alembic_version SET version_num = %s", (version,))
    for line in (["jobs", "list"], ["db", "upgrade"], ["db", "check"]):
        said = reader(*line, "--dsn", fresh_dsn, ok=None)
        assert said.code == 4
        assert text in said.err
    assert migrate.version(fresh_dsn).current == version


def test_5_not_finished_at_the_timeout(program):
    """Waiting that ends before the job does is 5; the job goes on, and the error says how to learn why it waits."""
    number = program("enqueue", "add", '{"a": 1, "b": 2}').out.strip()
    said = program("jobs", "wait", number, "--timeout", "10ms", ok=None)
    assert said.code == 5
    assert f"error: job {number} is not finished after " in said.err
    assert f"jobrunner jobs show {number}" in said.err
    assert "warning: no worker is alive" in said.err
    assert program("enqueue", "add", '{"a": 1, "b": 2}', "--wait", "--timeout", "10ms", ok=None).code == 5


@pytest.mark.parametrize("command", ["web", "dev"])
def test_5_port_in_use(program, command):
    """A port that somebody else has is 5, with another to try, before anything is started."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = program(command, "--port", port, ok=None)
    assert said.code == 5
    assert f"error: port {port} of 127.0.0.1 is in use\n  try:   --port {port + 1}" in said.err


def test_6_not_found(program):
    """An id that no job has, and a name that no task has, are 6."""
    for line in (["show"], ["wait"], ["retry"], ["cancel"]):
        said = program("jobs", *line, 987654321, ok=None)
        assert said.code == 6
        assert "error: no job 987654321\n" in said.err
    for line in (["enqueue", "ad"], ["run", "ad"]):
        said = program(*line, ok=None)
        assert said.code == 6
        assert "error: task 'ad' is not registered. Did you mean 'add'?\n  registered: add, control, divide, hold, later" in said.err


def test_7_refused(program):
    """What is not possible in the job's state is 7, and what destroys needs --yes when nobody can be asked."""
    number = program("enqueue", "add", '{"a": 1, "b": 2}').out.strip()
    program("work", "--drain")
    said = program("jobs", "retry", number, ok=None)
    assert said.code == 7
    assert f"error: cannot retry job {number}: it is succeeded" in said.err
    embedded = {"JOBRUNNER_EMBEDDED_DIR": str(program.home / "pg")}
    said = program("db", "destroy", env=embedded, ok=None)
    assert said.code == 7
    assert "  run:   jobrunner db destroy --yes" in said.err


def test_70_our_bug_is_saved_to_a_file(program):
    """An exception nobody expected becomes two lines and a file with the traceback, without passwords; -v shows it as well."""
    broken = (
        "import runpy, sys, jobrunner.inspection as inspection\n"
        f"def fail(*a, **k): raise ZeroDivisionError('while reading postgresql://shop:{SECRET}@db/x')\n"
        "inspection.list_jobs = fail\nsys.argv = ['jobrunner', *sys.argv[1:]]\nrunpy.run_module('jobrunner', run_name='__main__')\n"
    )
    (program.home / "broken.py").write_text(broken)
    temporary = program.home / "tmp"
    temporary.mkdir()
    broken_program = Program(program.home, program.dsn, ("broken.py",))
    environment = {"TMPDIR": str(temporary), "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    said = broken_program("jobs", "list", env=environment, ok=None)
    match = re.search(r"^  saved: (\S+)$", said.err, re.MULTILINE)
    assert said.code == 70
    assert match
    assert said.err.startswith("error: unexpected ZeroDivisionError: while reading postgresql://shop:***@db/x\n")
    assert "Traceback" not in said.err
    saved = Path(match[1])
    assert saved.parent == temporary
    assert saved.stat().st_mode & 0o077 == 0
    assert "ZeroDivisionError" in saved.read_text()
    assert SECRET not in saved.read_text() + said.err
    assert "Traceback" in broken_program("-v", "jobs", "list", env=environment, ok=None).err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_130_143_stopped_while_waiting(program, number, code):
    """Ctrl-C and SIGTERM end a wait with their code and without a traceback."""
    job = program("enqueue", "add", '{"a": 1, "b": 2}').out.strip()
    with program.started("jobs", "wait", job) as waiting:
        waiting.wait_for("no worker is alive")
        assert waiting.stop(number) == code
        assert "Traceback" not in waiting.err


def test_143_a_second_signal_ends_a_worker_at_once(program):
    """A worker that is told twice to stop gives its job back and ends with 143."""
    started, release = program.home / "started", program.home / "release"
    program("enqueue", "hold", f'{{"started": "{started}", "release": "{release}"}}')
    with program.started("work", "--grace", "1m") as worker:
        wait_until(started.exists, timeout=30, what="the job has begun")
        worker.process.terminate()
        worker.wait_for("stopping")
        assert worker.stop() == 143


def test_a_broken_app_is_told_with_its_place(program):
    """An app that cannot be imported is named with the error, file and line; no traceback without -v."""
    (program.home / "app.py").write_text("import flask\n\nimport flask_mail_of_ours\n")
    for line in (["enqueue", "add"], ["run", "add"], ["work"]):
        said = program(*line, ok=None)
        assert said.code == 2
        assert "could not import app" in said.err
        assert "ModuleNotFoundError: No module named 'flask_mail_of_ours'   (app.py:3)" in said.err
        assert "Traceback" not in said.err
        assert "Traceback" in program("-v", *line, ok=None).err


def test_a_closed_pipe_is_no_error(program):
    """`| head` that leaves early makes no noise and no error."""
    connection = psycopg.connect(program.dsn, autocommit=True)
    with connection:
        connection.execute(
            "INSERT INTO jobrunner.jobs (task, args) SELECT 'add', jsonb_build_object('x', repeat('x', 2000)) FROM generate_series(1, 200)"
        )
    command = f"{sys.executable} -m jobrunner jobs list --limit 200 --json | head -c 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], env=program.environment(), cwd=program.home, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("{0\n", "")
