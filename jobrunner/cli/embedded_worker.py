"""Owns the process that a web server starts beside itself: an ordinary worker that leaves in order when the server is gone.

It must not be used for anything else; `jobrunner.hosting` starts it. `jobrunner work` is for people.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from typing import TYPE_CHECKING

import click

from jobrunner.cli.databases import Part, parts
from jobrunner.cli.engine import Engine, serve_all, worker_options
from jobrunner.cli.failures import report
from jobrunner.cli.shared import shared
from jobrunner.cli.target import find_database
from jobrunner.cli.types import DURATION, QUEUES
from jobrunner.worker import roots

if TYPE_CHECKING:
    from datetime import timedelta

    from jobrunner.cli.engine import Queues

LOOK = 5.0  # seconds: where a copy of the other end of the tie has strayed, the parent's number still tells that it is gone
POLL, LEASE = "1s", "30s"  # as for `jobrunner work`


@click.command()
@click.option("--parent", type=int, required=True)
@click.option("--tie", type=int, required=True)
@click.option("--app", "spec", required=True)
@click.option("--root")
@click.option("--queues", type=QUEUES, required=True)
@click.option("--threads", type=int)
@click.option("--processes", type=int)
@click.option("--grace", type=DURATION, required=True)
@click.option("--level", required=True)
def serve(
    parent: int,
    tie: int,
    spec: str,
    queues: Queues,
    *,
    root: str | None,
    threads: int | None,
    processes: int | None,
    grace: timedelta,
    level: str,
) -> None:
    """Work until the process `parent` is gone or closes its end of the pipe `tie`."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # a server started by nohup has it ignored, in every process that follows
    values = shared()
    values.app, values.quiet = spec, True
    if root is not None:
        roots.add(root)
    try:
        found = parts(queues) or [Part(None, find_database(of_app=True, warns=False), queues)]
        # A worker takes the first signal for what it is and SIGHUP never for a second one; the parent of several does not know it.
        _stay_with(parent, tie, signal.SIGHUP if len(found) == 1 else signal.SIGTERM)
        code = _work(found, threads=threads, processes=processes, grace=grace, level=level)
    except BaseException as error:  # noqa: BLE001  what a worker raises, ends as text and code
        code = report(error, values)
    sys.stdout.flush()
    sys.exit(code)


def _work(found: list[Part], *, threads: int | None, processes: int | None, grace: timedelta, level: str) -> int:
    from jobrunner.worker import run
    from jobrunner.worker.log import configure

    engine = Engine(
        slots=processes, threads=threads, async_slots=None, max_jobs_per_child=None, max_memory_per_child=None, name=None, grace=grace,
        lease=DURATION.convert(LEASE, None, None), poll=DURATION.convert(POLL, None, None), no_listen=False, log_format="logfmt",
    )  # fmt: skip

    def serve_part(part: Part) -> int:
        configure("logfmt", level, database=part.name)
        return run(worker_options(part.dsn, part.queues, engine, kind="embedded")).exit_code

    return serve_all(found, serve_part, engine, level=level, restarts=True)


def _stay_with(parent: int, tie: int, number: signal.Signals) -> None:
    """Send this process a signal when its parent is gone, or has closed its end of the pipe."""
    if number == signal.SIGHUP:
        from jobrunner.worker.limits import die_with_parent

        die_with_parent(parent, number)  # the kernel's word, where it has one; what comes twice counts once
    threading.Thread(target=_watch, args=(parent, tie, number), name="tie", daemon=True).start()


def _watch(parent: int, tie: int, number: signal.Signals) -> None:
    while os.getppid() == parent and not select.select([tie], [], [], LOOK)[0]:
        pass
    os.kill(os.getpid(), number)


if __name__ == "__main__":
    serve()
