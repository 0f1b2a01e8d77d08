"""Owns one command that runs a worker for each of several databases: starting, signals, restarts, one exit code.

It must not talk to a database, nor import the application: each worker is a process of its own that does, and that a database which
is away cannot keep from its work.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobrunner import clock
from jobrunner.cli.failures import Code, report
from jobrunner.cli.shared import shared
from jobrunner.routing import HOME
from jobrunner.worker.limits import die_with_parent
from jobrunner.worker.log import logger

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from jobrunner.cli.databases import Part

PAUSE = 1.0  # seconds before a worker that ended with an error is started again; doubled each time
LONGEST_PAUSE = 30.0  # seconds: a database that is back is served again within half a minute
SETTLED = 60.0  # seconds: one that lived so long begins with the short pause again
_STOPPING = (signal.SIGTERM, signal.SIGINT)


@dataclass(slots=True)
class _Worker:
    """One database's worker, through its restarts."""

    part: Part
    pid: int | None = None
    started: float = 0.0
    code: int = 0
    pause: float = PAUSE
    again_at: float | None = None


def run_all(parts: list[Part], serve: Callable[[Part], int], *, restarts: bool) -> int:
    """Run a worker for each part until all have ended. Returns the highest of their exit codes.

    SIGTERM and SIGINT go on to every worker. A worker that ends with an error does not stop the others. With `restarts` it is started
    again, each time with a line in the log, for as long as another one runs: what is wrong with all of them ends the command, as it
    ends a single worker.

    Args:
        parts: what to serve.
        serve: runs in a process of its own, and gives its exit code.
        restarts: for workers that are to stay.
    """
    fleet = _Fleet(parts, serve, restarts=restarts)
    before = {number: signal.getsignal(number) for number in (*_STOPPING, signal.SIGCHLD)}
    try:
        return fleet.run()
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in before.items():
            signal.signal(number, handler)


class _Fleet:
    def __init__(self, parts: list[Part], serve: Callable[[Part], int], *, restarts: bool) -> None:
        self._workers = [_Worker(part) for part in parts]
        self._serve = serve
        self._restarts = restarts
        self._told: list[int] = []
        self._stopping = False
        self._wake_read, self._wake_write = socket.socketpair()

    def run(self) -> int:
        self._wake_write.setblocking(False)  # noqa: FBT003  the standard library's signature
        signal.set_wakeup_fd(self._wake_write.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in _STOPPING:
            signal.signal(number, self._on_signal)
        for worker in self._workers:
            self._start(worker)
        while any(worker.pid is not None for worker in self._workers):
            if select.select([self._wake_read], [], [], self._patience())[0]:
                self._wake_read.recv(4096)
            self._forward()
            self._reap()
            self._start_again()
        return max(worker.code for worker in self._workers)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._told.append(number)

    def _forward(self) -> None:
        while self._told:
            number = self._told.pop(0)
            self._stopping = True
            for worker in self._workers:
                worker.again_at = None
                if worker.pid is not None:
                    os.kill(worker.pid, number)  # ours and not reaped, so nobody else has the number

    def _reap(self) -> None:
        for worker in self._workers:
            if worker.pid is None:
                continue
            pid, status = os.waitpid(worker.pid, os.WNOHANG)
            if pid:
                worker.pid = None
                code = os.waitstatus_to_exitcode(status)
                # One that was being started again when the signal came has nothing new to say: its last end counts.
                if not (self._stopping and worker.code and -code in _STOPPING):
                    worker.code = code if code >= 0 else 128 - code
                self._ended(worker)

    def _ended(self, worker: _Worker) -> None:
        if worker.code == 0 or self._stopping:
            return
        facts = {"database": worker.part.name, "exit": worker.code}
        if not self._restarts:
            logger.error("a worker ended with an error; the others go on", extra=facts)
            return
        now = clock.monotonic()
        if now - worker.started >= SETTLED:
            worker.pause = PAUSE
        worker.again_at = now + worker.pause
        logger.error("a worker ended with an error: starting it again", extra={**facts, "in_s": worker.pause})
        worker.pause = min(2 * worker.pause, LONGEST_PAUSE)

    def _patience(self) -> float | None:
        due = [worker.again_at for worker in self._workers if worker.again_at is not None]
        return max(0.0, min(due) - clock.monotonic()) if due else None

    def _start_again(self) -> None:
        if not any(worker.pid is not None for worker in self._workers):
            return  # nobody is left: the end of the last one is the end of the command
        for worker in self._workers:
            if worker.again_at is not None and clock.monotonic() >= worker.again_at:
                worker.again_at = None
                self._start(worker)

    def _start(self, worker: _Worker) -> None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()  # else the child prints it once more
        parent = os.getpid()
        # A signal that comes before the child has handlers of its own waits until then, and is not taken for one to this process.
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
        worker.pid = os.fork()
        if worker.pid == 0:
            self._become(worker.part, parent)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)
        worker.started = clock.monotonic()

    def _become(self, part: Part, parent: int) -> None:
        """The child's part: never returns."""
        code = int(Code.BUG)
        try:
            os.setsid()  # Ctrl-C in the terminal reaches the parent only, which passes it on once
            signal.set_wakeup_fd(-1)
            for number in (*_STOPPING, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)
            die_with_parent(parent, signal.SIGTERM)
            self._wake_read.close()
            self._wake_write.close()
            os.environ[HOME] = str(part.name)
            code = self._serve(part)
        except BaseException as error:  # noqa: BLE001  nothing of it may go on in a second copy of the parent
            code = report(error, shared())
        finally:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError, ValueError):
                    stream.flush()
            os._exit(code)
