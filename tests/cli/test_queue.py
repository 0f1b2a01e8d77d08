"""`jobrunner queue`: messages put, taken, looked at and redriven from the command line, without the application."""

from __future__ import annotations

import json

import pytest

from tests.support.cli import Program


@pytest.fixture
def program(reader):
    """Where the application cannot be imported."""
    return reader


def test_put_peek_get(program) -> None:
    """What is put waits, is shown, and is gone once it was printed."""
    first = int(program("queue", "put", "emails", '{"to": "ana"}', "--key", "k", "--ttl", "1h").out)
    assert program("queue", "put", "emails", "--stdin", stdin='"b"\n\n[1]\n', ok=True).out.split()
    shown = program("queue", "peek", "emails", "--json").json
    assert shown["waiting"] == 3
    assert shown["items"][0]["id"] == first
    assert "ana" in program("queue", "peek", "emails").out
    lines = [json.loads(line) for line in program("queue", "get", "emails", "--count", "9").lines()]
    assert [line["body"] for line in lines if line["id"] != first] == ["b", [1]]
    assert len(lines) == 3
    empty = program("queue", "get", "emails", ok=None)
    assert (empty.code, "no message" in empty.err) == (6, True)


def test_hold_and_settle(program) -> None:
    """What is held by one command is acknowledged or given back by another, with its receipt."""
    program("queue", "put", "emails", "--stdin", stdin="1\n2\n3\n")
    items = program("queue", "get", "emails", "--count", "3", "--hold", "60s", "--json").json["items"]
    receipts = [item["receipt"] for item in items]
    program("queue", "ack", "emails", receipts[0])
    program("queue", "nack", "emails", receipts[1], "--in", "0s")
    program("queue", "nack", "emails", receipts[2], "--dead", "cannot be parsed")
    late = program("queue", "ack", "emails", receipts[0], ok=None)
    assert (late.code, "settled already" in late.err) == (7, True)
    assert program("queue", "peek", "emails", "--json").json["waiting"] == 1
    (letter,) = program("queue", "dead", "emails", "--json").json["items"]
    assert (letter["body"], letter["reason"]) == (3, "cannot be parsed")
    assert "cannot be parsed" in program("queue", "dead", "emails").out
    assert program("queue", "redrive", "emails", "--all", "--json").json == {"redriven": 1}
    assert program("queue", "purge", "emails", ok=None).code == 7
    assert program("queue", "purge", "emails", "--yes", "--json").json == {"purged": 2}


@pytest.mark.parametrize(
    "arguments",
    [
        ("put", "emails"), ("put", "emails", "1", "--stdin"), ("put", "emails", "{"), ("get", "emails", "--wait", "1s", "--hold", "5s"),
        ("redrive", "emails"), ("redrive", "emails", "1", "--all"), ("ack", "emails", "nonsense"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_a_usage_error(program, arguments) -> None:
    """A command line that cannot be meant is refused with 2 before anything is done."""
    assert program("queue", *arguments, ok=None).code == 2


def test_enqueue_has_a_key_and_a_ttl(tmp_path, dsn, connection) -> None:
    """`enqueue --ordering-key --ttl` writes both."""
    (tmp_path / "app.py").write_text("from jobrunner import JobRunner\njobs = JobRunner()\n\n\n@jobs.task\ndef work():\n    pass\n")
    Program(tmp_path, dsn)("enqueue", "work", "--ordering-key", "k", "--ttl", "1h")
    row = connection.execute("SELECT ordering_key, expires_at - created_at = interval '1 hour' FROM jobrunner.jobs").fetchone()
    assert row == ("k", True)
