"""`jobrunner jobs logs`: what the attempts of a job logged, once or as it comes, for people and for programs."""

from __future__ import annotations

import json
import re
import signal

import pytest

from jobrunner.states import State
from tests.support.rows import Scene
from tests.support.waiting import wait_until

LOG_KEYS = {"job_id", "state", "finished", "next", "items"}
LINE_KEYS = {"lease", "attempt", "line", "logged_at", "level", "logger", "message"}
NASTY = "red \x1b[31mtext\x07\nsecond\tline\r\u202egnp.exe"


@pytest.fixture
def scene(connection):
    """The database that the program reads."""
    return Scene(connection)


def write(scene, job_id, *lines, lease=7, attempt=1, begin=1):
    """Lines of one attempt, each a message or (level, logger, message)."""
    for number, line in enumerate(lines, begin):
        level, logger, message = (20, "shop.mail", line) if isinstance(line, str) else line
        scene.execute(
            "INSERT INTO jobrunner.job_logs (job_id, lease, line, attempt, logged_at, level, logger, message) "
            "VALUES (%s, %s, %s, %s, clock_timestamp(), %s, %s, %s)",
            (job_id, lease, number, attempt, level, logger, message),
        )


@pytest.fixture
def logged(scene):
    """A job that failed in its second attempt, with the lines of both."""
    job_id = scene.job(State.RUNNING, attempt=2)
    write(scene, job_id, "one", (30, "shop", "two"), lease=6, attempt=1)
    write(scene, job_id, (10, "httpx", "three"), (40, "", "four"), lease=7, attempt=2)
    scene.put_into_history(job_id, State.FAILED)
    return job_id


def said(answer):
    """What was logged, without instants and blanks."""
    return [" ".join(line.split()[1:]) for line in answer.lines()]


def test_every_line_in_order(reader, logged):
    """A line has its instant to the millisecond, attempt, level, logger and message; no application is imported; exit 0."""
    answer = reader("jobs", "logs", logged)
    assert said(answer) == ["1 INFO shop.mail: one", "1 WARNING shop: two", "2 DEBUG httpx: three", "2 ERROR four"]
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z  \d  [A-Z]+ +", line) for line in answer.lines())
    assert answer.err == ""


def test_attempt_level_and_tail_choose(reader, logged):
    """Only one attempt, only what is grave enough, only the newest; what --tail leaves out is said on stderr."""
    assert said(reader("jobs", "logs", logged, "--attempt", "1")) == ["1 INFO shop.mail: one", "1 WARNING shop: two"]
    assert said(reader("jobs", "logs", f"#{logged}", "--level", "warning")) == ["1 WARNING shop: two", "2 ERROR four"]
    answer = reader("jobs", "logs", logged, "--tail", "1")
    assert said(answer) == ["2 ERROR four"]
    assert answer.err == f"earlier lines left out: jobrunner jobs logs {logged}\n"
    assert reader("jobs", "logs", logged, "--tail", "4").err == ""
    assert said(reader("jobs", "logs", logged, "--tail", "1", "--attempt", "1", "--level", "INFO")) == ["1 WARNING shop: two"]


def test_as_one_document(reader, logged):
    """--json has every line with every key, the state of the job, and where to go on."""
    found = reader("jobs", "logs", logged, "--json").json
    assert set(found) == LOG_KEYS
    assert (found["job_id"], found["state"], found["finished"], found["next"]) == (logged, "failed", True, "7-2")
    assert all(set(line) == LINE_KEYS for line in found["items"])
    assert [(line["lease"], line["attempt"], line["line"], line["level"]) for line in found["items"]] == [
        (6, 1, 1, "INFO"), (6, 1, 2, "WARNING"), (7, 2, 1, "DEBUG"), (7, 2, 2, "ERROR"),
    ]  # fmt: skip
    assert found["items"][0]["logged_at"].endswith("Z")


def test_as_a_stream_of_documents(reader, logged):
    """--jsonl prints one document for each line, with the keys of --json."""
    lines = [json.loads(line) for line in reader("jobs", "logs", logged, "--jsonl").lines()]
    assert lines == reader("jobs", "logs", logged, "--json").json["items"]


def test_a_long_log_is_read_page_by_page(reader, scene):
    """More lines than one question answers are all printed, each once."""
    job_id = scene.job(State.RUNNING)
    scene.execute(
        "INSERT INTO jobrunner.job_logs (job_id, lease, line, attempt, level, logger, message) "
        "SELECT %s, 7, g, 1, 20, 'shop', 'line ' || g FROM generate_series(1, 2500) AS g",
        (job_id,),
    )
    assert [line.rpartition(" ")[2] for line in reader("jobs", "logs", job_id).lines()] == [str(number) for number in range(1, 2501)]
    assert len(reader("jobs", "logs", job_id, "--json").json["items"]) == 2500


def test_no_line_moves_the_cursor(reader, scene):
    """Control characters are shown as escapes, also on a terminal; further lines of a message are indented."""
    job_id = scene.job(State.RUNNING)
    write(scene, job_id, (20, "shop\x1b]0;title\x07", NASTY))
    lines = reader("jobs", "logs", job_id).lines()
    assert lines[0].endswith(r"shop\x1b]0;title\x07: red \x1b[31mtext\x07")
    assert lines[1:] == ["    second  line", r"    \u202egnp.exe"]
    _, shown = reader.on_terminal("jobs", "logs", job_id)
    assert "\x1b[31m" not in shown.replace("\x1b[31mERROR", "")
    assert "\x07" not in shown
    assert "\u202e" not in shown
    assert reader("jobs", "logs", job_id, "--jsonl").json["message"] == NASTY


def test_levels_have_colours_on_a_terminal(reader, logged):
    """A person sees warnings and errors at a glance; a pipe gets no colour."""
    _, shown = reader.on_terminal("jobs", "logs", logged)
    assert "\x1b[33mWARNING" in shown
    assert "\x1b[31mERROR" in shown
    assert "\x1b" not in reader("jobs", "logs", logged).out
    assert "\x1b" not in reader.on_terminal("jobs", "logs", logged, "--no-color")[1]


def test_a_job_without_a_log_says_so(reader, scene, logged):
    """Nothing on stdout and a sentence on stderr; with a choice the sentence says that there may be more; exit 0."""
    job_id = scene.job()
    answer = reader("jobs", "logs", job_id)
    assert (answer.out, answer.err) == ("", f"job {job_id} has logged nothing\n")
    assert reader("jobs", "logs", logged, "--attempt", "9").err == f"job {logged} has logged nothing that matches\n"
    assert reader("-q", "jobs", "logs", job_id).err == ""
    assert reader("jobs", "logs", job_id, "--json").json["items"] == []


@pytest.mark.parametrize("options", [[], ["--follow"], ["--json"], ["--tail", "3"]])
def test_an_unknown_job_is_6(reader, options):
    """A job that does not exist is an error, however its log is asked for."""
    answer = reader("jobs", "logs", 99999, *options, ok=None)
    assert (answer.code, answer.out) == (6, "")
    assert answer.err.startswith("error: ")
    assert "99999" in answer.err


@pytest.mark.parametrize(
    "options",
    [["--follow", "--json"], ["--json", "--jsonl"], ["--tail", "0"], ["--tail", "1001"], ["--attempt", "0"], ["--level", "LOUD"]],
)
def test_what_makes_no_sense_is_2(reader, options):
    """Options that contradict each other, and numbers out of range, are refused before anything is read."""
    answer = reader("jobs", "logs", 1, *options, ok=None)
    assert (answer.code, answer.out) == (2, "")


@pytest.mark.parametrize(("state", "code"), [(State.SUCCEEDED, 0), (State.FAILED, 1), (State.CANCELLED, 1), (State.QUARANTINED, 1)])
def test_follow_a_job_that_is_over(reader, scene, state, code):
    """A finished job's log is printed and the command ends at once, with 0 exactly when the job succeeded."""
    job_id = scene.job(State.RUNNING)
    write(scene, job_id, "one")
    scene.put_into_history(job_id, state)
    answer = reader("jobs", "logs", job_id, "--follow", ok=None)
    assert (answer.code, said(answer)) == (code, ["1 INFO shop.mail: one"])
    if code:
        assert f"job {job_id} {'failed' if state is State.FAILED else f'was {state.value}'}" in answer.err


def test_follow_prints_lines_as_they_come_and_ends_with_the_job(reader, scene):
    """Lines appear while the job runs, also of its next attempt; the last ones, written as it finishes, are not lost; exit as the job."""
    job_id = scene.job(State.RUNNING)
    write(scene, job_id, "one", "two", "three")
    with reader.started("jobs", "logs", job_id, "--follow", "--tail", "2") as following:
        following.wait_for("three")
        assert "one" not in following.out
        write(scene, job_id, "four", begin=4)
        following.wait_for("four")
        scene.set(job_id, "lease = lease + 1, attempt = 2")
        write(scene, job_id, "five", lease=8, attempt=2)
        following.wait_for("five")
        with scene.connection.transaction():
            write(scene, job_id, *(f"end {number}" for number in range(2000)), lease=8, attempt=2, begin=2)
            scene.put_into_history(job_id, State.SUCCEEDED)
        wait_until(lambda: following.process.poll() is not None, timeout=30, what="the command ends")
        assert following.process.returncode == 0
        found = [line.split(": ", 1)[1] for line in following.out.splitlines()]
        assert found == ["two", "three", "four", "five", *(f"end {number}" for number in range(2000))]


def test_follow_as_a_stream_of_documents(reader, scene):
    """--follow --jsonl gives a program each line as it comes, and the end by exit code."""
    job_id = scene.job(State.RUNNING)
    with reader.started("jobs", "logs", job_id, "-f", "--jsonl", "--level", "ERROR") as following:
        write(scene, job_id, "calm", (40, "shop", "bad"))
        following.wait_for('"message": "bad"')
        scene.put_into_history(job_id, State.FAILED)
        wait_until(lambda: following.process.poll() is not None, timeout=30, what="the command ends")
        assert following.process.returncode == 1
        assert [json.loads(line)["line"] for line in following.out.splitlines()] == [2]


def test_follow_a_job_that_nobody_runs(reader, scene):
    """Whoever waits for lines that cannot come is told; Ctrl-C ends with 130."""
    job_id = scene.job()
    with reader.started("jobs", "logs", job_id, "--follow") as following:
        following.wait_for("warning: no worker is alive")
        assert following.stop(signal.SIGINT) == 130
        assert following.out == ""
