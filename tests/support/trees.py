"""Owns real process trees for tests: forked, talking back through a pipe, and gone when the test is over."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import threading
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobrunner.worker import limits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Inside:
    """What the code of a forked process gets: say something, hear something, stay."""

    def __init__(self, mouth: int, ear: int, lifeline: int) -> None:
        self._mouth, self._ear, self._lifeline = mouth, ear, lifeline

    def say(self, value: Any) -> None:
        """Tell the test; from any process of the tree."""
        os.write(self._mouth, json.dumps(value).encode() + b"\n")

    def wait_for_word(self) -> None:
        """Wait until the test says go on. Ends the process when the test is over."""
        if not os.read(self._ear, 1):
            os._exit(0)

    def stay(self) -> None:
        """Do nothing until the test is over."""
        os.read(self._lifeline, 1)
        os._exit(0)

    def spin(self) -> None:
        """Use CPU time until the test is over."""
        while not select.select([self._lifeline], [], [], 0)[0]:
            pass
        os._exit(0)

    def fork(self, body: Callable[[], object]) -> int:
        """Fork a process that runs `body` and then stays. Returns its pid."""
        pid = os.fork()
        if pid == 0:
            _run(body)
            self.stay()
        return pid

    def daemon(self, body: Callable[[], object] = lambda: None) -> None:
        """Fork twice, with a session of its own, as daemons do; it says its pid, runs `body` and stays."""

        def introduced() -> None:
            self.say(os.getpid())
            body()

        pid = os.fork()
        if pid == 0:
            os.setsid()
            self.fork(introduced)
            os._exit(0)
        os.waitpid(pid, 0)

    def in_thread(self, body: Callable[[], object]) -> None:
        """Run `body` in a thread, which then stays."""

        def run() -> None:
            _run(body)
            self.stay()

        threading.Thread(target=run, daemon=True).start()


class Outside:
    """What the test has of a forked process."""

    def __init__(self, pid: int, ear: int, mouth: int) -> None:
        self.pid = pid
        self._ear = os.fdopen(ear, "rb", buffering=0)
        self._mouth = mouth

    def hear(self) -> Any:
        """Wait for the next thing that a process of the tree says."""
        line = self._ear.readline()
        assert line, "the process is gone and has said nothing"
        return json.loads(line)

    def has_spoken(self) -> bool:
        """Whether `hear` would return at once."""
        return bool(select.select([self._ear], [], [], 0)[0])

    def go_on(self) -> None:
        """Let one `wait_for_word` return."""
        os.write(self._mouth, b"x")

    def wait(self) -> int:
        """Wait for the end of the root. Returns its exit code, negative for a signal."""
        _, status = os.waitpid(self.pid, 0)
        self.pid = 0
        return os.waitstatus_to_exitcode(status)

    def close(self) -> None:
        """End the root; whoever stays of its tree sees the pipes close."""
        self._ear.close()
        os.close(self._mouth)
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()


@contextlib.contextmanager
def tree(body: Callable[[Inside], object]) -> Iterator[Outside]:
    """Fork a process that runs `body` and then stays: a subreaper with a session of its own, as the worker's children are."""
    here, mouth = os.pipe()
    ear, there = os.pipe()
    lifeline, end = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        for descriptor in (here, there, end):
            os.close(descriptor)
        limits.die_with_parent(parent)
        os.setsid()
        limits.adopt_orphans()
        inside = Inside(mouth, ear, lifeline)
        _run(lambda: body(inside))
        inside.stay()
    for descriptor in (mouth, ear, lifeline):
        os.close(descriptor)
    outside = Outside(pid, here, there)
    try:
        yield outside
    finally:
        outside.close()
        os.close(end)


def _run(body: Callable[[], object]) -> None:
    try:
        body()
    except BaseException:  # noqa: BLE001  whatever it is: a forked process must not go on as a second test run
        traceback.print_exc()
        os._exit(os.EX_SOFTWARE)


def state(pid: int) -> str:
    """The state of a process as in `ps`; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2][:1].decode()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def runs(pid: int) -> bool:
    """Whether a process is there and not dead; one that is stopped counts."""
    return state(pid) not in {"", "Z", "X"}
