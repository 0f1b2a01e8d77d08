"""The doctor finds who does not work, and jobs that nobody can run; the command that it prints helps."""

from __future__ import annotations

import shlex
import subprocess
import sys
from datetime import timedelta

import psycopg
import pytest

from jobrunner.doctor import Limits
from jobrunner.store import Store
from tests.support.cli import APP, Program
from tests.support.doctoring import examined, mend
from tests.support.waiting import wait_until
from tests.support.workers import insert, rows, states

FACTS = {
    "name": "w", "host": "elsewhere", "pid": 4711, "kind": "test", "version": "9.9.9", "queues": ["default"], "tasks": ["add"], "slots": 2,
}  # fmt: skip
ONE_MINUTE = timedelta(minutes=1)
KILL = "worker started"


@pytest.fixture
def program(tmp_path, dsn):
    """`jobrunner` beside an application."""
    (tmp_path / "app.py").write_text(APP)
    return Program(tmp_path, dsn)


@pytest.fixture
def register(connection):
    """Puts workers on record as they do themselves; they live for a minute, or as long as is said."""

    def made(lease=ONE_MINUTE, **facts):
        return Store(connection).register_worker(FACTS | facts, lease)

    return made


def typed(program, finding):
    """Run the printed command of a shell; `jobrunner` is this one."""
    words = shlex.split(finding.fix)
    assert words[0] == "jobrunner"
    return program(*words[1:])


def test_nobody_is_alive(dsn, program):
    """That is bad and names the queues that wait; the printed command is a worker that serves them."""
    program("-q", "enqueue", "divide", '{"a": 4, "b": 2}')
    finding = examined(dsn).one("no_worker")
    assert finding.state == "bad"
    assert "jobs wait in 'mail'" in finding.text
    assert finding.fix == "jobrunner work default,mail"
    with program.started(*shlex.split(finding.fix)[1:]) as worker:
        worker.wait_for(KILL)
        report = examined(dsn)
        assert report.one("workers").data["workers"] == 1
        assert report.states().keys().isdisjoint({"no_worker", "queue_unserved", "task_unregistered", "worker_silent"})
        wait_until(lambda: states(dsn) == {"succeeded": 1}, timeout=30, what="the job to be run")
        assert worker.stop() == 0


def test_between_two_runs_of_cron(dsn, program):
    """Where cron starts workers, nobody is alive between its runs: a note for as long as a run may be away, then bad."""
    program("cron")
    finding = examined(dsn).one("no_worker")
    assert (finding.state, finding.fix) == ("note", "jobrunner doctor --cron")
    assert examined(dsn, Limits(between_runs=timedelta(0))).one("no_worker").state == "bad"


def test_a_worker_that_was_killed(dsn, program):
    """Killed -9 with a job: silent and bad while nobody can rescue it; the printed command gives the job back, runs it and leaves."""
    began, release = program.home / "began", program.home / "release"
    program("-q", "enqueue", "hold", f'{{"started": "{began}", "release": "{release}"}}')
    with program.started("work", "--lease", "3s", "--no-listen") as worker:
        wait_until(began.exists, timeout=30, what="the job to begin")
        worker.process.kill()
    release.touch()
    finding = wait_until(lambda: examined(dsn).all("worker_silent"), timeout=30, what="the lease to be over")[0]
    assert finding.state == "bad"
    assert finding.data["pid"] == worker.process.pid
    assert "1 job is still its, and nobody is alive to rescue it" in finding.text
    typed(program, finding)
    assert states(dsn) == {"succeeded": 1}
    report = examined(dsn)
    assert report.all("worker_silent") == []
    assert (report.one("workers_lost").state, report.one("workers_lost").data["lost"]) == ("note", 1)


def test_a_silent_worker_among_others(dsn, register):
    """While others are alive its rescue is a matter of seconds: a note, and bad only when it does not come."""
    register()
    register(lease=timedelta(0))
    finding = examined(dsn).one("worker_silent")
    assert finding.state == "note"
    assert "its rescue by others is due for" in finding.text
    assert examined(dsn, Limits(rescue=timedelta(0))).one("worker_silent").state == "bad"


@pytest.mark.needs("psql")
def test_a_job_of_a_worker_that_stopped_long_ago(dsn, register, connection, program):
    """Nobody looks at such a worker any more: it is bad, and the printed statement makes those who rescue look at it again."""
    program("-q", "enqueue", "add", '{"a": 1, "b": 2}')
    worker_id = register()
    connection.execute(
        "UPDATE jobrunner.jobs SET state = 'running', worker_id = %s, lease = lease + 1, claimed_at = now(), attempt = 1", [worker_id]
    )
    connection.execute("UPDATE jobrunner.workers SET stopped_at = now() - interval '20 minutes', last_exit = 'stopped', rescued_at = now()")
    finding = examined(dsn).one("worker_silent")
    assert finding.state == "bad"
    assert "stopped 20 m" in finding.text
    assert "1 job is still its" in finding.text
    mend(dsn, finding)
    program("work", "--drain", "--no-listen")
    assert states(dsn) == {"succeeded": 1}
    assert examined(dsn).all("worker_silent") == []


def test_workers_of_several_versions(dsn, register, connection):
    """A note that says which, and how the older ones are stopped, here or elsewhere."""
    assert examined(dsn).one("versions").state == "ok"
    register(version="0.10.0")
    assert examined(dsn).one("versions").text == "all live workers are of version 0.10.0"
    old = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    here = subprocess.run(["hostname"], capture_output=True, text=True, check=True).stdout.strip()
    ids = [register(version="0.9.0", host=here, pid=old.pid), register(version="0.9.0")]
    finding = examined(dsn).one("several_versions")
    assert finding.state == "note"
    assert finding.data["versions"] == {"0.10.0": 1, "0.9.0": 2}
    commands = finding.fix.splitlines()
    assert sorted(commands) == sorted([f"kill -TERM {old.pid}", "ssh elsewhere kill -TERM 4711"])
    subprocess.run(["/bin/sh", "-c", next(line for line in commands if line.startswith("kill"))], check=True)
    assert old.wait(30) == -15
    for worker_id in ids:
        connection.execute("UPDATE jobrunner.workers SET stopped_at = now(), last_exit = 'stopped' WHERE id = %s", [worker_id])
    assert examined(dsn).one("versions").state == "ok"


def test_a_queue_that_nobody_serves(dsn, program):
    """Due jobs of a queue without a worker are bad while others are served; the printed worker serves it."""
    insert(dsn, "divide", 3, args="jsonb_build_object('a', 4, 'b', 2)", queue="it's new")
    insert(dsn, "divide", 3, queue="next year", run_at="2098-01-01")
    with program.started("work", "default", "--no-listen") as worker:
        worker.wait_for(KILL)
        finding = examined(dsn).one("queue_unserved")
        assert (finding.state, finding.data["queue"], finding.data["ready"]) == ("bad", "it's new", 3)
        words = shlex.split(finding.fix)
        assert words == ["jobrunner", "work", "it's new"]
        with program.started(*words[1:], "--no-listen") as other:
            other.wait_for(KILL)
            assert examined(dsn).one("queues").state == "ok"
            other.stop()
        worker.stop()


@pytest.mark.needs("psql")
def test_a_misspelt_task(dsn, program):
    """The close name is named, and the printed statement gives the jobs their right one, so that they run."""
    insert(dsn, "ad'd", 2, args="jsonb_build_object('a', 1, 'b', n)")
    insert(dsn, "no such thing", 1, run_at="2098-01-01")
    with program.started("work", "default,mail", "--no-listen") as worker:
        worker.wait_for(KILL)
        found = {each.data["task"]: each for each in examined(dsn).all("task_unregistered")}
        assert {each.state for each in found.values()} == {"bad"}
        assert found["ad'd"].data["matches"] == ["add"]
        assert found["no such thing"].data["matches"] == []
        assert "deploy the code" in found["no such thing"].fix
        mend(dsn, found["ad'd"])
        assert [each.data["task"] for each in examined(dsn).all("task_unregistered")] == ["no such thing"]
        wait_until(lambda: states(dsn)["succeeded"] == 2, timeout=30, what="both jobs to be run")
        rows(dsn, "DELETE FROM jobrunner.jobs RETURNING id")
        assert examined(dsn).one("tasks").state == "ok"
        worker.stop()


def test_a_task_that_workers_of_other_queues_know(dsn, register):
    """Jobs in a queue whose workers do not register the task, while others do: the command serves that queue too."""
    register(queues=["mail"], tasks=["divide"])
    register()
    insert(dsn, "add", 1, queue="mail")
    finding = examined(dsn).one("task_unregistered")
    assert finding.state == "bad"
    assert finding.text.endswith("workers of other queues do")
    assert finding.fix == "jobrunner work mail"
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("UPDATE jobrunner.workers SET queues = '{default,mail}'")
    assert examined(dsn).one("tasks").state == "ok"
