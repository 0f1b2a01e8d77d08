"""What holds for every command: options anywhere, colours, talk apart from data, the two doors, no import of the app."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from jobrunner.settings import describe_target
from tests.support.cli import APP, Program
from tests.support.commands import clean_environment

READING = (
    ["jobs", "list"],
    ["jobs", "show", "1"],
    ["jobs", "wait", "1"],
    ["jobs", "retry", "1"],
    ["jobs", "cancel", "1"],
    ["status"],
    ["db", "current"],
    ["db", "check"],
    ["db", "upgrade"],
    ["db", "status"],
    ["db", "sql"],
)


def insert(connection, task="add", args='{"a": 1}', **columns):
    """One job by plain SQL; returns its id."""
    names = ["task", "args", *columns]
    places = ", ".join(["%s"] * len(names))
    return connection.execute(
        f"INSERT INTO jobrunner.jobs ({', '.join(names)}) VALUES ({places}) RETURNING id", [task, args, *columns.values()]
    ).fetchone()[0]


@pytest.mark.parametrize("line", READING, ids=" ".join)
def test_commands_that_need_no_task_import_no_app(reader, line):
    """An operator can look at jobs, retry and cancel them where the application cannot even be imported."""
    assert "the application was imported" not in reader(*line, ok=None).err


def test_the_app_is_asked_only_when_nothing_else_names_the_database(reader):
    """Without --dsn, JOBRUNNER_DSN and DATABASE_URL the app's config decides, so a broken app is an error that names the way out."""
    dsn = reader.dsn
    reader.dsn = None
    said = reader("jobs", "list", ok=None)
    assert said.code == 2
    assert "RuntimeError: the application was imported   (app.py:1)" in said.err
    assert "--dsn or JOBRUNNER_DSN: commands that only read then need no app" in said.err
    assert reader("jobs", "list", env={"DATABASE_URL": dsn}).code == 0
    assert reader("jobs", "list", "--dsn", dsn).code == 0


def test_the_database_of_the_apps_config_is_found(home, dsn, connection):
    """With no variable set, commands use the database that the app's config names, and start no other beside it."""
    (home / "app.py").write_text(
        APP.replace("jobs = JobRunner(app)", f"app.config['SQLALCHEMY_DATABASE_URI'] = {dsn!r}\njobs = JobRunner(app)")
    )
    number = insert(connection)
    program = Program(home, None)
    assert program("jobs", "list", "--json").json["items"][0]["id"] == number
    assert describe_target(dsn) in program("status").out
    program("work", "--drain")
    assert not (home / ".jobrunner").exists()
    said = program("work", "--drain", env={"DATABASE_URL": "postgresql://other@127.0.0.1:1/other"})
    assert "is used, not DATABASE_URL (other@127.0.0.1:1/other)" in said.err


def test_global_options_stand_anywhere(reader, connection):
    """--json and the others mean the same before the group, between group and command, and at the end."""
    number = insert(connection)
    for line in (["--json", "jobs", "list"], ["jobs", "--json", "list"], ["jobs", "list", "--json"]):
        assert [job["id"] for job in reader(*line).json["items"]] == [number]
    dsn = reader.dsn
    reader.dsn = None
    for line in (["--dsn", dsn, "jobs", "list"], ["jobs", "list", "--dsn", dsn, "--json"]):
        assert str(number) in reader(*line).out


def test_version_is_the_same_everywhere(reader):
    """--version answers on one line, anywhere on the line, without a database."""
    reader.dsn = None
    answers = {reader(*line).out for line in (["--version"], ["jobs", "--version"], ["jobs", "list", "--version"])}
    assert len(answers) == 1
    assert answers.pop().startswith("jobrunner ")


def test_groups_without_a_command_show_their_help(reader):
    """A group alone shows what it has, and that is no error."""
    assert "Exit codes:" in reader().out
    assert "cancel  Cancel waiting jobs" in reader("jobs").out
    assert "destroy  Remove the embedded PostgreSQL" in reader("db").out


def test_quiet_says_nothing_but_data_and_errors(reader, connection):
    """-q silences talk, not data."""
    number = insert(connection)
    said = reader("-q", "jobs", "cancel", number)
    assert (said.out, said.err) == ("", "")
    assert reader("jobs", "list", "-q").lines()[1].split()[0] == str(number)


def test_writing_commands_name_their_target_first(reader, connection):
    """What changes something says on stderr where, without a password, before it does."""
    number = insert(connection)
    target = f"target: {describe_target(reader.dsn)} schema jobrunner\n"
    for line in (["jobs", "cancel", number], ["jobs", "retry", number], ["db", "upgrade"]):
        assert reader(*line).err.startswith(target)
    for line in (["jobs", "list"], ["status"], ["jobs", "show", number]):
        assert "target:" not in reader(*line).err


def test_pipes_get_plain_text_and_terminals_tables(reader, connection):
    """No escape sequence reaches a pipe; a terminal gets colours unless --no-color or NO_COLOR."""
    insert(connection)
    assert "\x1b" not in reader("jobs", "list").out + reader("status").out
    code, shown = reader.on_terminal("jobs", "list")
    assert code == 0
    assert "\x1b[" in shown
    for line, env in ((["jobs", "list", "--no-color"], {}), (["jobs", "list"], {"NO_COLOR": "1"}), (["--no-color", "jobs", "show", 1], {})):
        _, shown = reader.on_terminal(*line, env=env)
        assert "\x1b[3" not in shown, line


def test_a_narrow_terminal_keeps_one_line_for_each_job(reader, connection):
    """What does not fit is cut in the last column; the columns before it stay."""
    insert(connection, args='{"text": "%s"}' % ("word " * 100))
    _, shown = reader.on_terminal("jobs", "list", columns=80, env={"NO_COLOR": "1"})
    assert len(shown.splitlines()) == 2
    assert "queued" in shown
    assert "…" in shown


def test_arguments_cannot_move_the_cursor(reader, connection):
    """Control characters in a job's arguments, error and names are shown as escapes, never sent to a terminal."""
    number = insert(connection, task="a\x1b[2Jb", args='{"x": "\\u001b[31mred\\u009b1A"}', queue="q\x07")
    for line in (["jobs", "list"], ["jobs", "show", number], ["status"]):
        out = reader(*line).out
        assert "\x1b" not in out
        assert "\x07" not in out
        assert "\x9b" not in out
    assert "a\\x1b[2Jb" in reader("jobs", "list").out


def test_a_terminal_without_unicode_is_no_error(reader, connection):
    """Where the encoding lacks a character, its escape is shown, and JSON stays JSON."""
    insert(connection, args='{"x": "日本 😀"}')
    environment = {"PYTHONIOENCODING": "latin-1", "LC_ALL": "C"}
    assert reader("jobs", "list", env=environment).code == 0
    assert reader("jobs", "list", "--json", env=environment).json["items"][0]["args_excerpt"] == '{"x": "日本 😀"}'


def test_flask_jobs_is_the_same_program(program, home, dsn):
    """`flask jobs …` prints the same, takes the same options and ends with the same codes as `jobrunner …`."""
    flask = Program(home, dsn, ("-m", "flask", "--app", "app", "jobs"))
    number = flask("enqueue", "add", '{"a": 1, "b": 2}').out.strip()
    for line in (
        ["jobs", "list"],
        ["jobs", "show", number, "--json"],
        ["db", "current"],
        ["jobs", "show", "99999"],
        ["jobs", "list", "state:faild"],
    ):
        one, other = program(*line, ok=None), flask(*line, ok=None)
        assert (one.code, _without_times(one.out)) == (other.code, _without_times(other.out))
        assert other.err.replace("the app is imported\n", "").replace("python -m flask jobs", "jobrunner") == one.err
    assert flask("--json", "status").json["target"] == program("--json", "status").json["target"]
    flask("work", "--drain", "-q")
    assert program("jobs", "wait", number).out == f"{number}  succeeded\n"


def test_flask_jobs_imports_what_the_app_names(tmp_path, dsn):
    """As `jobrunner …` does: the modules with tasks that a Celery app only names are there for a command that came through Flask."""
    (tmp_path / "app.py").write_text(
        "from flask import Flask\nfrom jobrunner.compat.celery import Celery\n\napp = Flask(__name__)\n"
        "celery = app.extensions['celery'] = Celery('shop', include=['reports'])\n"
    )
    (tmp_path / "reports.py").write_text("from app import celery\n\n\n@celery.task(name='shop.report')\ndef report(number):\n    return number\n")
    for argv in (("-m", "jobrunner"), ("-m", "flask", "--app", "app", "jobs")):
        said = Program(tmp_path, dsn, argv)("enqueue", "shop.report", '{"number": 1}')
        assert said.out.strip().isdigit()
    (tmp_path / "reports.py").write_text("import no_such_module\n")
    said = Program(tmp_path, dsn, ("-m", "flask", "--app", "app", "jobs"))("enqueue", "shop.report", "{}", ok=None)
    assert said.code != 0
    assert "no_such_module" in said.err


def _without_times(text: str) -> list[str]:
    return [line for line in text.splitlines() if '"at":' not in line and '"wait_ms":' not in line]


def test_flask_jobs_uses_the_database_of_the_current_app(home, dsn):
    """Through `flask --app`, that app's config goes before DATABASE_URL."""
    (home / "other.py").write_text(APP.replace("jobs = JobRunner(app)", f"app.config['JOBRUNNER_DSN'] = {dsn!r}\njobs = JobRunner(app)"))
    flask = Program(home, None, ("-m", "flask", "--app", "other", "jobs"))
    said = flask("status", env={"DATABASE_URL": "postgresql://other@127.0.0.1:1/other"})
    assert describe_target(dsn) in said.out


def test_help_imports_no_command(home):
    """The table of commands is printed without importing one of them, nor a database driver."""
    code = (
        "import sys\nfrom jobrunner.cli import run\ncode = run(['--help'])\n"
        "heavy = {'psycopg', 'sqlalchemy', 'alembic', 'flask', 'rich', 'asyncio'}\n"
        "ours = {f'jobrunner.cli.{name}' for name in ('jobs', 'work', 'db', 'status', 'enqueue')}\n"
        "found = (heavy | ours) & sys.modules.keys()\nassert not found, found\nsys.exit(code)"
    )
    environment = clean_environment() | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
