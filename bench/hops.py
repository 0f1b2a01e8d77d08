"""Where the time from enqueue to the task's first line goes, hop by hop, on an idle queue: medians of when each hop is reached.

One application, one worker as it comes, jobs at even intervals; milliseconds since the call of enqueue. Each note costs some microseconds.
`looked` is a round trip to the server, `claimed` one with a commit; so is `enqueued`.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import harness

from jobrunner import JobRunner
from jobrunner.wakeups import Waker

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = Path(__file__).parent
WARM_UP = 10  # jobs that do not count
PAUSE = 0.05  # seconds between jobs
PATIENCE = 60.0  # seconds until the worker must be there
ORDER = ("enqueued", "notify", "notified", "heard", "look", "looked", "claim", "claimed", "taken in", "handed out", "began")
ORDER += ("finish", "finished")
APP = """
import os, time
from jobrunner import JobRunner
jobs = JobRunner()
file = os.open(os.environ['BENCH_HOPS'], os.O_CREAT | os.O_WRONLY | os.O_APPEND)

@jobs.task
def stamp(number):
    os.write(file, f'{time.monotonic():.6f} began\\n'.encode())
"""


def noted(send: Callable[..., Any], hop: Callable[[str], None]) -> Callable[..., Any]:
    """The sending of a hint, with notes around it."""

    def call(*args: Any) -> Any:
        hop("notify")
        sent = send(*args)
        hop("notified")
        return sent

    return call


def run(dsn: str, directory: Path, count: int) -> list[dict[str, float]]:
    """Milliseconds from the call of enqueue to each hop, one dict a job."""
    notes = directory / "hops"
    (directory / "hops_app.py").write_text(APP)
    os.environ["BENCH_HOPS"], os.environ["JOBRUNNER_DSN"] = str(notes), dsn
    file = os.open(notes, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_TRUNC)

    def hop(name: str) -> None:
        os.write(file, f"{time.monotonic():.6f} {name}\n".encode())

    jobs = JobRunner()
    stamp = jobs.task(name="stamp")(lambda number: None)  # noqa: ARG005
    command = [sys.executable, str(HERE / "hops_worker.py"), "work", "--dsn", dsn, "--app", str(directory / "hops_app.py")]
    send = Waker._send  # noqa: SLF001
    Waker._send = noted(send, hop)  # type: ignore[method-assign]  # noqa: SLF001
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as worker:
        try:
            stamp.enqueue(0)
            end = time.monotonic() + PATIENCE
            while b"finished" not in notes.read_bytes():
                if time.monotonic() > end or worker.poll() is not None:
                    raise SystemExit("error: the worker did not run the first job")
                time.sleep(PAUSE)
            for number in range(WARM_UP + count):
                time.sleep(PAUSE)
                hop("enqueue")
                stamp.enqueue(number)
                hop("enqueued")
            time.sleep(1)
        finally:
            Waker._send = send  # type: ignore[method-assign]  # noqa: SLF001
            worker.terminate()
    os.close(file)
    return by_job(notes)[WARM_UP:]


def by_job(notes: Path) -> list[dict[str, float]]:
    """The first note of each name behind each call of enqueue."""
    found: list[dict[str, float]] = []
    began = 0.0
    for at, name in sorted((float(line.split(" ", 1)[0]), line.split(" ", 1)[1]) for line in notes.read_text().splitlines()):
        if name == "enqueue":
            began = at
            found.append({})
        elif found:
            found[-1].setdefault(name, (at - began) * 1000)
    return found


def main() -> None:
    """Measure and print."""
    options = harness.arguments(__doc__ or "", jobs=200)
    figures: dict[str, list[float]] = {}
    with harness.database() as dsn, tempfile.TemporaryDirectory() as directory:
        for number in range(options.rounds):
            reached = run(dsn, Path(directory), options.jobs)
            for name in ORDER:
                figures.setdefault(name, []).append(statistics.median(one[name] for one in reached if name in one))
            print(f"round {number + 1}: began after {figures['began'][-1]:.2f} ms", file=sys.stderr)
    harness.report("hops", "ms since the call of enqueue", figures, {}, jobs=options.jobs)


if __name__ == "__main__":
    main()
