"""`jobrunner enqueue` and `jobrunner run`: arguments, options, results."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from tests.support.cli import APP, Program


def test_enqueue_prints_the_id_and_nothing_else(program, connection):
    """stdout is the id, so that it can be used; --json is a document."""
    said = program("enqueue", "add", '{"a": 1, "b": 2}')
    number = int(said.out)
    assert said.out == f"{number}\n"
    assert connection.execute("SELECT task, args FROM jobrunner.jobs WHERE id = %s", (number,)).fetchone() == ("add", {"a": 1, "b": 2})
    document = program("enqueue", "later", "--json").json
    assert set(document) == {"id", "state", "created"}
    assert (document["state"], document["created"]) == ("queued", True)


def test_enqueue_options_become_columns(program, connection):
    """Queue, priority, attempts, unique key and times of the command line are those of the row."""
    number = program(
        "enqueue", "later", "--queue", "slow", "--priority", "-5", "--max-attempts", "2", "--unique-key", "k", "--in", "1h30m"
    ).out.strip()
    row = connection.execute(
        "SELECT queue, priority, max_attempts, unique_key, run_at - created_at > interval '89 minutes' FROM jobrunner.jobs WHERE id = %s",
        (number,),
    ).fetchone()
    assert row == ("slow", -5, 2, "k", True)
    at = datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)
    number = program("enqueue", "later", "--at", at.isoformat()).out.strip()
    assert connection.execute("SELECT run_at FROM jobrunner.jobs WHERE id = %s", (number,)).fetchone()[0] == at


def test_enqueue_unique_gives_the_job_that_is_there(program):
    """A second job with the same arguments is not written; the first one's id is printed and stderr says so."""
    first = program("enqueue", "later", '{"word": "x"}', "--unique").out
    said = program("enqueue", "later", '{"word": "x"}', "--unique")
    assert said.out == first
    assert "is there already" in said.err
    assert program("enqueue", "later", '{"word": "y"}', "--unique").out != first


def test_enqueue_wait_prints_the_result(program):
    """With --wait the result is the data, as JSON; a job that fails is 1 with its error."""
    with program.started("work", "default,mail") as worker:
        worker.wait_for("worker started")
        said = program("enqueue", "add", '{"a": 20, "b": 22}', "--wait", "--timeout", "30s")
        assert said.out == "42\n"
        document = program("enqueue", "add", '{"a": 20, "b": 22}', "--wait", "--json").json
        assert set(document) == {"id", "state", "created", "result", "error_type", "error"}
        assert (document["state"], document["result"]) == ("succeeded", 42)
        failed = program("enqueue", "divide", '{"a": 1, "b": 0}', "--wait", ok=None)
        assert (failed.code, failed.out) == (1, "")
        assert " failed: ZeroDivisionError: division by zero\n  see:   jobrunner jobs show " in failed.err
        assert worker.stop() == 0


def test_enqueue_does_not_wait_for_somebody_elses_commit(home, dsn, connection):
    """In an app whose default session is the user's, a job of the command line is committed all the same."""
    session = (
        "import sqlalchemy as sa\nfrom sqlalchemy.orm import Session\n"
        "session = Session(sa.create_engine('postgresql+psycopg' + DSN.removeprefix('postgresql')))\n"
    )
    (home / "app.py").write_text(f"DSN = {dsn!r}\n{session}{APP.replace('JobRunner(app)', 'JobRunner(app, session=lambda: session)')}")
    number = Program(home, dsn)("enqueue", "add", '{"a": 1, "b": 2}').out.strip()
    assert connection.execute("SELECT count(*) FROM jobrunner.jobs WHERE id = %s", (number,)).fetchone() == (1,)


def test_stdin_enqueues_all_lines_or_none(program, connection):
    """One job for each line; one wrong line, named by its number, and nothing is written."""
    said = program("enqueue", "add", "--stdin", "--queue", "bulk", stdin='{"a": 1, "b": 2}\n\n{"a": 3, "b": 4}\n')
    assert len(said.lines()) == 2
    assert "2 jobs enqueued" in said.err
    assert connection.execute("SELECT args->>'a' FROM jobrunner.jobs WHERE queue = 'bulk' ORDER BY id").fetchall() == [("1",), ("3",)]
    for lines, text in (
        ('{"a": 1, "b": 2}\n{"a": 3}\n', "line 2 of stdin: the arguments do not fit add"),
        ('{"a": 1, "b": 2}\nx\n', "line 2 of stdin: expecting value"),
    ):
        said = program("enqueue", "add", "--stdin", stdin=lines, ok=None)
        assert (said.code, said.out) == (2, "")
        assert text in said.err
    assert connection.execute("SELECT count(*) FROM jobrunner.jobs").fetchone() == (2,)
    assert program("enqueue", "add", "--stdin", "--json", stdin='{"a": 1, "b": 2}').json.keys() == {"ids"}


@pytest.mark.parametrize("command", ["enqueue", "run"])
def test_broken_json_is_shown_with_the_place(program, command):
    """The error has the column, the text and an arrow below the place, in exactly this shape."""
    said = program(command, "add", '{"a": 1 "b": 2}', ok=None)
    hint = """  hint:  such as '{"user_id": 42}'     (in quotes, for the shell)"""
    assert (said.code, said.err) == (
        2,
        "error: the arguments: expecting ',' delimiter, column 9\n"
        '  here:  {"a": 1 "b": 2}\n'
        "                 ^\n" + f"{hint:<72}  [exit 2]\n",
    )


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("[1]", "the arguments: a list, but a JSON object is needed, keyed by parameter name"),
        ("42", "the arguments: a number, but a JSON object is needed"),
        ("{'a': 1}", "the arguments: expecting property name enclosed in double quotes"),
        ('{"a": NaN, "b": 1}', "the arguments: NaN is not JSON"),
        ('{"a": 1}', "the arguments do not fit add(a: int, b: int) -> int: missing a required argument: 'b'"),
        ('{"a": 1, "b": 2, "c": 3}', "the arguments do not fit add"),
        ('{"a": "x", "b": 2}', "argument 'a' is of type str, expected int"),
    ],
)
def test_wrong_arguments_write_nothing(program, connection, text, error):
    """Arguments that are no object or do not fit the function are refused with 2 before anything is written."""
    said = program("enqueue", "add", text, ok=None)
    assert said.code == 2
    assert error in said.err
    assert connection.execute("SELECT count(*) FROM jobrunner.jobs").fetchone() == (0,)


@pytest.mark.parametrize(
    "line",
    [
        ["--in", "1m", "--at", "2030-01-01"],
        ["--unique", "--unique-key", "k"],
        ["--stdin", "--wait"],
        ["{}", "--stdin"],
        ["--timeout", "1s"],
    ],
)
def test_contradictions_are_refused(program, line):
    """Two options that cannot both hold are 2, and named."""
    assert program("enqueue", "add", *line, ok=None).code == 2


def test_run_needs_no_database(home):
    """A task runs here and now: its output, its result as JSON, no row, no server."""
    program = Program(home, "postgresql://nobody@127.0.0.1:1/none")
    said = program("run", "add", '{"a": 20, "b": 22}')
    assert said.out == "adding\n42\n"
    assert said.err == "the app is imported\n"
    assert program("run", "add", '{"a": 20, "b": 22}', "--json").json == 42
    assert program("run", "later", '{"word": "hello"}').out == '"hello from job 0"\n'


def test_run_shows_the_tasks_own_traceback(program):
    """An error of the task is 1, with its traceback from the task's frame on: nobody debugs our frames."""
    said = program("run", "divide", '{"a": 1, "b": 0}', ok=None)
    assert said.code == 1
    assert "ZeroDivisionError: division by zero\nerror: task 'divide' raised ZeroDivisionError" in said.err
    assert said.err.count('  File "') == 1


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("retry", "asked to be retried after 0:00:30: soon"),
        ("snooze", "asked to be run again"),
        ("cancel", "asked to be cancelled: gone"),
        ("fail", "asked to fail for good"),
    ],
)
def test_run_says_what_a_worker_would_have_done(program, what, text):
    """Retry, Snooze, Cancel and Fail are no results: 1, in words."""
    said = program("run", "control", f'{{"what": "{what}"}}', ok=None)
    assert said.code == 1
    assert f"error: task 'control' {text}" in said.err


def test_run_opens_the_debugger_where_the_task_raised(program):
    """--pdb stops in the task's frame, with its variables."""
    code, shown = program.on_terminal("run", "divide", '{"a": 7, "b": 0}', "--pdb", keys="p a * 6\nq\n")
    assert code == 1
    assert "42" in shown
    assert "-> return a / b" in shown
