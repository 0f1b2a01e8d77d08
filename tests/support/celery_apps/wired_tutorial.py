"""Wiring A: an app of a module, the Flask config poured into the settings, progress by `update_state`."""

from __future__ import annotations

import os
from pathlib import Path

from flask import Flask, jsonify, url_for

from jobrunner.compat.celery import Celery
from tests.support.waiting import wait_until

app = Flask(__name__)
app.config["SECRET_KEY"] = "not in any table"
app.config["CELERY_BROKER_URL"] = os.environ.get("WIRED_BROKER", "redis://localhost:6379/0")
app.config["CELERY_RESULT_BACKEND"] = "redis://localhost:6379/0"
app.config["MAIL_DEFAULT_SENDER"] = "shop@example.org"

celery = Celery(app.name, broker=app.config["CELERY_BROKER_URL"])
celery.conf.update(app.config)


@celery.task
def send_async_email(email_data):
    """Needs the app's config, and so an app context."""
    with app.app_context():
        return {"to": email_data["to"], "from": app.config["MAIL_DEFAULT_SENDER"]}


@celery.task(bind=True)
def long_task(self, total=4):
    """Says how far it is after each step."""
    for step in range(total):
        self.update_state(state="PROGRESS", meta={"current": step, "total": total, "status": f"step {step}"})
        if step == total - 1 and (gate := os.environ.get("WIRED_GATE")):
            wait_until(Path(gate).exists, timeout=60, what="the gate to be open")
    return {"current": 100, "total": 100, "status": "Task completed!", "result": 42}


@app.post("/email")
def email():
    return jsonify({"id": send_async_email.delay({"to": "ada@example.org"}).id})


@app.post("/longtask")
def longtask():
    task = long_task.apply_async()
    return jsonify({}), 202, {"Location": url_for("taskstatus", task_id=task.id)}


@app.get("/status/<task_id>")
def taskstatus(task_id):
    task = long_task.AsyncResult(task_id)
    if task.state == "PENDING":
        return jsonify({"state": task.state, "current": 0, "total": 1, "status": "Pending..."})
    if task.state == "FAILURE":
        return jsonify({"state": task.state, "current": 1, "total": 1, "status": str(task.info)})
    response = {
        "state": task.state, "current": task.info.get("current", 0), "total": task.info.get("total", 1), "status": task.info.get("status", ""),
    }  # fmt: skip
    if "result" in task.info:
        response["result"] = task.info["result"]
    return jsonify(response)
