"""`migrate-check` has an answer for every text: whatever a file holds, the scan ends, and what it says is in the file."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from jobrunner.migrating import scan

# Lines that mean something to the scanner, in any order and number: names unbound, bound twice, to themselves and to each other.
LINES = [
    "from celery import Celery, Task, chain, shared_task", "from celery import *", "import celery", "import celery as app", "from . import app",
    "from .other import send as app", "from .code import app", "app = Celery('a')", "app = app", "app = app.task", "app = app(app)", "app = make()",
    "send = app.send = send", "(app := send)", "app: Celery = None", "app |= send", "send | app | send.s(1)", "app.conf.x.y = 1", "app.conf['x'] = {}",
    "app.conf.update(**app.conf)", "CELERY = CELERY", "CELERY = {**CELERY, 'task_serializer': CELERY}", "class app(app): pass", "class send(Task): run = app",
    "class A(send, app):\n    app = app\n    def f(self): return self.app.f().s(self)", "def make(app=app): return make()", "def send(self): return send",
    "@app\ndef send(self, *a, **k): self.retry(**k)", "@app.task(bind=True, **app)\ndef send(self): yield self.request.x", "async def f(): await send.delay()",
    "lambda app: app.delay()", "with app as send, send as (app, send): pass", "for app in app: app.s()", "super().send()", "self.app = self.app",
    "[app.delay() for app in send]", "app[app].delay()", "['celery', 'worker', '-B', '-l']", "del app", "global app", "f'{app.delay()}'", "app.config_from_object(app)",
]  # fmt: skip
COMMANDS = ["celery", "worker", "-A", "--app=", "'", '"', "\\\n", "\n", " ", "- ", "-", "[", "]", ",", "&&", "|", "#", "-EB", "--", "=", "x", ">", "CELERY_X="]


def scanned(files):
    """The report of a package of these files."""
    with tempfile.TemporaryDirectory() as home:
        for name, text in files.items():
            (Path(home) / name).write_text(text, encoding="utf-8", errors="surrogatepass")
        return scan([home])


@given(st.lists(st.sampled_from(LINES), max_size=12), st.lists(st.sampled_from(LINES), max_size=12))
def test_any_order_of_lines_is_looked_at(one, other):
    """Two modules of such lines that import each other: everything is parsed, every use stands on a line that there is."""
    files = {"__init__.py": "", "code.py": "\n".join(one), "other.py": "\n".join(other)}
    report = scanned(files)
    broken = {Path(path).name for path, reason in report.unread if "syntax error" in reason}
    assert len(report.unread) == len(broken)
    for use in report.uses:
        lines = files[Path(use.path).name].split("\n")
        assert 1 <= use.line <= len(lines)
        assert 1 <= use.column <= len(lines[use.line - 1]) + 1


@given(st.lists(st.sampled_from(COMMANDS), max_size=40))
def test_any_command_line_is_looked_at(parts):
    """Words, quotes and breaks in any order: each use stands at a place in the text."""
    text = "".join(parts)
    report = scanned({"run.sh": text, "x.yml": text})
    assert not report.unread
    lines = text.split("\n")
    assert all(1 <= use.column <= len(lines[use.line - 1]) for use in report.uses)


@given(st.text(max_size=200), st.sampled_from(["a.py", "a.ipynb", "a.sh", "Procfile", "requirements.txt", "a"]))
def test_any_text_is_looked_at(text, name):
    """No text ends the scan."""
    clean = text.encode("utf-8", "replace").decode()
    report = scanned({name: "# celery\n" + clean})
    assert report.files <= 1
