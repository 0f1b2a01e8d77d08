"""The smoke subset of the supported-version matrix: what every supported combination must do from end to end."""

from __future__ import annotations

import json
import sys

import pytest

from jobrunner import migrate
from tests.support.commands import jobrunner, run, write_app

pytestmark = pytest.mark.matrix

ENQUEUE = """
import sqlalchemy as sa
from sqlalchemy.orm import Session
from app import add, app, divide, jobs

client = app.test_client()
with app.app_context():
    ids = {"own": client.post("/add/1/2").json["id"], "failing": divide.enqueue(1, 0).id}
engine = sa.create_engine(app.config["JOBRUNNER_DSN"].replace("postgresql://", "postgresql+psycopg://", 1))
with Session(engine) as session:
    ids["committed"] = add.options(session=session).enqueue(20, 22).id
    session.commit()
with Session(engine) as session:
    ids["rolled_back"] = add.options(session=session).enqueue(5, 5).id
    session.rollback()
engine.dispose()
import json
print(json.dumps(ids))
"""


def test_enqueue_work_and_look(dsn, connection, tmp_path):
    """Jobs enqueued by a Flask app, alone and in its transaction, are run by a worker; failures and rollbacks are what they should be."""
    home = write_app(tmp_path)
    app = (home / "app.py").read_text().replace("Flask(__name__)", f"Flask(__name__)\napp.config['JOBRUNNER_DSN'] = {dsn!r}")
    write_app(home, app)
    ids = json.loads(run(sys.executable, "-c", ENQUEUE, cwd=home).stdout.splitlines()[-1])

    jobrunner("work", "--drain", "--app", "app", cwd=home, dsn=dsn)

    rows = connection.execute("SELECT id, state, result, error_type FROM jobrunner.v_jobs").fetchall()
    found = {number: rest for number, *rest in rows}
    assert found == {
        ids["own"]: ["succeeded", 3, None],
        ids["committed"]: ["succeeded", 42, None],
        ids["failing"]: ["failed", None, "ZeroDivisionError"],
    }


def test_a_plain_insert_is_a_job(dsn, connection, tmp_path):
    """A row inserted by plain SQL is run like any other."""
    home = write_app(tmp_path)
    connection.execute("INSERT INTO jobrunner.jobs (task, args) VALUES ('add', '{\"a\": 2, \"b\": 2}')")
    jobrunner("work", "--drain", "--app", "app", cwd=home, dsn=dsn)
    assert connection.execute("SELECT state, result FROM jobrunner.v_jobs").fetchall() == [("succeeded", 4)]


def test_migrations_upgrade_once_and_fit_the_tables(empty_dsn):
    """The migrations run on this PostgreSQL, a second upgrade does nothing, and they make what the program expects."""
    assert migrate.upgrade(empty_dsn)
    assert migrate.upgrade(empty_dsn) == ()
    assert migrate.drift(empty_dsn) == []


def test_flask_has_the_command_group(dsn, tmp_path):
    """`flask jobs` is there because the package is installed, without a line in the app."""
    home = write_app(tmp_path)
    assert "work" in run(sys.executable, "-m", "flask", "--app", "app", "jobs", "--help", cwd=home, dsn=dsn).stdout
