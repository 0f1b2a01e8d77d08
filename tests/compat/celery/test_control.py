"""`app.control`: what Celery sends to workers is asked of the database."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys

import pytest

from jobrunner.compat.celery import signals
from jobrunner.compat.celery.exceptions import TaskRevokedError, Unsupported
from tests.compat.celery.conftest import APPS
from tests.support.waiting import wait_until
from tests.support.workers import workers

PATIENCE = 60  # seconds
APP = f"{APPS}/controlled.py"


@pytest.fixture
def controlled(load):
    """The app whose tasks wait for gates."""
    return load("controlled")


def test_a_revoked_task_never_runs(controlled, dsn, tmp_path, monkeypatch):
    """Durable: it is cancelled in its row, whether it waits, is due later or is between retries; no worker ever begins it."""
    monkeypatch.setenv("CONTROLLED_DIR", str(tmp_path))
    seen = []

    def receive(sender, request, terminated, expired, **kwargs):
        seen.append((sender.name, request.id, request.args, terminated, expired))

    signals.task_revoked.connect(receive)
    waiting, later, kept = controlled.touch.delay("a"), controlled.touch.apply_async(("b",), countdown=3600), controlled.touch.delay("c")
    waiting.revoke()
    controlled.celery.control.revoke([later.id, "nobody"])
    assert [waiting.state, later.state, kept.state] == ["REVOKED", "REVOKED", "PENDING"]
    with pytest.raises(TaskRevokedError, match="revoked"):
        waiting.get(timeout=PATIENCE)
    assert seen == [("controlled.touch", waiting.id, ("a",), False, False), ("controlled.touch", later.id, ("b",), False, False)]
    with workers(dsn, tmp_path / "ledger", "celery", "--drain", app=APP) as [worker]:
        assert worker.wait() == 0
    assert [(tmp_path / name).exists() for name in "abc"] == [False, False, True]
    kept.revoke(terminate=True)
    assert kept.get(timeout=PATIENCE) == "c"


def test_workers_can_be_looked_at_and_a_running_task_be_ended(controlled, dsn, tmp_path, monkeypatch):
    """ping, registered, stats, active, scheduled, revoked; `terminate` ends the body, without it the running attempt goes on."""
    monkeypatch.setenv("CONTROLLED_DIR", str(tmp_path))
    control = controlled.celery.control
    assert control.inspect().ping() is None
    hold, finish = controlled.hold.delay("held"), controlled.hold.delay("finishing")
    later = controlled.touch.apply_async(("x",), {}, countdown=3600, priority=3)
    with workers(dsn, tmp_path / "ledger", "celery", "-c", "2", "--name", "w1", app=APP) as [worker]:
        for name in ("held", "finishing"):
            wait_until((tmp_path / f"{name}.began").exists, timeout=PATIENCE, what=f"{name} to have begun")
        look = control.inspect()
        assert look.ping() == {"w1": {"ok": "pong"}}
        assert control.ping() == [{"w1": {"ok": "pong"}}]
        assert control.inspect(destination=["w2"]).ping() is None
        assert look.registered() == {"w1": ["controlled.hold", "controlled.touch"]}
        assert look.active_queues() == {"w1": [{"name": "celery", "routing_key": "celery"}]}
        assert look.reserved() == {"w1": []}
        assert (look.stats()["w1"]["pool"]["max-concurrency"], look.stats()["w1"]["pid"]) == (2, worker.process.pid)
        active = look.active()["w1"]
        assert [(one["id"], one["name"], one["args"]) for one in active] == [
            (hold.id, "controlled.hold", ["held"]), (finish.id, "controlled.hold", ["finishing"]),
        ]  # fmt: skip
        assert active[0]["time_start"] > 0
        [entry] = look.scheduled()["w1"]
        assert (entry["request"]["id"], entry["request"]["args"], entry["request"]["delivery_info"]["priority"]) == (later.id, ["x"], 3)
        finish.revoke()
        hold.revoke(terminate=True)
        wait_until(lambda: hold.state == "REVOKED", timeout=PATIENCE, what="the task to have been ended")
        assert repr(hold.info) == "TaskRevokedError('terminated')"
        (tmp_path / "finishing.go").touch()
        assert finish.get(timeout=PATIENCE) == "finishing"
        assert look.revoked() == {"w1": [hold.id]}
        control.shutdown(destination=["w1"])
        assert worker.wait() == 0
    assert (tmp_path / "revoked").read_text() == f"{hold.id} True {int(signal.SIGTERM)} False\n"


def test_purge_calls_off_what_waits(controlled, connection):
    """Every job of the app's queues, due or not; they stay visible as cancelled; those of other queues stay as they are."""
    controlled.touch.delay("a")
    controlled.touch.apply_async(("b",), countdown=3600)
    other = controlled.touch.apply_async(("c",), queue="other")
    assert controlled.celery.control.purge() == 2
    assert controlled.celery.control.purge() == 0
    assert other.state == "PENDING"
    found = connection.execute("SELECT state, count(*) FROM jobrunner.v_jobs GROUP BY state ORDER BY state").fetchall()
    assert found == [("cancelled", 2), ("queued", 1)]


def test_a_worker_of_another_host_is_not_ended_by_signal(controlled, connection):
    """Its name is said, so that somebody can; nothing here is touched."""
    connection.execute(
        "INSERT INTO jobrunner.workers (name, host, pid, kind, version, queues, tasks, slots, lease_expires_at) "
        "VALUES ('far', %s, 1, 'daemon', '0', '{celery}', '{}', 1, now() + interval '1 hour')",
        (f"not-{socket.gethostname()}",),
    )
    with pytest.raises(Unsupported, match="stop far on not-"):
        controlled.celery.control.shutdown()


def test_a_worker_that_is_gone_already_keeps_nobody_from_being_told(controlled, connection):
    """Its lease holds for a while after it was killed; the one behind it is dealt with all the same."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for name, host, pid in (("gone", socket.gethostname(), gone.pid), ("far", f"not-{socket.gethostname()}", 1)):
        connection.execute(
            "INSERT INTO jobrunner.workers (name, host, pid, kind, version, queues, tasks, slots, lease_expires_at) "
            "VALUES (%s, %s, %s, 'daemon', '0', '{celery}', '{}', 1, now() + interval '1 hour')",
            (name, host, pid),
        )
    with pytest.raises(Unsupported, match="stop far on not-"):
        controlled.celery.control.shutdown()


def test_tasks_that_nobody_serves_are_not_overlooked(controlled, connection):
    """`scheduled` lists them under a name of its own when a worker lives, but none for their queue."""
    controlled.touch.apply_async(("a",), countdown=3600)
    connection.execute(
        "INSERT INTO jobrunner.workers (name, host, pid, kind, version, queues, tasks, slots, lease_expires_at) "
        "VALUES ('w', 'h', 1, 'daemon', '0', '{other}', '{}', 1, now() + interval '1 hour')"
    )
    found = controlled.celery.control.inspect().scheduled()
    assert {name: len(entries) for name, entries in found.items()} == {"w": 0, "jobrunner@nobody": 1}
