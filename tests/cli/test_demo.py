"""`jobrunner demo`, end to end: real processes, a real database, real failures."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import urllib.request
from pathlib import Path

import psycopg
import pytest

import jobrunner as package
from tests.cli.test_work_status import free_port
from tests.support import postgres as pg
from tests.support.cli import Program
from tests.support.waiting import wait_until
from tests.support.workers import alive, insert, rows, wait_for_states

SOURCES = Path(package.__file__).parent  # enough real files for any limit used here
KEYS = {"jobs", "succeeded", "failed", "quarantined", "retried", "seconds", "jobs_per_second", "dsn"}
TROUBLES = {"succeeded": 1, "failed": 2, "quarantined": 1}
LONG = 400  # files: some seconds of work, so that a test can interfere
MINE = "SELECT DISTINCT queue FROM jobrunner.v_jobs WHERE queue LIKE 'demo-%'"


@pytest.fixture
def demo(tmp_path, fresh_dsn):
    """`jobrunner demo` in an empty directory, on a database of its own, with a directory of its own for temporary files."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    program = Program(tmp_path, fresh_dsn)
    environment = program.environment

    def with_scratch(given=None):
        return environment(given) | {"TMPDIR": str(scratch)}

    program.environment = with_scratch  # type: ignore[method-assign]
    return program


@contextlib.contextmanager
def running(demo, *arguments):
    """A demonstration beside the test, with all processes that it has started; afterwards none of them may be left."""
    try:
        with demo.started("demo", "--path", SOURCES, *arguments) as run:
            yield run
    except BaseException:
        for pid in processes_in(demo.home):  # a test that fails leaves nothing running either
            os.kill(pid, signal.SIGKILL)
        raise
    left = processes_in(demo.home)
    wait_until(lambda: not [pid for pid in left if alive(pid)], timeout=20, what="every process of the demonstration to be gone")
    assert not list((demo.home / "scratch").iterdir()), "something is left among the temporary files"


def processes_in(home: Path) -> list[int]:
    """Processes that work in a directory."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and entry.joinpath("cwd").readlink() == home:
                found.append(int(entry.name))
    return found


def worker_of(run) -> int:
    """The worker that it invites to kill."""
    run.wait_for("kill -9 ")
    return int(re.findall(r"kill -9 (\d+)", run.err)[0])


def ended(dsn: str) -> int:
    """How many jobs of demonstrations are finished."""
    return int(str(rows(dsn, "SELECT count(*) FROM jobrunner.job_history WHERE queue LIKE 'demo-%'")[0][0]))


def test_one_document_with_the_right_numbers(demo, fresh_dsn):
    """With --json stdout is one document with exactly these keys; the failures really are what the output says."""
    with running(demo, "--limit", "60", "--exit-when-done", "--json") as run:
        assert run.process.wait(60) == 0, run.err
        document = json.loads(run.out)
    assert set(document) == KEYS
    assert {state: document[state] for state in TROUBLES} == {"succeeded": 61, "failed": 2, "quarantined": 1}
    assert (document["jobs"], document["retried"], document["dsn"]) == (64, 3, fresh_dsn)
    assert document["jobs_per_second"] == pytest.approx(64 / document["seconds"], rel=0.1)
    assert rows(fresh_dsn, "SELECT count(*) FROM jobrunner.jobs") == [(0,)]
    found = rows(
        fresh_dsn,
        "SELECT regexp_replace(j.args->>'path', '.*/', ''), a.outcome, coalesce(a.error_type, ''), coalesce(a.exit_cause, '')"
        " FROM jobrunner.v_attempts a JOIN jobrunner.v_jobs j ON j.id = a.job_id WHERE j.priority < 0 ORDER BY 1, a.lease",
    )
    late = ("late.py", "retried", "FileNotFoundError", "exception")
    while found.count(late) > 1:  # on a machine that is too busy to write the file within a second
        found.remove(late)
    died = ("jobrunner.errors.WorkerProcessDied", "signal 11")
    assert found == [
        ("deep.py", "crashed", *died),
        ("deep.py", "crashed", *died),
        ("deep.py", "quarantined", *died),
        ("invalid_syntax.py", "retried", "SyntaxError", "exception"),
        ("invalid_syntax.py", "failed", "SyntaxError", "exception"),
        late,
        ("late.py", "succeeded", "", ""),
        ("undecodable.py", "retried", "UnicodeDecodeError", "exception"),
        ("undecodable.py", "failed", "UnicodeDecodeError", "exception"),
    ]


def test_twice_beside_others(demo, fresh_dsn):
    """A second run, and jobs of somebody else, change nothing in its numbers; it touches none of them."""
    insert(fresh_dsn, "analyse", 3, "jsonb_build_object('path', '/nowhere')")
    insert(fresh_dsn, "somebody_elses", 2, queue="demo-")
    counts = [demo("demo", "--path", SOURCES, "--limit", 10, "--exit-when-done", "--json").json for _ in range(2)]
    assert [(one["jobs"], one["succeeded"], one["failed"], one["quarantined"]) for one in counts] == [(14, 11, 2, 1)] * 2
    untouched = rows(
        fresh_dsn, "SELECT queue, state, attempt, count(*) FROM jobrunner.v_jobs WHERE NOT tags @> '{demo}' GROUP BY 1, 2, 3 ORDER BY 1"
    )
    assert untouched == [("default", "queued", 0, 3), ("demo-", "queued", 0, 2)]
    assert len(rows(fresh_dsn, "SELECT DISTINCT queue FROM jobrunner.v_jobs WHERE tags @> '{demo}'")) == 2


@pytest.mark.needs("psql")
def test_the_summary_for_people(demo):
    """The summary has figures, reasons and findings, and its psql line gives the same findings when it is pasted."""
    out = demo("demo", "--path", SOURCES, "--limit", 30, "--exit-when-done").out
    assert re.search(r"^ +34 +31 +2 +1 +3 ", out, re.MULTILINE)
    for expected in ("UnicodeDecodeError", "jobrunner.errors.WorkerProcessDied", "COMPLEXITY  FUNCTION"):
        assert expected in out
    (line,) = (line for line in out.splitlines() if line.startswith("psql "))
    answer = subprocess.run(["bash", "-c", line + " -At -F ' '"], capture_output=True, text=True, check=True, timeout=30).stdout
    complexities = [int(row.split()[0]) for row in answer.splitlines()]
    assert len(complexities) == 5
    assert complexities == sorted(complexities, reverse=True)
    for row in answer.splitlines():
        complexity, function, _line, _file = row.split()
        assert re.search(rf"{complexity} +{re.escape(function)} ", out)


def test_a_killed_worker_is_replaced(demo, fresh_dsn):
    """After a kill -9 of the worker it says so, starts another, and every job ends; those it held are counted as taken back."""
    with running(demo, "--limit", str(LONG), "--exit-when-done") as run:
        first = worker_of(run)
        wait_until(lambda: ended(fresh_dsn) > 20, timeout=30, what="some jobs to end")
        os.kill(first, signal.SIGKILL)
        run.wait_for(f"worker {first} was killed by SIGKILL; started another")
        assert run.process.wait(90) == 0, run.err
    total = rows(fresh_dsn, "SELECT state, count(*) FROM jobrunner.v_jobs GROUP BY 1")
    written = len(list(SOURCES.rglob("*.py")))
    found = {str(state): int(str(count)) for state, count in total}
    assert sum(found.values()) == min(LONG, written) + 4
    assert found["succeeded"] == min(LONG, written) + 1


def test_ctrl_c_in_the_middle(demo, fresh_dsn):
    """Ctrl-C ends worker and pages, cancels what still waited, leaves with 130 and without a traceback."""
    insert(fresh_dsn, "somebody_elses", 2)
    with running(demo, "--limit", "99999") as run:
        worker = worker_of(run)
        wait_until(lambda: ended(fresh_dsn) > 5, timeout=30, what="some jobs to end")
        os.kill(worker, signal.SIGSTOP)  # so that jobs are left whatever the speed of the machine
        run.process.send_signal(signal.SIGINT)
        os.kill(worker, signal.SIGCONT)
        assert run.process.wait(30) == 130
        assert "Traceback" not in run.err
    assert (
        rows(fresh_dsn, "SELECT task, state FROM jobrunner.v_jobs WHERE state NOT IN ('succeeded', 'failed', 'cancelled', 'quarantined')")
        == [("somebody_elses", "queued")] * 2
    )


def test_ctrl_c_again_and_again(demo, fresh_dsn):
    """However often Ctrl-C is pressed, it ends soon, and nothing is left; not even when the worker does not react."""
    with running(demo, "--limit", str(LONG)) as run:
        worker = worker_of(run)
        wait_until(lambda: ended(fresh_dsn) > 5, timeout=30, what="some jobs to end")
        os.kill(worker, signal.SIGSTOP)

        def pressed_again() -> bool:
            run.process.send_signal(signal.SIGINT)
            return run.process.poll() is not None

        wait_until(pressed_again, timeout=8, what="the demonstration to end: less than it waits for a worker with patience")
        assert run.process.returncode == 130
        assert "Traceback" not in run.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_pages_until_the_end(demo, fresh_dsn, number):
    """Afterwards the pages show the run and a job retried there is run; whoever then ends it gets the exit code of the run."""
    with running(demo, "--limit", "5", "--port", free_port()) as run:  # another test's demonstration may be looking for one at this moment
        run.wait_for("Look around:")
        (queue,) = rows(fresh_dsn, MINE)[0]
        url = re.findall(r"http://\S+", run.err)[0]
        with urllib.request.urlopen(f"{url}jobs", timeout=20) as page:
            assert str(queue) in page.read().decode()
        failed = rows(fresh_dsn, "SELECT id FROM jobrunner.v_jobs WHERE state = 'failed' LIMIT 1")[0][0]
        demo("jobs", "retry", failed)
        wait_for_states(fresh_dsn, 20, **TROUBLES | {"succeeded": 6})
        assert len(rows(fresh_dsn, f"SELECT 1 FROM jobrunner.v_attempts WHERE job_id = {failed}")) > 2
        assert run.stop(number) == 0
        assert "Traceback" not in run.err


def test_killed_itself(demo, fresh_dsn):
    """When the demonstration is killed -9, its worker and its pages end all the same."""
    with demo.started("demo", "--path", SOURCES, "--limit", LONG) as run:
        worker = worker_of(run)
        wait_until(lambda: ended(fresh_dsn) > 5, timeout=30, what="some jobs to end")
        run.process.kill()
        run.process.wait()
    wait_until(lambda: not alive(worker), timeout=20, what="the worker to be gone")
    wait_until(lambda: not processes_in(demo.home), timeout=20, what="every process of the demonstration to be gone")


def test_a_worker_that_cannot_live(demo, fresh_dsn):
    """A worker that dies again and again is reported with its last words; nothing hangs, and the exit code is 1."""
    with running(demo, "--limit", str(LONG)) as run:
        worker = worker_of(run)
        with psycopg.connect(fresh_dsn, autocommit=True) as connection:
            connection.execute("UPDATE jobrunner.alembic_version SET version_num = 'newer'")  # every further worker refuses this
        os.kill(worker, signal.SIGKILL)
        assert run.process.wait(40) == 1
        assert "times in a row" in run.err
        assert "newer than this program knows" in run.err
        assert "Traceback" not in run.err


def test_refusals(demo, tmp_path):
    """A directory without Python files, one that does not exist, a port that is taken: said at once, nothing is started."""
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no Python file" in demo("demo", "--path", empty, ok=None).err
    assert demo("demo", "--path", empty, ok=None).code == 2
    assert demo("demo", "--path", tmp_path / "absent", ok=None).code == 2
    assert demo("demo", "--limit", 0, ok=None).code == 2
    assert not list((demo.home / "scratch").iterdir())


def test_no_database(tmp_path):
    """A database that does not answer is the usual refusal, before anything starts."""
    said = Program(tmp_path, "postgresql://127.0.0.1:1/nothing")("demo", "--path", SOURCES, "--exit-when-done", ok=None)
    assert (said.code, "cannot reach PostgreSQL" in said.err) == (3, True)


def test_a_bar_on_a_terminal(demo):
    """On a terminal there is a bar, and the same summary; a password is shown nowhere."""
    url = demo.dsn.replace("postgresql://postgres@", "postgresql://postgres:geheim@") if "postgres@" in demo.dsn else demo.dsn
    code, shown = demo.on_terminal("demo", "--dsn", url, "--path", str(SOURCES), "--limit", "20", "--exit-when-done")
    assert code == 0
    assert "━" in shown
    assert "24/24" in shown
    assert "QUARANTINED" in shown
    assert "geheim" not in shown


@pytest.mark.needs("psql")
def test_without_any_database(tmp_path):
    """With nothing configured it starts the embedded PostgreSQL, says so, leaves it running and says how to stop it; its line works."""
    directory = pg.disk_directory()
    program = Program(tmp_path, None)
    given = {"JOBRUNNER_EMBEDDED_DIR": str(directory / "pg")}
    try:
        said = program("demo", "--path", SOURCES, "--limit", 5, "--exit-when-done", env=given)
        assert "using the embedded PostgreSQL" in said.err
        assert "jobrunner db stop" in said.err
        (line,) = (line for line in said.lines() if shlex.split(line)[:1] and "psql" in shlex.split(line)[0])
        assert subprocess.run(["bash", "-c", line], capture_output=True, check=False, timeout=30).returncode == 0
        assert "running" in program("db", "status", env=given).out
        program("db", "stop", env=given)
    finally:
        program("db", "destroy", "--yes", env=given, ok=None)
        directory.rmdir()
