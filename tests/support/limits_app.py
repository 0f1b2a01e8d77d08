"""The application of the tests about limits: one way to break a limit each, and tasks that show what a limit left standing.

Whoever runs here notes it in the ledger file, one line by one `write`: `event cell pid microseconds cpu_ms`, the
first by the machine's monotonic clock, the second of this process.
Nothing here goes on for ever: loops end after `PATIENCE`, bombs and growth after a number.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import signal
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from jobrunner import JobRunner

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE = 20.0  # seconds after which a load that nobody ended gives up
GROWN = 250_000_000  # bytes; the most that one process here takes
STEP = 5_000_000  # bytes
BOMB = 60  # processes of one bomb
GENERATIONS = 150  # of a process that forks and leaves, again and again
LINE = b"x" * 99 + b"\n"

jobs = JobRunner()


def note(event: str, cell: str) -> None:
    """Append a line to the ledger."""
    descriptor = os.open(os.environ["JOBRUNNER_CHAOS_LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{event} {cell} {os.getpid()} {time.monotonic_ns() // 1000} {round(time.process_time() * 1000)}\n".encode())
    os.close(descriptor)


def _until_late(step: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        step()


# -- what is used up: each goes on until it is ended


def wait(_cell: str) -> None:
    """Time alone."""
    _until_late(lambda: time.sleep(0.5))


def burn(_cell: str) -> None:
    """CPU, in Python."""
    _until_late(lambda: None)


def grow(_cell: str) -> None:
    """Memory, 5 MB every 10 ms."""
    held = []
    for _ in range(GROWN // STEP):
        held.append(bytearray(b"x") * STEP)
        time.sleep(0.01)
    wait(_cell)


def chatter(cell: str) -> None:
    """Output, in lines. Notes when it has written more than 10 kB, which is the limit of all cells about output."""
    for _ in range(101):
        os.write(1, LINE)
    note("over", cell)
    _until_late(lambda: os.write(1, LINE * 100))


def spawn(cell: str) -> None:
    """Processes, one every 5 ms. Notes when there are more than 8, which is the limit of all cells about processes."""
    for number in range(1, BOMB):
        fork(cell, wait)
        if number == 8:
            note("over", cell)
        time.sleep(0.005)
    wait(cell)


LOADS = {"wait": wait, "burn": burn, "grow": grow, "chatter": chatter, "spawn": spawn}


def fork(cell: str, body: Callable[[str], object]) -> int:
    """A process that runs `body`; it leaves without a word, as what it inherited is not its own."""
    pid = os.fork()
    if pid:
        return pid
    try:
        note("pid", cell)
        body(cell)
    finally:
        os._exit(0)


# -- the ways


def in_c(cell: str, load: str) -> None:
    """One call into C that does not return and asks for no signals."""
    match load:
        case "grow":
            held = b"x" * GROWN
            wait(cell)
            del held
        case "chatter":
            note("over", cell)
            ctypes.CDLL(None).system(b"exec timeout 20 yes")
        case _:
            deque(itertools.islice(itertools.repeat(None), 3_000_000_000), maxlen=0)


def with_numpy(cell: str, _load: str) -> None:
    """An array, made in C in one go."""
    import numpy as np

    held = np.ones(GROWN // 8)
    wait(cell)
    del held


def bomb(cell: str, load: str) -> None:
    """Processes that fork two more each, all with the load."""

    def member(generation: int) -> None:
        if generation < (5 if load in {"spawn", "wait"} else 2):
            for _ in range(2):
                fork(cell, lambda _: member(generation + 1))
        LOADS["wait" if load == "spawn" else load](cell)

    member(0)


def daemon(cell: str, load: str) -> None:
    """A double-forked process in a session of its own has the load; the task waits."""

    def detached(_: str) -> None:
        os.setsid()
        fork(cell, LOADS[load])

    os.waitpid(fork(cell, detached), 0)
    wait(cell)


def runaway(cell: str, _load: str) -> None:
    """A process that forks, leaves, and so on: nobody who looks finds the same twice."""

    def flee(generation: int) -> None:
        if generation < GENERATIONS:
            time.sleep(0.01)
            fork(cell, lambda _: flee(generation + 1))

    os.waitpid(fork(cell, lambda _: flee(0)), 0)
    wait(cell)


def stop_itself(cell: str, _load: str) -> None:
    """SIGSTOP to its own process."""
    os.kill(os.getpid(), signal.SIGSTOP)
    wait(cell)


def in_thread(cell: str, load: str) -> None:
    """The load is in a thread, where no interrupt reaches it; the task waits for it."""
    thread = threading.Thread(target=LOADS[load], args=(cell,), daemon=True)
    thread.start()
    thread.join()


def unmoved(cell: str, load: str) -> None:
    """Whatever is raised is swallowed."""

    def stubborn() -> None:
        try:
            LOADS[load](cell)
        except BaseException:  # noqa: BLE001  that is the point
            note("swallowed", cell)

    _until_late(stubborn)


def deaf(cell: str, load: str) -> None:
    """SIGTERM is ignored."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    LOADS[load](cell)


def without_streams(cell: str, load: str) -> None:
    """Both streams are closed first."""
    os.close(1)
    os.close(2)
    LOADS[load](cell)


def without_descriptors(cell: str, _load: str) -> None:
    """Everything is closed, the ties to the worker too."""
    os.closerange(0, 200)
    wait(cell)


WAYS: dict[str, Callable[[str, str], object]] = {
    "loop": lambda cell, load: LOADS[load](cell),
    "in_c": in_c, "numpy": with_numpy, "bomb": bomb, "daemon": daemon, "runaway": runaway, "stopped": stop_itself, "thread": in_thread,
    "unmoved": unmoved, "deaf": deaf, "without_streams": without_streams, "without_descriptors": without_descriptors,
    "abort": lambda _cell, _load: os.abort(),
    "segfault": lambda _cell, _load: ctypes.string_at(0),
    "exit": lambda _cell, _load: os._exit(0),
    "kill": lambda _cell, _load: os.kill(os.getpid(), signal.SIGKILL),
}  # fmt: skip


@jobs.task
def break_limit(cell: str, way: str, load: str = "wait") -> None:
    """One attempt to break a limit."""
    note("begin", cell)
    try:
        WAYS[way](cell, load)
    finally:
        note("end", cell)


@jobs.task
def neighbour(number: int, seconds: float = 0.05) -> int:
    """An innocent job beside the others."""
    time.sleep(seconds)
    return number
