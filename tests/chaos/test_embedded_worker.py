"""The worker beside gunicorn: one for all its processes, whoever of them is killed, recycled or told to leave; no job lost, doubled or stuck."""

from __future__ import annotations

import os
import signal

import pytest

from tests.support.waiting import wait_until
from tests.support.webservers import GUNICORN, PATIENCE, python_processes, serving
from tests.support.workers import Ledger, alive, insert, rows, states, wait_for_states

pytestmark = [pytest.mark.chaos, pytest.mark.needs("linux")]

ALIVE = "SELECT count(*) FROM jobrunner.v_workers WHERE kind = 'embedded' AND state = 'alive'"
PUNISHED = "SELECT count(*) FROM jobrunner.v_jobs WHERE attempt > 1 OR crash_count > 0"
KINDS = {"sync": (), "gthread": ("-k", "gthread", "--threads", "2")}
FOUR = ("-w", "4", "shop:app")


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "ledger")


@pytest.fixture
def environment(dsn, ledger):
    """What the server finds: its database, the embedded worker, the ledger; running jobs get two seconds when it leaves."""
    return {
        "JOBRUNNER_DSN": dsn, "JOBRUNNER_EMBEDDED_WORKER": "threads:2", "JOBRUNNER_EMBEDDED_GRACE": "2s",
        "JOBRUNNER_CHAOS_LEDGER": str(ledger.path),
    }  # fmt: skip


def begun(ledger, number=1):
    wait_until(lambda: ledger.count("begin").total() >= number, timeout=PATIENCE, what=f"{number} × begin")


def hold(dsn, gate, count=1):
    """Jobs that go on until a file is there."""
    insert(dsn, "hold", count, f"jsonb_build_object('number', n, 'gate', '{gate}')", queue="held")


def gone(pid, timeout=PATIENCE):
    wait_until(lambda: not alive(pid), timeout=timeout, what=f"process {pid} to end")


@pytest.mark.parametrize("preload", [False, True], ids=["after fork", "preloaded"])
@pytest.mark.parametrize("kind", KINDS)
def test_four_processes_have_one_worker(dsn, ledger, tmp_path, environment, kind, preload):
    """Four web processes have one worker, which begins with the server and not with a request, and leaves with it."""
    insert(dsn, "work", 20)
    with serving(tmp_path, *GUNICORN, *KINDS[kind], *(["--preload"] if preload else []), *FOUR, env=environment) as server:
        wait_for_states(dsn, PATIENCE, succeeded=20)
        assert server.worker().parent in server.children()
        for number in range(101, 111):
            server.ask(f"/work/{number}", post=True)
        wait_for_states(dsn, PATIENCE, succeeded=30)
        assert len(server.workers()) == 1
        assert rows(dsn, ALIVE) == [(1,)]
        assert rows(dsn, "SELECT DISTINCT kind, reason FROM jobrunner.v_worker_runs") == []
        assert server.stop() == 0
        assert server.workers() == []
    assert rows(dsn, "SELECT kind, reason, exit_code FROM jobrunner.v_worker_runs") == [("embedded", "signal", 0)]
    assert rows(dsn, "SELECT DISTINCT result FROM jobrunner.v_jobs") == [("shop",)]
    assert set(ledger.count("end").values()) == {1}
    assert python_processes(tmp_path) == []


def test_two_hundred_jobs_through_a_recycling_and_a_kill(dsn, ledger, tmp_path, environment):
    """200 jobs by way of four processes, of which the one with the worker is recycled, and the next one with it killed: each ends once."""
    options = ("--preload", "--max-requests", "30")
    enqueued = 0
    with serving(tmp_path, *GUNICORN, *options, *FOUR, env={**environment, "JOBRUNNER_EMBEDDED_GRACE": "20s"}) as server:
        first = server.worker()
        while alive(first.parent):  # until it has answered its 30
            enqueued = min(120, enqueued + 1)
            server.ask(f"/work/{enqueued}" if enqueued < 120 else "/", post=enqueued < 120)
        second = server.worker(but=first.pid)
        assert second.parent != first.parent
        os.kill(second.parent, signal.SIGKILL)
        for number in range(min(enqueued, 119) + 1, 201):
            server.ask(f"/work/{number}", post=True)
        wait_for_states(dsn, PATIENCE, succeeded=200)
        gone(first.pid)
        gone(second.pid)
        assert len(server.workers()) == 1
        assert server.stop() == 0
    assert len(ledger.count("end")) == 200
    assert set(ledger.count("begin").values()) == set(ledger.count("end").values()) == {1}
    assert rows(dsn, PUNISHED) == [(0,)]
    assert rows(dsn, "SELECT count(*) FROM jobrunner.v_attempts WHERE outcome NOT IN ('succeeded', 'released')") == [(0,)]
    assert python_processes(tmp_path) == []


def test_a_killed_web_process(dsn, ledger, tmp_path, environment):
    """After kill -9 of the worker's web process another has a new one without a request; what ran ends by itself or runs again, unpunished."""
    gate = tmp_path / "gate"
    hold(dsn, gate)
    with serving(tmp_path, *GUNICORN, *FOUR, env=environment) as server:
        begun(ledger)
        first = server.worker()
        os.kill(first.parent, signal.SIGKILL)
        second = server.worker(but=first.pid)
        assert second.parent != first.parent
        insert(dsn, "work", 5, "jsonb_build_object('number', 100 + n)")
        wait_until(lambda: states(dsn)["succeeded"] == 5, timeout=PATIENCE, what="jobs to go on")
        gone(first.pid)
        begun(ledger, 7)  # the held one again
        gate.touch()
        wait_for_states(dsn, PATIENCE, succeeded=6)
        assert server.stop() == 0
    assert rows(dsn, PUNISHED) == [(0,)]
    assert rows(dsn, "SELECT outcome, exit_cause FROM jobrunner.v_attempts WHERE outcome <> 'succeeded'") == [("released", "deploy")]
    assert python_processes(tmp_path) == []


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGQUIT", "Ctrl-C", "worker first"])
def test_the_server_is_told_to_stop(dsn, ledger, tmp_path, environment, name):
    """Told to stop, once: the job that can end within its grace ends, the other is given back unpunished, and nobody stays.

    A terminal's Ctrl-C reaches every process of the server by itself, and through gunicorn's master once more; whoever tells the worker
    first has not told it twice when the server leaves.
    """
    gate = tmp_path / "gate"
    hold(dsn, gate)
    insert(dsn, "work", 1, "jsonb_build_object('number', 7, 'seconds', 1.5)", queue="held")
    with serving(tmp_path, *GUNICORN, *FOUR, env={**environment, "JOBRUNNER_EMBEDDED_GRACE": "6s"}) as server:
        begun(ledger, 2)
        if name == "Ctrl-C":
            os.killpg(server.process.pid, signal.SIGINT)
            server.process.wait(PATIENCE)
        elif name == "worker first":
            os.kill(server.worker().pid, signal.SIGTERM)
            server.stop()
        else:
            server.stop(getattr(signal, name))
        assert python_processes(tmp_path) == []
    assert ledger.count("end") == {"7": 1}
    assert rows(dsn, "SELECT task, state, attempt, crash_count FROM jobrunner.v_jobs ORDER BY task") == [
        ("hold", "queued", 0, 0), ("work", "succeeded", 1, 0),
    ]  # fmt: skip
    assert rows(dsn, ALIVE) == [(0,)]


def test_the_server_is_told_to_reload(dsn, ledger, tmp_path, environment):
    """SIGHUP: the next worker runs the new code, while the old one's job is given its grace and then back."""
    gate = tmp_path / "gate"
    hold(dsn, gate)
    with serving(tmp_path, *GUNICORN, "-w", "2", "shop:app", env=environment) as server:
        begun(ledger)
        first = server.worker()
        (tmp_path / "shop.py").write_text((tmp_path / "shop.py").read_text().replace("return current_app.name", 'return "new"'))
        server.process.send_signal(signal.SIGHUP)
        server.worker(but=first.pid)
        insert(dsn, "work", 1, "jsonb_build_object('number', 2)")
        wait_until(lambda: states(dsn)["succeeded"] == 1, timeout=PATIENCE, what="the new worker to work")
        gone(first.pid)
        gone(first.parent)
        begun(ledger, 3)
        gate.touch()
        wait_for_states(dsn, PATIENCE, succeeded=2)
        assert server.worker().parent in server.children()
        assert server.stop() == 0
    assert rows(dsn, "SELECT result FROM jobrunner.v_jobs WHERE task = 'work'") == [("new",)]
    assert rows(dsn, PUNISHED) == [(0,)]


def test_a_recycled_web_process_does_not_wait(dsn, ledger, tmp_path, environment):
    """Recycled amid a job, the only web process is replaced at once; its worker lets the job end, and the next has one already."""
    gate = tmp_path / "gate"
    hold(dsn, gate)
    options = ("-w", "1", "--max-requests", "1", "shop:app")
    with serving(tmp_path, *GUNICORN, *options, env={**environment, "JOBRUNNER_EMBEDDED_GRACE": "60s"}) as server:
        begun(ledger)
        first = server.worker()
        assert server.ask()["pid"] == first.parent
        gone(first.parent, timeout=20)
        second = server.worker(but=first.pid)
        assert alive(first.pid)
        insert(dsn, "work", 1, "jsonb_build_object('number', 2)")
        wait_until(lambda: states(dsn)["succeeded"] == 1, timeout=PATIENCE, what="the second worker to work")
        gate.touch()
        wait_for_states(dsn, PATIENCE, succeeded=2)
        gone(first.pid)
        assert server.worker() == second
        assert server.stop() == 0
    assert ledger.count("begin") == {"1": 1, "2": 1}
    assert rows(dsn, PUNISHED) == [(0,)]


def test_a_killed_worker_is_started_again(dsn, ledger, tmp_path, environment):
    """kill -9 of the worker's own process: its children die with it, its web process starts another, whose first work is the lost job."""
    gate = tmp_path / "gate"
    insert(dsn, "hold", 1, f"jsonb_build_object('number', n, 'gate', '{gate}')", queue="held", max_attempts=2)
    with serving(tmp_path, *GUNICORN, *FOUR, env=environment) as server:
        begun(ledger)
        [(_, _, child, _)] = ledger.lines()
        first = server.worker()
        os.kill(first.pid, signal.SIGKILL)
        gone(child)
        second = server.worker(but=first.pid)
        assert second.parent == first.parent
        begun(ledger, 2)  # its lease is over
        gate.touch()
        wait_for_states(dsn, PATIENCE, succeeded=1)
        assert "the embedded worker ended with exit code -9; starting it again" in server.text
        assert server.stop() == 0
    assert ledger.count("end") == {"1": 1}


def test_a_killed_master(dsn, ledger, tmp_path, environment):
    """After kill -9 of gunicorn's master its processes leave by themselves, and the worker after them: nobody works on as an orphan."""
    with serving(tmp_path, *GUNICORN, "-w", "2", "--timeout", "4", "shop:app", env=environment) as server:
        server.worker()
        server.process.kill()
        server.process.wait()
        wait_until(lambda: python_processes(tmp_path) == [], timeout=PATIENCE, what="everybody to leave")
    assert rows(dsn, ALIVE) == [(0,)]
