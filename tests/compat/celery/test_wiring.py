"""The four ways in which Flask applications wire Celery run with a changed import only, and a real worker, by our command line or Celery's."""

from __future__ import annotations

import contextlib
import os
from collections import Counter

import psycopg
import pytest

from jobrunner.compat.celery import states
from tests.compat.celery.conftest import APPS
from tests.support.waiting import wait_until
from tests.support.workers import workers

PATIENCE = 60  # seconds
# Each module, as `celery -A` is given it in the documentation of its pattern, and what `jobrunner --app` needs to find its app.
SPECS = {
    "wired_tutorial": ("wired_tutorial.celery", "wired_tutorial.py"), "wired_named": ("wired_named.celery", "wired_named.py:celery"),
    "wired_make_celery": ("wired_make_celery", "wired_make_celery.py"), "wired_subclass": ("wired_subclass", "wired_subclass.py:notify_celery"),
}  # fmt: skip


@pytest.fixture(params=["work", "celery-worker"])
def working(request, dsn, tmp_path):
    """Starts a worker for one of the modules, by Jobrunner's own command or by a command line of Celery's."""

    @contextlib.contextmanager
    def start(module, slots, queues=None):
        of_celery, of_ours = SPECS[module]
        if request.param == "work":
            options, app = (queues or "celery", "-c", slots), f"{APPS}/{of_ours}"
        else:
            options, app = ("worker", "-l", "info", "-E", "-c", slots, *(("-Q", queues) if queues else ())), of_celery
        path = os.pathsep.join([str(APPS), os.environ.get("PYTHONPATH", "")])
        with workers(dsn, tmp_path / "ledger", *options, app=app, command=request.param, environment={"PYTHONPATH": path}) as [worker]:
            yield worker

    return start


def finished(result):
    """Wait until a task has finished. Returns its state."""
    wait_until(result.ready, timeout=PATIENCE, what="the task to have finished")
    return result.state


def test_a_tutorial_app_reports_progress_and_then_the_result(load, working, dsn, tmp_path, monkeypatch):
    """Wiring A: the page that polls sees PROGRESS with its numbers, which the dashboard shows too, then what the task returned."""
    gate = tmp_path / "gate"
    monkeypatch.setenv("WIRED_GATE", str(gate))
    module = load("wired_tutorial")
    client = module.app.test_client()
    location = client.post("/longtask").headers["Location"]
    mail = client.post("/email").json["id"]
    assert client.get(location).json == {"state": "PENDING", "current": 0, "total": 1, "status": "Pending..."}
    with working("wired_tutorial", "2") as worker:
        seen = wait_until(
            lambda: (found := client.get(location).json)["current"] == 3 and found, timeout=PATIENCE, what="the last step to be reported"
        )
        assert seen == {"state": "PROGRESS", "current": 3, "total": 4, "status": "step 3"}
        with psycopg.connect(dsn) as connection:
            query = "SELECT progress, progress_text FROM jobrunner.v_jobs WHERE task = 'wired_tutorial.long_task'"
            wait_until(lambda: connection.execute(query).fetchone() == (0.75, "step 3"), timeout=PATIENCE, what="progress to be shown")
        gate.touch()
        wait_until(lambda: client.get(location).json["state"] == "SUCCESS", timeout=PATIENCE, what="the task to have succeeded")
        assert client.get(location).json == {"state": "SUCCESS", "current": 100, "total": 100, "status": "Task completed!", "result": 42}
        result = module.celery.AsyncResult(mail)
        assert result.get(timeout=PATIENCE) == {"to": "ada@example.org", "from": "shop@example.org"}
        table = worker.text()
    assert "understood   broker_url" in table
    assert "ignored      result_backend" in table
    assert "not in any table" not in table


def test_the_factory_of_flasks_documentation(load, working):
    """Wiring B: shared tasks become those of the factory's app; its base class gives them the app context; results are read by id."""
    module = load("wired_make_celery")
    client = module.flask_app.test_client()
    ids = [client.post("/add", data={"a": 3, "b": 4}).json["result_id"], client.post("/process", data={"total": 5}).json["result_id"]]
    first = client.get(f"/result/{ids[0]}").json
    assert first == {"ready": False, "successful": None, "value": None}
    with working("wired_make_celery", "2"):
        for result_id in ids:
            wait_until(lambda: client.get(f"/result/{result_id}").json["ready"], timeout=PATIENCE, what="the result")  # noqa: B023
    assert client.get(f"/result/{ids[0]}").json == {"ready": True, "successful": True, "value": 7}
    assert client.get(f"/result/{ids[1]}").json["value"] == {"total": 5, "greeting": "hello", "id": ids[1]}


def test_a_task_that_ignores_its_result_by_the_settings_reads_pending(load, dsn, tmp_path):
    """Wiring B: `task_ignore_result` of the config holds for a task that does not say otherwise; its job is on record all the same."""
    module = load("wired_make_celery")
    tasks = load("wired_tasks")
    with module.flask_app.app_context():
        sent = tasks.block.delay()
    assert sent.get(timeout=PATIENCE) is None
    with workers(dsn, tmp_path / "ledger", "celery", "--drain", app=f"{APPS}/wired_make_celery.py") as [worker]:
        assert worker.wait() == 0
    assert module.celery_app.AsyncResult(sent.id).state == states.PENDING
    with psycopg.connect(dsn) as connection:
        assert connection.execute("SELECT task, state FROM jobrunner.v_jobs").fetchall() == [("wired_tasks.block", "succeeded")]


def test_settings_by_attribute_and_tasks_by_name(load, working):
    """Wiring C: a waiting task reads PENDING until it is SUCCESS or FAILURE, and then its result is what it returned or raised."""
    module = load("wired_named")
    client = module.app.test_client()
    ids = [client.post("/tasks", json={"type": number}).json["task_id"] for number in (1, -1)]
    assert client.get(f"/tasks/{ids[0]}").json == {"task_id": ids[0], "task_status": "PENDING", "task_result": None}
    with working("wired_named", "1"):
        for task_id in ids:
            assert finished(module.celery.AsyncResult(task_id)) in {"SUCCESS", "FAILURE"}
    assert client.get(f"/tasks/{ids[0]}").json == {"task_id": ids[0], "task_status": "SUCCESS", "task_result": True}
    failed = client.get(f"/tasks/{ids[1]}").json
    assert failed == {"task_id": ids[1], "task_status": "FAILURE", "task_result": "ValueError('no such type', -1)"}


def test_a_subclass_with_headers_hooks_and_retries(load, working, tmp_path, monkeypatch):
    """Wiring D: the header of `send_task` is an attribute of the request, hooks get Celery's arguments, a retry may change its queue."""
    notes = tmp_path / "notes"
    monkeypatch.setenv("WIRED_NOTES", str(notes))
    module = load("wired_subclass")
    client = module.application.test_client()
    ids = [client.post(path, headers={"X-Request-Id": f"req-{path}"}).json["id"] for path in ("/sms/1", "/sms/-1", "/by-name/2")]
    with working("wired_subclass", "1", "send-sms-tasks,retry-tasks"):
        results = [module.notify_celery.AsyncResult(task_id) for task_id in ids]
        assert [finished(result) for result in results] == ["SUCCESS", "FAILURE", "SUCCESS"]
    assert [results[0].result, results[2].result] == ["delivered 1 req-/sms/1", "delivered 2 req-/by-name/2"]
    assert repr(results[1].info) == "LookupError('gave up')"
    assert (results[1].retries, results[1].queue) == (2, "retry-tasks")
    assert Counter(notes.read_text().splitlines()) == Counter([
        "success deliver_sms send-sms-tasks req-/sms/1 True delivered 1 req-/sms/1",
        "success deliver_sms send-sms-tasks req-/by-name/2 True delivered 2 req-/by-name/2",
        "failure deliver_sms retry-tasks req-/sms/-1 LookupError gave up",
    ])  # fmt: skip
