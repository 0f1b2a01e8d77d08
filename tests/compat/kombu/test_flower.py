"""Flower beside real workers of an application in which only the broker's address is ours."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from typing import Any

import pytest

from tests.support.celeries import ADD, MODULE, PATIENCE, ROOT, celery_worker
from tests.support.waiting import wait_until

NOTHING: tuple[int, dict[str, Any]] = (0, {})  # in place of an answer that did not come


class OverSocket(http.client.HTTPConnection):
    """HTTP on a Unix socket."""

    def __init__(self, path):
        super().__init__("localhost", timeout=PATIENCE)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(self.path)


@pytest.fixture
def flower(tmp_path):
    """Starts `celery flower` for an application; gives what asks its API: an answer, or None while it does not listen."""
    with contextlib.ExitStack() as stack:

        def started(own):
            short = tempfile.mkdtemp(prefix="f", dir="/tmp")  # a socket's path has 107 bytes at most; tmp_path may need them all
            stack.callback(shutil.rmtree, short, ignore_errors=True)
            path, log = f"{short}/web.sock", tmp_path / "flower.log"
            command = [sys.executable, "-m", "celery", "-A", MODULE, "flower", f"--unix-socket={path}", "--inspect-timeout=5000"]
            environment = own.environment | {"FLOWER_UNAUTHENTICATED_API": "true", "HOME": str(tmp_path)}
            with log.open("wb") as out:
                process = subprocess.Popen(
                    command, env=environment, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
                )

            def end():
                process.kill()
                process.wait()

            stack.callback(end)

            def ask(method, address):
                assert process.poll() is None, log.read_text()
                connection = OverSocket(path)
                try:
                    connection.request(method, address, headers={"Content-Length": "0"} if method == "POST" else {})
                    answer = connection.getresponse()
                    text = answer.read()
                except OSError:
                    return None
                finally:
                    connection.close()
                return (answer.status, json.loads(text)) if answer.status == http.HTTPStatus.OK else (answer.status, os.fsdecode(text))

            return ask

        yield started


def test_flower_shows_workers_and_tasks_and_revokes_one(shop, flower):
    """Its API, which its pages read too: who works, with queues and pool; what became of a task; a task for later is revoked."""
    own = shop()
    with celery_worker(own, "one", "-c", "1", "-E") as worker:
        ask = flower(own)
        wait_until(lambda: (ask("GET", "/api/workers?status=true") or (0, {}))[1] == {worker.name: True}, timeout=PATIENCE, what="it to be seen")
        asked = {"active_queues", "registered", "stats"}
        about = wait_until(lambda: _worker(ask, worker.name, asked), timeout=PATIENCE, what=f"its answers to {asked}")
        assert [queue["name"] for queue in about["active_queues"]] == ["celery"]
        assert ADD in about["registered"]
        assert about["stats"]["broker"]["transport"] == "jobrunner"

        task = own.send("add", 2, 3)
        shown = wait_until(lambda: _task(ask, task.id, "SUCCESS"), timeout=PATIENCE, what="the task to be shown as done")
        assert (shown["name"], shown["result"], shown["worker"]) == (ADD, "5", worker.name)

        later = own.send("sell", 1, countdown=20)  # in which Flower and the worker have to hear of its end
        assert ask("POST", f"/api/task/revoke/{later.id}")[0] == http.HTTPStatus.OK
        own.wait_until_empty()
        wait_until(lambda: _task(ask, later.id, "REVOKED"), timeout=PATIENCE, what="the other to be shown as revoked")
    assert own.ledger.count("start") == {}


def _worker(ask, name, asked):
    status, found = ask("GET", f"/api/workers?refresh=true&workername={name}") or NOTHING
    about = found.get(name, {}) if status == http.HTTPStatus.OK else {}
    return about if asked <= about.keys() else None


def _task(ask, number, state):
    status, found = ask("GET", f"/api/task/info/{number}") or NOTHING
    return found if status == http.HTTPStatus.OK and found["state"] == state else None
