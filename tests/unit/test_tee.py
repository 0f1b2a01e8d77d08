"""What jobs print on its way to the worker's own stdout while nobody reads it: nothing is lost below the bound, and beyond it a line says so."""

from __future__ import annotations

import re
import subprocess
import sys

from jobrunner.worker.outputs import MAX_WAITING

HEAD = """
import os, sys
from jobrunner.worker import outputs
from jobrunner.worker.outputs import MAX_WAITING, Tee
outputs._LAST_WORDS = 60.0  # a busy machine may take its time
tee = Tee()
"""
TAIL = """
sys.stdin.readline()
tee.write(1, b"the end\\n")
tee.close()
"""


def printed(middle: str, enough: int) -> bytes:
    """Stdout of a process that writes without a reader until it says so on stderr; the end it writes when `enough` of it was read."""
    command = [sys.executable, "-c", HEAD + middle + TAIL]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stderr.readline() == b"all written\n"
        text = process.stdout.read(enough)
        process.stdin.write(b"\n")
        process.stdin.flush()
        text += process.stdout.read()
        assert process.wait() == 0
    return text


def test_many_small_pieces_wait_for_a_slow_reader():
    """A job that prints line by line loses nothing: room is counted in bytes, not in pieces."""
    text = printed('for number in range(50_000):\n    tee.write(1, b"%05d\\n" % number)\nos.write(2, b"all written\\n")\n', 200_000)
    assert text == b"".join(b"%05d\n" % number for number in range(50_000)) + b"the end\n"


def test_what_is_left_out_is_said_where_it_is_missing():
    """More than may wait: the rest is left out, and a line in its place says how much, to the byte."""
    text = printed('for number in range(2 * MAX_WAITING // 1024):\n    tee.write(1, b"x" * 1024)\nos.write(2, b"all written\\n")\n', MAX_WAITING * 3 // 4)
    found = re.fullmatch(rb"(x+)\n\[jobrunner: ([\d,]+) bytes of [^\n]+\]\nthe end\n", text)
    assert found, text[-300:]
    assert len(found[1]) + int(found[2].replace(b",", b"")) == 2 * MAX_WAITING
    assert MAX_WAITING <= len(found[1]) <= MAX_WAITING + 200_000  # what waited, and what the pipe held


def test_the_gap_is_said_at_the_end_too():
    """Nothing came after it: the line stands at the end."""
    middle = 'for number in range(2 * MAX_WAITING // 1024):\n    tee.write(2, b"x" * 1024)\nos.write(1, b"all written\\n")\ntee.close()\n'
    with subprocess.Popen([sys.executable, "-c", HEAD + middle], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"all written\n"
        text = process.stderr.read()
        assert process.wait() == 0
    found = re.fullmatch(rb"(x+)\n\[jobrunner: ([\d,]+) bytes of [^\n]+\]\n", text)
    assert found, text[-300:]
    assert len(found[1]) + int(found[2].replace(b",", b"")) == 2 * MAX_WAITING
