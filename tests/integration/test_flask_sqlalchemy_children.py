"""Children forked from an app that has already used its database."""

from __future__ import annotations

from tests.support.workers import Ledger, insert, rows, states, workers

APP = """
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import text
from jobrunner import JobRunner
import os

app = Flask(__name__)
app.config["SQLALCHEMY_DATABASE_URI"] = os.environ["JOBRUNNER_DSN"].replace("postgresql://", "postgresql+psycopg://")
db = SQLAlchemy(app)
jobs = JobRunner(app)
with app.app_context():
    db.session.execute(text("SELECT 1"))
    db.session.remove()

@jobs.task(max_attempts=1)
def ask(number: int) -> int:
    backend = db.session.scalar(text("SELECT pg_backend_pid()"))
    assert db.session.scalar(text("SELECT CAST(:n AS int)"), {"n": number}) == number
    return backend
"""


def test_children_do_not_share_the_connections_of_the_import(dsn, tmp_path):
    """An app that used Flask-SQLAlchemy at import has children that each open connections of their own."""
    app = tmp_path / "shop.py"
    app.write_text(APP)
    ledger = Ledger(tmp_path / "ledger")
    insert(dsn, "ask", 100)
    with workers(dsn, ledger.path, "-c", "2", "--drain", app=str(app)) as [worker]:
        assert worker.wait() == 0
    assert states(dsn) == {"succeeded": 100}
    by_backend = rows(dsn, "SELECT count(DISTINCT result) FROM jobrunner.v_jobs")
    assert by_backend == [(2,)], "one backend for each child"
