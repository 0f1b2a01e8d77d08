"""The application that web servers serve in tests of the embedded worker: tasks that note what they do, and views that enqueue them."""

from __future__ import annotations

import os
import time
from pathlib import Path

from flask import Flask, current_app

from jobrunner import JobRunner, current_job

app = Flask(__name__)
jobs = JobRunner(app)


def note(event: str, number: object) -> None:
    """Append `event number pid lease` to the ledger."""
    descriptor = os.open(os.environ["JOBRUNNER_CHAOS_LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{event} {number} {os.getpid()} {current_job().lease}\n".encode())
    os.close(descriptor)


@jobs.task(max_attempts=1)
def work(number: int, seconds: float = 0.0) -> str:
    """Note the beginning and the end, and take some time between; the only attempt must not be used up by a restart."""
    note("begin", number)
    time.sleep(seconds)
    note("end", number)
    return current_app.name


@jobs.task(max_attempts=1, queue="held")
def hold(number: int, gate: str) -> None:
    """Go on until a file is there."""
    note("begin", number)
    while not Path(gate).exists():
        time.sleep(0.01)
    note("end", number)


@app.get("/")
def index() -> dict[str, int]:
    """Which process serves."""
    return {"pid": os.getpid()}


@app.post("/work/<int:number>")
def enqueue(number: int) -> dict[str, int]:
    """One job."""
    return {"pid": os.getpid(), "job": work.enqueue(number, 0.01).id}
