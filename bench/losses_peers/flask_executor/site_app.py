"""The site that gunicorn serves: Flask-Executor as its documentation has it, with one thread in each of the two processes."""

from __future__ import annotations

import os

import notes
from contending import roll_back
from flask import Flask, request
from flask_executor import Executor

app = Flask(__name__)
app.config["EXECUTOR_MAX_WORKERS"] = 1
executor = Executor(app)


@app.post("/now")
def now() -> dict[str, bool]:
    """One job."""
    executor.submit(notes.work, request.json["number"], request.json["seconds"])  # type: ignore[index]
    return {"submitted": True}


@app.post("/rolled-back")
def rolled_back() -> dict[str, bool]:
    """One job in a transaction that fails."""
    number = request.json["number"]  # type: ignore[index]
    roll_back(os.environ["BENCH_DSN"], lambda _: executor.submit(notes.work, number, 0.0))
    return {"submitted": True}
