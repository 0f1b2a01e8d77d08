"""What the README shows works as it stands there."""

from __future__ import annotations

import json
import re
import shlex
import socket
import subprocess
import sys
import textwrap
import urllib.request
from pathlib import Path

import psycopg
import pytest

from tests.support.cli import Program
from tests.support.documents import blocks, steps
from tests.support.waiting import wait_until
from tests.support.workers import states

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()

# Around the README's lines about the caller's transaction: an application in which they may stand.
SHOP = """
import os, sys
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from jobrunner import JobRunner

app = Flask(__name__)
app.config["SQLALCHEMY_DATABASE_URI"] = os.environ["JOBRUNNER_DSN"].replace("postgresql://", "postgresql+psycopg://")
db = SQLAlchemy(app)
jobs = JobRunner(app)

class Order(db.Model):
    __tablename__ = "readme_orders"
    id = db.Column(db.Integer, primary_key=True)

@jobs.task
def send_receipt(order_id: int) -> None: ...

with app.app_context():
    db.create_all()
    order = Order(id=4711)
    try:
{block}
        {end}
    except RuntimeError:
        pass
"""


def block(language: str, containing: str) -> str:
    """The fenced block of that language that contains a text."""
    return next(text for text in blocks(README, language) if containing in text)


def test_the_readme_fits_on_a_page_and_its_app_is_the_example():
    """The README has at most 200 lines, and its app.py is the one in examples/quickstart."""
    assert len(README.splitlines()) <= 200
    assert block("python", "# app.py").removeprefix("# app.py\n") == (ROOT / "examples" / "quickstart" / "app.py").read_text()


def test_every_command_of_the_readme_exists():
    """Each command in a console block is one of ours with options that it knows, a target of the Makefile, pip or curl."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    program = Program(ROOT, None)
    commands = [step.command for step in steps(README) if step.command]
    assert len(commands) > 5
    for command in commands:
        name, *arguments = shlex.split(command.partition("#")[0])
        if name == "jobrunner":
            assert program(*arguments, "--help").code == 0
        elif name == "make":
            assert arguments[0] in targets
        else:
            assert name in {"pip", "curl"}


def test_the_readme_app_runs(empty_dsn, tmp_path):
    """db upgrade, dev, a request to the README's app: the job is done, the list and the dashboard show it, the README's SQL runs."""
    (tmp_path / "app.py").write_text(block("python", "# app.py"))
    program = Program(tmp_path, empty_dsn)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    program("db", "upgrade")
    with program.started("dev", "--port", port) as running:
        running.wait_for("worker started")
        running.wait_for("Running on")
        request = urllib.request.Request(f"http://127.0.0.1:{port}/signup/42", method="POST")
        with urllib.request.urlopen(request, timeout=20) as answer:
            assert json.load(answer) == {"job": 1}
        wait_until(lambda: states(empty_dsn) == {"succeeded": 1}, timeout=30, what="the job to be done")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/jobrunner/jobs", timeout=20) as page:
            assert "welcome" in page.read().decode()
        running.stop()
    titles, row = program("jobs", "list").lines()
    shown = block("console", "ID  TASK")
    assert titles.split() == shown.splitlines()[2].split()
    assert row.split()[:5] == shown.splitlines()[3].split()[:5] == ["1", "welcome", "default", "succeeded", "1/3"]
    with psycopg.connect(empty_dsn) as connection:
        assert connection.execute("SELECT result FROM jobrunner.v_jobs").fetchall() == [("Welcome, user 42!",)]
        cursor = connection.execute(block("sql", "v_attempts"))
        assert cursor.fetchall() == []
        names = [column.name for column in cursor.description or []]
    assert names == block("text", "error_type").splitlines()[0].replace("|", " ").split()


def test_the_crontab_line(dsn, tmp_path):
    """The README's crontab line, without the time that it stays, runs what is due, says nothing that cron would mail, and leaves with 0."""
    (tmp_path / "app.py").write_text(block("python", "# app.py"))
    program = Program(tmp_path, dsn)
    program("enqueue", "welcome", '{"user_id": 42}')
    line = block("cron", "* * * * *").strip()
    assert line.startswith("* * * * *  cd /srv/shop && ")
    own = line.partition("&& ")[2].replace(".venv/bin/jobrunner", f"{sys.executable} -m jobrunner")
    assert own.endswith(" --for 55s")
    done = subprocess.run(
        ["sh", "-c", own.removesuffix(" --for 55s")], cwd=tmp_path, env=program.environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert states(dsn) == {"succeeded": 1}


@pytest.mark.parametrize(("end", "orders", "jobs"), [("pass", 1, 1), ("db.session.flush(); raise RuntimeError", 0, 0)])
def test_the_job_is_in_the_transaction(fresh_dsn, tmp_path, end, orders, jobs):
    """The README's transaction leaves both rows, or neither when it fails in the middle."""
    lines = textwrap.indent(block("python", "session=db.session"), " " * 8)
    (tmp_path / "shop.py").write_text(SHOP.format(block=lines.rstrip(), end=f"    {end}"))
    Program(tmp_path, fresh_dsn, argv=("shop.py",))()
    with psycopg.connect(fresh_dsn) as connection:
        assert connection.execute("SELECT count(*) FROM readme_orders").fetchall() == [(orders,)]
        assert connection.execute("SELECT count(*) FROM jobrunner.jobs WHERE args = '{\"order_id\": 4711}'").fetchall() == [(jobs,)]


def test_the_demonstration_of_the_readme():
    """What the README quotes of the demonstration is what the demonstration says."""
    quoted = block("text", "was killed by SIGKILL")
    said = (ROOT / "jobrunner" / "demo" / "show.py").read_text() + (ROOT / "jobrunner" / "cli" / "demo_screen.py").read_text()
    assert "; started another, " in quoted
    for part in ("; started another, ", "Its jobs run again when the lease of "):
        assert part in quoted
        assert part in said
    for title in re.split(r" {2,}", quoted.splitlines()[2].strip()):
        assert f'"{title}"' in said
