"""The site that gunicorn serves, with Jobrunner's worker beside it."""

from __future__ import annotations

import os

import notes
from contending import roll_back
from flask import Flask, request

from jobrunner import JobRunner, current_job

app = Flask(__name__)
jobs = JobRunner(app, embedded_worker="processes:2")  # the database comes from JOBRUNNER_DSN


@jobs.task
def work(number: int, seconds: float) -> None:
    """The job; the lease counts how often it has been given to a worker."""
    notes.work(number, seconds, current_job().lease)


@app.post("/now")
def now() -> dict[str, bool]:
    """One job."""
    work.enqueue(request.json["number"], request.json["seconds"])  # type: ignore[index]
    return {"enqueued": True}


@app.post("/later")
def later() -> dict[str, bool]:
    """One job that is due later."""
    work.options(delay=request.json["delay"]).enqueue(request.json["number"], 0.0)  # type: ignore[index]
    return {"enqueued": True}


@app.post("/rolled-back")
def rolled_back() -> dict[str, bool]:
    """One job in a transaction that fails."""
    number = request.json["number"]  # type: ignore[index]
    roll_back(os.environ["JOBRUNNER_DSN"], lambda session: work.options(session=session).enqueue(number, 0.0))
    return {"enqueued": True}
