"""The application of the tests about single limits: each task does one thing and says in its result or the ledger what it saw."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
import threading
import time

from jobrunner import JobRunner, SoftTimeLimitExceeded, current_job
from tests.support.limits_app import LOADS, fork, note

jobs = JobRunner()


@jobs.task
def limited(load: str) -> None:
    """Use up what `load` says, whatever the limits are."""
    LOADS[load]("limited")


@jobs.task
def take(size: int, seconds: float = 0.3) -> int:
    """Hold memory for a while. Returns the process."""
    held = b"x" * size
    time.sleep(seconds)
    del held
    return os.getpid()


@jobs.task
def take_below(size: int, seconds: float = 0.5) -> int:
    """Hold memory in a process of one's own process."""
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; held = b\"x\" * {size}; time.sleep({seconds})'])"
    return subprocess.run([sys.executable, "-c", program], check=False).returncode


@jobs.task
def take_below_and_return(size: int) -> int:
    """Have a process take memory, do not mind its end, and return at once."""
    return subprocess.run([sys.executable, "-c", f"b'x' * {size}"], check=False).returncode


@jobs.task
def reserve(size: int) -> int:
    """Ask for memory without touching it."""
    return len(bytearray(size))


@jobs.task
def burn_cpu(seconds: float) -> int:
    """Use CPU time, half of it in a process of one's own."""
    half = f"import time\nwhile time.process_time() < {seconds / 2}: pass"
    subprocess.run([sys.executable, "-c", half], check=True)
    until = time.process_time() + seconds / 2
    while time.process_time() < until:
        pass
    return os.getpid()


@jobs.task
def where() -> int:
    """The process."""
    print("here", flush=True)
    return os.getpid()


@jobs.task
def address_space() -> int:
    """What the kernel lets this process map."""
    return resource.getrlimit(resource.RLIMIT_AS)[0]


@jobs.task
def threads(count: int) -> int:
    """Have many threads and no processes."""
    done = threading.Event()
    started = [threading.Thread(target=done.wait) for _ in range(count)]
    for thread in started:
        thread.start()
    time.sleep(0.5)
    done.set()
    for thread in started:
        thread.join()
    return count


@jobs.task
def leave_daemon(load: str, *, go_on: bool = False) -> int:
    """Leave a double-forked process behind, and return or wait."""
    def detached(_: str) -> None:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        fork("daemon", LOADS[load])

    os.waitpid(fork("between", detached), 0)
    if go_on:
        time.sleep(20)
    return os.getpid()


@jobs.task
def clean_up(how: str) -> str:
    """Meet the soft limit: `clean` up and let it through, `swallow` it, or stay `unaware`."""
    try:
        time.sleep(20)
    except SoftTimeLimitExceeded as error:
        note(f"caught-{error.seconds:g}", how)
        if how == "swallow":
            return "in time"
        raise
    finally:
        note("cleaned", how)
    return "late"


@jobs.task
async def clean_up_async(how: str) -> str:
    """The same in a coroutine, which is cancelled."""
    try:
        await asyncio.sleep(20)
    except asyncio.CancelledError:
        note(f"caught-{current_job().stop_reason}", how)
        if how == "swallow":
            return "in time"
        raise
    finally:
        note("cleaned", how)
    return "late"


@jobs.task
def finish_late() -> str:
    """Return when SIGTERM comes."""
    told = []
    signal.signal(signal.SIGTERM, lambda *_: told.append(1))
    while not told:
        time.sleep(0.001)
    return "told"


@jobs.task
def raise_late() -> None:
    """Raise when SIGTERM comes."""

    def leave(*_: object) -> None:
        raise SystemExit(3)

    signal.signal(signal.SIGTERM, leave)
    time.sleep(20)


@jobs.task(capture_output=True, log_level=None)
def say(number: int) -> None:
    """Print from Python, from a buffer, from the descriptor and from another process; to both streams."""
    print(f"{number} one")
    sys.stdout.write(f"{number} two\n")
    sys.stdout.flush()
    os.write(1, f"{number} three\n".encode())
    subprocess.run(["echo", f"{number} four"], check=True)
    print(f"{number} error", file=sys.stderr)
    sys.stdout.write(f"{number} without an end")


@jobs.task(capture_output=True)
def say_much(lines: int) -> None:
    """Print numbered lines of ten bytes."""
    for number in range(lines):
        print(f"line {number:04d}")


@jobs.task
def say_aside(lines: int) -> None:
    """The same, not for the log."""
    for number in range(lines):
        print(f"aside {number:03d}")


@jobs.task
def flood() -> None:
    """Print without end and ignore SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    line = b"x" * (1 << 16)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        os.write(1, line)


@jobs.task
def close_streams() -> int:
    """Close what the next job of this process would print to."""
    os.close(1)
    os.close(2)
    return os.getpid()


@jobs.task
def leave_alarm() -> int:
    """Arm what ends the process in a second, and return."""
    signal.alarm(1)
    return os.getpid()


@jobs.task
def close_everything() -> None:
    """Close the ties to the worker as well, and go on."""
    os.closerange(3, 200)
    time.sleep(20)


@jobs.task
def wait_for_kill() -> None:
    """Say who one is, and wait."""
    note("begin", "kill")
    time.sleep(20)
