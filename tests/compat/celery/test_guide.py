"""What the guide from Celery has its readers type does what it says: the change of the imports, and the move of one task after the other."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psycopg
import pytest

from tests.compat.celery.conftest import APPS
from tests.support.documents import blocks
from tests.support.workers import workers

GUIDE = (Path(__file__).resolve().parents[3] / "docs" / "migrate" / "celery.md").read_text()
OURS = "jobrunner.compat.celery"
OTHERS = """
from celery_once import QueueOnce
import celeryish
    from celery import Celery  # in a function
word = "from celery import Celery"
"""
CHANGED = OTHERS.replace("    from celery import", f"    from {OURS} import")


@pytest.mark.needs("linux")
def test_the_imports_are_changed_by_the_line_of_the_guide(tmp_path):
    """The applications of the wiring tests, with Celery's own imports, become what these tests run; nothing else is touched."""
    (command,) = re.findall(r"^\$ (sed .*\))", GUIDE, re.MULTILINE)
    wanted = {path.name: path.read_text() for path in APPS.glob("wired_*.py")}
    assert all(OURS in text for text in wanted.values() if "Celery" in text)
    for name, text in wanted.items():
        (tmp_path / name).write_text(text.replace(OURS, "celery"))
    (tmp_path / "others.py").write_text(OTHERS)
    subprocess.run("git init -q . && git add .", shell=True, cwd=tmp_path, check=True, timeout=60)
    subprocess.run(command, shell=True, cwd=tmp_path, check=True, timeout=60)
    assert {name: (tmp_path / name).read_text() for name in wanted} == wanted
    assert (tmp_path / "others.py").read_text() == CHANGED


HEAD = """
import os
from pathlib import Path
from smtplib import SMTPException

from flask import Flask
from flask_sqlalchemy import SQLAlchemy

from jobrunner import JobRunner
from jobrunner.compat.celery import Celery

app = Flask(__name__)
app.config["SQLALCHEMY_DATABASE_URI"] = os.environ["JOBRUNNER_DSN"].replace("postgresql://", "postgresql+psycopg://", 1)
db = SQLAlchemy(app)


def note(word):
    with Path(os.environ["GUIDE_NOTES"]).open("a") as file:
        file.write(f"{word}\\n")

"""
BOTH = """

@celery.task
def of_celery():
    note("of_celery")


@jobs.task
def native():
    note("native")
"""


def step(when):
    """A module with the code of `Task by task` before or after the move of a task, and the line that sends it."""
    part = GUIDE[GUIDE.index("### Task by task") : GUIDE.index("## Back again")]
    (setup,), (diff,) = blocks(part, "python"), blocks(part, "diff")
    kept = {"before": " -", "after": " +"}[when]
    lines = [line[1:] for line in diff.splitlines() if line[0] in kept]
    (send,) = [line for line in lines if line.startswith("send_welcome.")]
    body = "\n".join(line.replace("...", "note(user_id)") for line in lines if line != send)
    return HEAD + setup + BOTH + "\n\n" + body + "\n", send


@pytest.mark.parametrize(
    ("when", "job", "after_rollback"), [("before", ("guide_shop.send_welcome", "celery", 1), 1), ("after", ("send_welcome", "default", 6), 0)]
)
def test_one_task_after_the_other_becomes_native(dsn, tmp_path, monkeypatch, when, job, after_rollback):
    """One worker runs both kinds; a call that became `.enqueue` is part of the session's transaction, and has the attempts that it says."""
    text, send = step(when)
    (tmp_path / "guide_shop.py").write_text(text)
    monkeypatch.setenv("JOBRUNNER_DSN", dsn)
    monkeypatch.setenv("GUIDE_NOTES", str(tmp_path / "notes"))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "guide_shop", raising=False)
    module = importlib.import_module("guide_shop")
    monkeypatch.setitem(sys.modules, "guide_shop", module)  # so that it goes with this test
    known = {**vars(module), "user": SimpleNamespace(id=7)}
    with module.app.app_context(), psycopg.connect(dsn, autocommit=True) as connection:
        count = "SELECT count(*) FROM jobrunner.jobs"
        exec(send, known)
        module.db.session.rollback()
        assert connection.execute(count).fetchone() == (after_rollback,)
        exec(send, known)
        module.of_celery.delay_on_commit()
        module.native.enqueue()
        module.db.session.commit()
        assert connection.execute("SELECT task, queue, max_attempts FROM jobrunner.jobs WHERE task LIKE '%send_welcome'").fetchall() == [job] * (after_rollback + 1)
    with workers(dsn, tmp_path / "ledger", "celery,default", "-c", "1", "--drain", app=f"{tmp_path}/guide_shop.py:jobs") as [worker]:
        assert worker.wait() == 0
    assert sorted((tmp_path / "notes").read_text().split()) == sorted(["7"] * (after_rollback + 1) + ["native", "of_celery"])
    with module.app.app_context():
        module.db.engine.dispose()
    module.jobs.close()
