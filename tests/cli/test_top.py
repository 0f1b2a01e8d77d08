"""`jobrunner top`: one look as text and as JSON, looks into a pipe, and a terminal that is redrawn and left as it was."""

from __future__ import annotations

import io
import json
import re
import signal

import pytest
from rich.cells import cell_len
from rich.console import Console

from jobrunner.cli.top.drawing import UNICODE
from jobrunner.cli.top.frame import Setting, frame
from jobrunner.cli.top.watching import Wanted, look
from jobrunner.database import Database
from jobrunner.inspection import VIEWS
from jobrunner.settings import describe_target, parse_dsn
from tests.support.cli import Program
from tests.support.seed import seed
from tests.support.terminals import ALTERNATE, HIDDEN, MAIN, SHOWN, terminal
from tests.support.waiting import wait_until

TOP_KEYS = {
    "target", "at", "trouble", "view", "filter", "workers_alive", "slots", "running", "queues", "throughput", "jobs", "errors", "workers",
    "more",
}  # fmt: skip
THROUGHPUT_KEYS = {
    "span_ms", "ended", "succeeded", "failed", "failed_share", "succeeded_per_second", "per_minute", "per_queue", "run_ms", "wait_ms",
}  # fmt: skip
ERROR_KEYS = {
    "fingerprint", "error_type", "exit_cause", "message", "events", "jobs", "task", "tasks", "newest_job_id", "first_at", "last_at",
}  # fmt: skip
PLAIN = ("-c", "import sys; sys.modules['textual'] = None; from jobrunner.cli import main; main()")  # as if it were not installed
COLORED = re.compile(r"\x1b\[[0-9;]*(3[1-7]|9[0-7]|38;)[0-9;]*m")


@pytest.fixture
def plain(program):
    """`jobrunner` where Textual is not installed."""
    return Program(program.home, program.dsn, PLAIN)


def test_a_frame_has_header_panels_and_the_list(connection, reader):
    """One look as text: target, numbers, a line for each queue, throughput, the running jobs with progress and worker; no app needed."""
    ids = seed(connection, 400)
    connection.execute("UPDATE jobrunner.jobs SET progress = 0.8, progress_text = 'page 4/5' WHERE id = %s", (ids["running"],))
    said = reader("top", "--once")
    lines = said.lines()
    assert lines[0].startswith(f"jobrunner top  {describe_target(reader.dsn)}")
    assert re.search(r"ready 23 \(oldest 9m\d\ds\)  running 5/12  ok [\d.]+/s  fail [\d.]+%", said.out)
    assert re.search(r"^│ mail +2/12 +█+░+ +6 +[\d.]+s +[▁-█]{20} │", said.out, re.MULTILINE)
    assert re.search(r"│ run +[\d.]+m?s +[\d.]+m?s +[\d.]+m?s +│$", said.out, re.MULTILINE)
    assert re.search(
        rf"^ *{ids['running']} +billing.invoice +billing +1/5 +[\d.]+s +worker-1@web-1 +████░ 80% page 4/5 {{", said.out, re.MULTILINE
    )
    assert "\x1b" not in said.out
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize("trouble", [None, "cannot reach PostgreSQL at " + "a.very.long.host.name." * 20])
@pytest.mark.parametrize("columns", [60, 80, 120, 200])
@pytest.mark.parametrize("height", [16, 24, 60])
def test_a_frame_fits(connection, dsn, columns, height, trouble):
    """Whatever the width and the height, no line is longer, and no more lines are there."""
    seed(connection, 400)
    connection.execute(
        "INSERT INTO jobrunner.jobs (task, queue) SELECT repeat('t', 90), repeat('q', 40) || n FROM generate_series(1, 30) AS n"
    )
    database = Database(parse_dsn(dsn, "test"))
    for view in VIEWS:
        sight = look(database, Wanted(view))._replace(trouble=trouble)
        console = Console(width=columns, file=io.StringIO())
        with console.capture() as capture:
            console.print(frame(sight, Setting("somebody@somewhere/" + "db" * 40, 2.0), columns, height, UNICODE))
        lines = capture.get().splitlines()
        assert max(map(cell_len, lines)) <= columns, capture.get()
        assert len(lines) <= height, capture.get()
    database.close()


def test_a_text_from_a_row_cannot_move_the_cursor(connection, reader):
    """Control characters in names, arguments, errors and progress are shown as escapes in every list."""
    evil = "\x1b[2J\x07\u202e\r"
    connection.execute(
        "INSERT INTO jobrunner.jobs (task, queue, attempt, last_error_type, last_error) VALUES (%s, %s, 1, %s, %s)",
        (evil, evil, evil, evil),
    )
    out = reader("top", "--once", "--view", "ready", env={"COLUMNS": "200"}).out
    assert "\\x1b[2J\\x07\\u202e\\r" in out
    assert not set("\x1b\x07\u202e\r") & set(out)


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        ("ready", r"^ *\d+ +export.gdpr +default +0/5 +0 +9m\d\ds +\{"),
        ("failed", r"^ *\d+ +\w\S+ +\w+ +3/3 +\d\S+ +1.0s +failed +shop.http.UpstreamTimeout: no answer from"),
        ("errors", r"^ *\d+ +\d+ +\d\S+ +\w\S+ (?:\+\d)? +\d+ +shop.http.UpstreamTimeout: no answer from"),
        ("workers", r"^worker-2@web-2 +alive +2/4 +\d\S+ +341.5 MB +default,mail$"),
    ],
)
def test_every_list_shows_its_rows(connection, reader, view, expected):
    """Due jobs with how long they wait, failed ones with their error, groups of errors with counts, workers with their memory."""
    seed(connection, 400)
    out = reader("top", "--once", "--view", view).out
    assert re.search(expected, out, re.MULTILINE), out


def test_workers_show_what_their_slots_run(connection, reader):
    """Below a worker there is a line for each slot that is busy: job, task, since when, memory, as the worker said."""
    seed(connection, 20)
    said = json.dumps([{"slot": 2, "job": 4711, "task": "etl.load", "attempt": 3, "seconds": 250, "memory": 512_000_000}])
    connection.execute(
        "UPDATE jobrunner.workers SET running = %s, memory_bytes = 660000000 WHERE name = 'worker-1@web-1' AND stopped_at IS NULL", (said,)
    )
    out = reader("top", "--once", "--view", "workers").out
    assert re.search(
        r"^worker-1@web-1 +alive +3/8 +[\d.]+s +660.0 MB +default,mail,media,billing\n  slot 2 +#4711 +3 +4m\d\ds +512.0 MB +etl.load$",
        out,
        re.MULTILINE,
    ), out


def test_a_filter_narrows_the_list_and_nothing_else(connection, reader):
    """The filter of `jobs list`, negation included; the panels stay those of everything."""
    seed(connection, 20)
    everything, some = (reader("top", *terms, "--once", "--view", "ready", "--json").json for terms in ((), ("queue:mail", "-task:mail.*")))
    assert {job["task"] for job in some["jobs"]} == {"send_welcome"}
    assert some["filter"] == "queue:mail -task:mail.*"
    assert [row["queue"] for row in some["queues"]] == [row["queue"] for row in everything["queues"]]
    assert "no job runs that matches" in reader("top", "id:1", "--once").out


def test_one_document(connection, reader):
    """--json is one look as one document with every key."""
    seed(connection, 400)
    document = reader("top", "--json").json
    assert set(document) == TOP_KEYS
    assert set(document["throughput"]) == THROUGHPUT_KEYS
    assert len(document["throughput"]["per_minute"]) == 10
    assert document["trouble"] is None
    errors = reader("top", "--json", "--view", "errors").json["errors"]
    assert set(errors[0]) == ERROR_KEYS
    assert errors[0]["error_type"] == "shop.http.UpstreamTimeout"


@pytest.mark.parametrize(
    ("arguments", "code"), [(["--view", "none"], 2), (["--interval", "0"], 2), (["queu:mail"], 2), (["--json", "--jsonl"], 2)]
)
def test_what_makes_no_sense_is_refused(reader, arguments, code):
    """An unknown list, no interval, a misspelt filter, two kinds of JSON: usage, before anything is looked at."""
    assert reader("top", *arguments, ok=None).code == code


def test_without_a_database_it_does_not_begin(program):
    """When there is none at the start, that is the answer: a mistyped address is not waited for."""
    assert program("top", "--once", "--dsn", "postgresql://127.0.0.1:1/none", ok=None).code == 3


def test_the_encoding_of_the_terminal_is_kept_to(connection, reader):
    """Where the encoding has no blocks and lines, there are other characters."""
    seed(connection, 400)
    out = reader("top", "--once", env={"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}).out
    assert out.isascii()
    assert "\\u" not in out
    assert re.search(r"^\| mail +2/12 +#+\.+ +6 ", out, re.MULTILINE), out


def test_look_after_look_into_a_pipe(program):
    """Without a terminal it is text, again and again, until Ctrl-C, which is the way it ends: 0."""
    with program.started("top", "--interval", "0.2") as watching:
        wait_until(lambda: watching.out.count("jobrunner top") >= 3, timeout=30, what="three looks are printed")
        assert watching.stop(signal.SIGINT) == 0
        assert watching.err == ""


def test_a_real_worker_is_seen_at_work(program):
    """What runs, on which worker, with its slot; and what failed, as a group: as it happens."""
    release, started = program.home / "release", program.home / "started"
    arguments = json.dumps({"started": str(started), "release": str(release)})
    with program.started("work", "mail,default", "-c", "2", "--name", "lisa") as worker:
        worker.wait_for("worker started")
        number = int(program("-q", "enqueue", "hold", arguments).out)
        failing = program("-q", "enqueue", "divide", '{"a": 1, "b": 0}').out.strip()
        assert program("jobs", "wait", failing, "--timeout", "30s", ok=None).code == 1
        wait_until(started.exists, timeout=30, what="the job runs")
        running = program("top", "--once").out
        assert re.search(rf"^ *{number} +hold +default +1/5 +[\d.]+m?s +lisa +{{", running, re.MULTILINE), running
        assert re.search(r"running 1/2 ", running)
        errors = program("top", "--once", "--view", "errors").out
        assert re.search(rf"^ *1 +1 +\S+ +divide +{failing} +ZeroDivisionError: division by zero$", errors, re.MULTILINE), errors

        def slots():
            return program("top", "--once", "--view", "workers").out

        wait_until(
            lambda: re.search(rf"slot \d+ +#{number} +1 +[\d.]+s +[\d.]+ MB +hold$", slots(), re.MULTILINE), timeout=30, what="the slot"
        )
        release.touch()
        program("jobs", "wait", number, "--timeout", "30s")
        assert not re.search(rf"^ *{number} +hold ", program("top", "--once").out, re.MULTILINE)
        assert worker.stop() == 0


def test_a_restart_of_the_database_is_waited_through(tmp_path, durable_server):
    """While it is away a look says why; when it is back, looks go on, without having been started again."""
    program = Program(tmp_path, durable_server.dsn("postgres"))
    program("db", "upgrade")
    with program.started("top", "--jsonl", "--interval", "0.2") as watching:

        def last() -> dict[str, object]:
            whole = watching.out.rpartition("\n")[0]
            return json.loads(whole.rpartition("\n")[2]) if whole else {}

        wait_until(lambda: last().get("at"), timeout=30, what="a look is printed")
        durable_server.stop(mode="fast")
        wait_until(lambda: last()["trouble"], timeout=30, what="a look fails")
        gone = last()
        assert "cannot reach PostgreSQL" in str(gone["trouble"])
        assert set(gone) == TOP_KEYS
        assert gone["queues"] is None
        durable_server.start()
        wait_until(lambda: last()["at"], timeout=60, what="a look succeeds again")
        assert last()["trouble"] is None
        assert watching.stop(signal.SIGINT) == 0
        assert watching.err == ""


def test_a_terminal_is_redrawn_and_left_as_it_was(connection, plain):
    """Without Textual: a screen of its own, new numbers with each look, the new width at once, the way to keys; Ctrl-C leaves no trace."""
    seed(connection, 20)
    with terminal(plain, "top", "--interval", "0.2", columns=110, lines=24) as screen:
        screen.wait_for("ready 23", 'keys: pip install "jobrunner-pg[tui]"')
        assert len(screen.frame().splitlines()) <= 24
        connection.execute("INSERT INTO jobrunner.jobs (task) VALUES ('fresh')")
        screen.wait_for("ready 24")
        screen.resize(70, 40)
        wait_until(lambda: 0 < max(map(len, screen.frame().splitlines()), default=0) <= 70, timeout=30, what="it is drawn narrower")
        screen.wait_for("Ctrl-C ends")
        assert screen.end(signal.SIGINT) == 0
        assert screen.as_before()
        assert screen.raw.rindex(MAIN) > screen.raw.rindex(ALTERNATE)
        assert screen.raw.rindex(SHOWN) > screen.raw.rindex(HIDDEN)
        assert "Traceback" not in screen.raw


def test_a_terminal_is_given_back_when_the_program_is_ended(plain):
    """SIGTERM ends it as any command, and still gives the terminal back."""
    with terminal(plain, "top", "--interval", "0.2") as screen:
        screen.wait_for("ready 0")
        assert screen.end(signal.SIGTERM) == 143
        assert screen.raw.rindex(MAIN) > screen.raw.rindex(ALTERNATE)
        assert screen.raw.rindex(SHOWN) > screen.raw.rindex(HIDDEN)


@pytest.mark.parametrize(("given", "colored"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_colours_are_left_out_when_asked(connection, plain, given, colored):
    """NO_COLOR is obeyed, on a terminal too."""
    seed(connection, 20)
    with terminal(plain, "top", "--interval", "0.2", env=given) as screen:
        screen.wait_for("ready 23")
        assert bool(COLORED.search(screen.raw)) is colored
        assert screen.end(signal.SIGINT) == 0


def test_the_header_says_that_the_database_is_away(tmp_path, durable_server):
    """On the terminal what was seen last stays, with why nothing new comes; when it is back, that goes away."""
    program = Program(tmp_path, durable_server.dsn("postgres"), PLAIN)
    program("db", "upgrade")
    with terminal(program, "top", "--interval", "0.2") as screen:
        screen.wait_for("ready 0")
        durable_server.stop(mode="immediate")
        screen.wait_for("reconnecting", "! cannot reach PostgreSQL", "ready 0")
        durable_server.start()
        screen.wait_for("  live ")
        assert screen.end(signal.SIGINT) == 0


def test_help_and_other_commands_import_neither_rich_nor_textual(reader):
    """`top` is paid for by who calls it: its help, and other commands, import no library that draws."""
    look = "import sys; from jobrunner.cli import run; run({!r}); print([name for name in ('rich', 'textual') if name in sys.modules])"
    for arguments in (["top", "--help"], ["jobs", "list"]):
        assert Program(reader.home, reader.dsn, ("-c", look.format(arguments)))().out.endswith("[]\n")


def test_it_is_a_command_of_flask_too(program):
    """`flask jobs top` is the same."""
    assert "jobrunner top" in Program(program.home, program.dsn, ("-m", "flask"))("jobs", "top", "--once").out
