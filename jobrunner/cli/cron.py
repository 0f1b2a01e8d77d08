"""Owns `jobrunner cron`: a worker for crontab, which is bounded, alone in its slot, and silent when all is well.

It must not import the application: the worker's own process does, and only after the slot is taken.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TextIO

import click

from jobrunner import clock
from jobrunner.cli import failures
from jobrunner.cli.databases import Part, parts
from jobrunner.cli.engine import Engine, engine_options, serve_all, worker_options
from jobrunner.cli.failures import Code, CommandError
from jobrunner.cli.lazy import Command
from jobrunner.cli.output import iso
from jobrunner.cli.shared import shared
from jobrunner.cli.target import find_database
from jobrunner.cli.types import DURATION, QUEUES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Unpack

    from jobrunner.cli.engine import Queues
    from jobrunner.worker.registration import Departure

PATIENCE = timedelta(seconds=10)  # for a database that is about to answer: a restart takes a few; the next start is a minute away
BUSY, LOST = "busy", "lost"  # why it left: the slot was another's, at the start or later


@click.command(cls=Command)
@click.argument("names", metavar="[QUEUES]", type=QUEUES, required=False)
@click.option("--for", "duration", type=DURATION, metavar="DURATION", help="Stay and listen for so long, counted from the start: 55s.")
@click.option("--slots", "pool_slots", type=click.IntRange(1, 1000), default=1, show_default=True, help="Runs of the pool at once.")
@click.option("--pool", metavar="NAME", help="Runs of one pool exclude each other, on all hosts.  [default: the queues' names]")
@click.option("--summary", is_flag=True, help="Print one JSON line about the run.")
@click.option("--strict", is_flag=True, help="Leave with 5 when every slot is taken.")
@click.option("--fail-on-job-failure", is_flag=True, help="Leave with 1 when a job ended as failed or quarantined.")
@engine_options
def cron(
    names: Queues | None,
    *,
    duration: timedelta | None,
    pool_slots: int,
    pool: str | None,
    summary: bool,
    strict: bool,
    fail_on_job_failure: bool,
    **engine: Unpack[Engine],
) -> None:
    """Run what is due in QUEUES and leave: for crontab. Default: the queue "default".

    With several databases one run is started for each that has some of QUEUES, by default for all of them.

    With --for it stays, takes no more jobs after that time, gives running ones --grace and then gives them back without using up an
    attempt. A start that finds its slot taken leaves at once, with 0. Prints nothing when all is well, one line for each trouble;
    what the app and its jobs print is not passed on, but with -v.
    """
    began = clock.monotonic()
    if duration is not None and duration <= timedelta(0):
        raise CommandError(Code.USAGE, "--for must be above 0 seconds", hint="try:   --for 55s; or leave it out to end when nothing is due")
    from jobrunner.settings import DEFAULT_QUEUE
    from jobrunner.worker.log import configure

    values = shared()
    level = "DEBUG" if values.verbose else "WARNING"

    def serve(part: Part) -> int:
        queues = part.queues or ((DEFAULT_QUEUE, None),)
        own_pool = pool if pool is not None else ",".join(sorted(name for name, _ in queues))
        configure(engine["log_format"], level, only_trouble=not values.verbose, database=part.name)
        try:
            from jobrunner.worker import run as run_worker

            options = worker_options(
                part.dsn, queues, engine, kind="cron", drain=duration is None, began=began,
                max_seconds=duration and duration.total_seconds(), pool=own_pool, pool_slots=pool_slots, patience=PATIENCE,
                fail_on_job_failure=fail_on_job_failure,
            )  # fmt: skip
            left = run_worker(options)
        except Exception as error:  # noqa: BLE001  whatever it is, cron gets one line and the exit code
            return _trouble(error, own_pool)
        code = Code.BUSY if strict and left.reason in {BUSY, LOST} else left.exit_code
        if summary:
            named = {"database": part.name} if part.name is not None else {}
            click.echo(json.dumps(named | _summary(left, code, own_pool, clock.monotonic() - began)))
        return code

    with _only_ours(sys.stdout, sys.stderr) if not values.verbose else contextlib.nullcontext():
        values.quiet = values.quiet or not values.verbose  # nothing is said on the way
        configure(engine["log_format"], level, only_trouble=not values.verbose)
        try:
            found = parts(names) or [Part(None, find_database(of_app=True, warns=values.verbose), names or ())]
            code = serve_all(found, serve, engine, level=level, restarts=False)
        except Exception as error:  # noqa: BLE001  before any worker: there is no database, or no way to find it
            code = _trouble(error, pool if pool is not None else ",".join(sorted(name for name, _ in names or ((DEFAULT_QUEUE, None),))))
    click.get_current_context().exit(code)


def _trouble(error: Exception, pool: str) -> int:
    """The one line about an error, and its exit code."""
    from jobrunner.worker.log import logger

    failure = failures.describe(error)
    hint = "; ".join(" ".join(line.split()) for line in failure.lines).replace(" · ", ", ")
    facts = {"pool": pool, "exit": int(failure.code), **({"hint": hint} if hint else {})}
    logger.error(" ".join(failure.message.split()), extra=facts, exc_info=error if shared().verbose else None)
    return int(failure.code)


def _summary(left: Departure, code: int, pool: str, seconds: float) -> dict[str, Any]:
    counts, remains = left.counts, left.remains
    return {
        "ran": counts.succeeded + counts.failed + counts.crashed,
        "ok": counts.succeeded,
        "failed": counts.failed,
        "crashed": counts.crashed,
        "jobs_failed": left.jobs_failed,
        "left": remains.left if remains else None,
        "next_due": iso(remains.next_due_at) if remains and remains.next_due_at else None,
        "seconds": round(seconds, 1),
        "reason": left.reason,
        "exit": int(code),
        "pool": pool,
        "slot": left.slot,
        "worker_id": left.worker_id or None,
    }


@contextlib.contextmanager
def _only_ours(*streams: TextIO) -> Iterator[None]:
    """What this process itself prints goes where it always went; what the app, its jobs and their programs print goes nowhere.

    They write to the file descriptors, which they inherit; cron would mail it, every minute.
    """
    kept: list[tuple[str, TextIO, int, TextIO]] = []
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        for name, stream in zip(("stdout", "stderr"), streams, strict=True):
            with contextlib.suppress(OSError, ValueError):  # no such stream: closed, or a test's
                stream.flush()
                number = stream.fileno()
                ours = os.dup(number)  # not inherited by what is started
                shown: TextIO = open(ours, "w", encoding=stream.encoding, errors="backslashreplace", buffering=1)  # noqa: SIM115, PTH123  for life
                os.dup2(null, number)
                kept.append((name, stream, number, shown))
                setattr(sys, name, shown)
        yield
    finally:
        for name, stream, number, shown in kept:
            with contextlib.suppress(OSError, ValueError):
                shown.flush()
            os.dup2(shown.fileno(), number)
            setattr(sys, name, stream)
        os.close(null)
