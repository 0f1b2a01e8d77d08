"""Lines from a child stay lines, whatever signal handlers of a task do in the middle of one."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading

import pytest

from jobrunner.worker.voices import Outbox


class Alarm(Exception):
    """Raised by a handler of task code."""


@pytest.fixture
def ends():
    here, there = socket.socketpair()
    with here, there:
        yield here, there


def received(there):
    """Every line until the end that is one."""
    found = []
    while data := there.recv(1 << 16):
        found.append(data)
    lines = []
    for line in b"".join(found).split(b"\n"):
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return lines


def interrupted(outbox, there, handler):
    """Send more than fits, and have `handler` run when a part of it has arrived."""

    def interrupt():
        there.recv(1, socket.MSG_PEEK)
        os.kill(os.getpid(), signal.SIGALRM)

    before = signal.signal(signal.SIGALRM, handler)
    threading.Thread(target=interrupt).start()
    try:
        outbox.send(["log", "x" * 5_000_000])
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_line_after_one_that_was_cut_short_is_whole(ends):
    """An exception in the middle of a line costs that line only."""
    here, there = ends
    outbox = Outbox(here)
    found = []
    reader = threading.Thread(target=lambda: found.extend(received(there)))

    def handler(*_):
        raise Alarm

    with pytest.raises(Alarm):
        interrupted(outbox, there, handler)
    reader.start()
    outbox.send([7, 1, "ok"])
    here.close()
    reader.join()
    assert found == [[7, 1, "ok"]]


def test_a_handler_that_logs_waits_for_the_line_that_is_on_its_way(ends):
    """What a signal handler sends comes after the line that it has interrupted, and both are whole."""
    here, there = ends
    outbox = Outbox(here)
    found = []
    reader = threading.Thread(target=lambda: found.extend(received(there)))

    def handler(*_):
        outbox.send(["log", "from the handler"])
        reader.start()

    interrupted(outbox, there, handler)
    here.close()
    reader.join()
    assert [fields[-1][:16] for fields in found] == ["x" * 16, "from the handler"]
