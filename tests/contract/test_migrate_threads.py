"""The page about threads: its code before runs as it did, its code after does the same as a job."""

from __future__ import annotations

from pathlib import Path

from tests.support.cli import Program
from tests.support.documents import blocks
from tests.support.workers import rows

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "migrate" / "threads.md").read_text()
ASK = "import {name}; print({name}.app.test_client().post('/users/ann/welcome').status_code)"
LOOK = "import threading; [thread.join() for thread in threading.enumerate() if thread is not threading.main_thread()]; print({name}.outbox)"


def test_before_and_after(tmp_path, dsn):
    """The same request, before in a thread of this process, after in a worker, to the same effect."""
    before, after = blocks(PAGE, "python")[:2]
    (tmp_path / "before.py").write_text(before)
    (tmp_path / "after.py").write_text(after.replace("outbox.append((recipient, text))", "return recipient, text"))
    said = Program(tmp_path, dsn, ("-c", f"{ASK}; {LOOK}".format(name="before")))()
    assert said.lines() == ["202", "[('ann', 'Welcome!')]"]
    assert Program(tmp_path, dsn, ("-c", ASK.format(name="after")))().lines() == ["202"]
    Program(tmp_path, dsn)("--app", "after", "work", "--drain")
    assert rows(dsn, "SELECT state, result FROM jobrunner.v_jobs") == [("succeeded", {"$tuple": ["ann", "Welcome!"]})]
