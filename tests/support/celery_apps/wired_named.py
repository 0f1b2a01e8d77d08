"""Wiring C: settings by attribute, tasks with names of their own, results by id."""

from __future__ import annotations

import os

from flask import Flask, jsonify, request

from jobrunner.compat.celery import Celery
from jobrunner.compat.celery.result import AsyncResult

celery = Celery(__name__)
celery.conf.broker_url = os.environ.get("WIRED_BROKER", "redis://localhost:6379")
celery.conf.result_backend = os.environ.get("WIRED_BACKEND", "redis://localhost:6379")


@celery.task(name="create_task")
def create_task(task_type):
    if int(task_type) < 0:
        raise ValueError("no such type", task_type)
    return True


app = Flask(__name__)


@app.post("/tasks")
def run_task():
    return jsonify({"task_id": create_task.delay(int(request.json["type"])).id}), 202


@app.get("/tasks/<task_id>")
def get_status(task_id):
    found = AsyncResult(task_id)
    failed = found.status == "FAILURE"
    return jsonify({"task_id": task_id, "task_status": found.status, "task_result": repr(found.result) if failed else found.result})
