"""The guide from a message queue shows what changes between two small programs, and the second of them does what it says."""

from __future__ import annotations

import difflib
import runpy
from pathlib import Path

import pytest
import sqlalchemy as sa

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "message_queue"
GUIDE = (ROOT / "docs" / "migrate" / "message-queue.md").read_text()


@pytest.fixture
def shop(dsn, monkeypatch):
    """The program after the move, on an empty database."""
    monkeypatch.setenv("DATABASE_URL", dsn.replace("postgresql://", "postgresql+psycopg://", 1))
    found = runpy.run_path(str(EXAMPLE / "after.py"))
    with found["app"].app_context():
        found["db"].create_all()
        yield found
        found["db"].session.remove()
        found["db"].drop_all()
        found["db"].engine.dispose()
    found["jobs"].close()


def test_the_guide_shows_the_difference_of_the_two_programs():
    """The diff on the page is that of the files."""
    before, after = ((EXAMPLE / name).read_text().splitlines() for name in ("before.py", "after.py"))
    lines = [line if line.strip() else line.rstrip() for line in list(difflib.unified_diff(before, after, lineterm="", n=2))[2:]]
    assert "```diff\n" + "\n".join(lines) + "\n```" in GUIDE


def test_the_first_program_is_one():
    """What is replaced is Python, though no broker is here to run it."""
    compile((EXAMPLE / "before.py").read_text(), "before.py", "exec")


def test_an_order_is_mailed_once_and_what_cannot_be_is_dead(shop):
    """Orders and their messages are there together; a good one is mailed, one that cannot be is given back once and then dead."""
    client = shop["app"].test_client()
    good, bad = (client.post(f"/orders/{email}").json["order"] for email in ("ana@example.org", "nonsense"))
    assert shop["emails"].size() == 2
    shop["work"](wait=5, rounds=3)
    assert shop["outbox"] == ["ana@example.org"]
    (letter,) = shop["emails"].dead.list()
    assert (letter.body, letter.reason) == ({"order": bad}, "builtins.ValueError: that is no address")
    assert good != bad


def test_an_order_that_is_not_committed_has_no_message(shop):
    """A rolled-back order leaves nothing in the queue."""
    session = shop["db"].session
    session.add(shop["Order"](email="ana@example.org"))
    session.flush()
    shop["emails"].put({"order": 1})
    session.rollback()
    assert shop["emails"].size() == 0
    assert session.scalar(sa.select(sa.func.count()).select_from(shop["Order"])) == 0
