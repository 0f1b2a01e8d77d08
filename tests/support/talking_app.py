"""The application of the tests of what jobs say and hear: progress, checkpoints, logs, wishes to stop. Misbehaves on request."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import os
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from jobrunner import JobRunner, current_job
from jobrunner.control import JobStopped
from jobrunner.errors import LeaseLost
from tests.support.chaos_app import note

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

if os.environ.get("JOBRUNNER_CHAOS_OWN_LOGGING"):
    logging.basicConfig(level=logging.ERROR, format="own: %(message)s")

jobs = JobRunner()
log = logging.getLogger("shop.orders")
ENOUGH = 50  # attempts


def hold(path: str) -> None:
    """Until a test makes the file."""
    while not Path(path).exists():
        time.sleep(0.01)


@jobs.task
def child(number: int = 0) -> None:
    """What other tasks enqueue."""


@jobs.task(max_attempts=ENOUGH, max_crashes=ENOUGH, backoff="constant", backoff_base=0)
def count(upto: int, gate: str | None = None, end: str | None = None) -> int:
    """Count with a checkpoint at each number, and end its first attempts in some way at the middle; leave when asked to."""
    job = current_job()
    begun = job.last_checkpoint or 0
    note("begin", begun)
    for number in range(begun, upto):
        job.progress(number / upto, f"number {number}")
        job.checkpoint(number)
        if number == upto // 2 and begun == 0:
            match end:
                case "error":
                    raise ValueError("half-way")
                case "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
        if gate is not None and number == upto // 2:
            note("gate", number)
            while not Path(gate).exists():
                job.raise_if_stopping()
                time.sleep(0.01)
    job.checkpoint(upto)
    return upto - begun


@jobs.task
def flood(count: int, gate: str) -> None:
    """Report progress as fast as it goes, then work on silently."""
    for number in range(count):
        current_job().progress(number / count, f"row {number}")
    note("flooded", count)
    hold(gate)


@jobs.task
def talk(gate: str) -> None:
    """Log in several ways, then wait."""
    log.debug("too quiet")
    log.info("sold %d apples", 3)
    log.warning("few left")
    current_job().log.debug("a detail")
    try:
        int("no pears")
    except ValueError:
        log.exception("could not sell pears")
    note("talked", current_job().id)
    hold(gate)


@jobs.task(log_level="WARNING")
def terse() -> None:
    """Keeps warnings only, but for what it says itself."""
    log.info("not kept")
    log.warning("kept")
    current_job().log.info("kept as well")


@jobs.task(log_level=None)
def silent() -> None:
    """Keeps nothing."""
    log.error("not kept")
    current_job().log.error("nor this")


@jobs.task
def interleave(name: str, count: int) -> None:
    """Log beside other jobs, from this thread and from one with a copied context."""

    def beside() -> None:
        for number in range(count):
            log.info("%s beside %d", name, number)
            time.sleep(0)

    thread = threading.Thread(target=contextvars.copy_context().run, args=(beside,))
    thread.start()
    for number in range(count):
        log.info("%s %d", name, number)
        time.sleep(0)
    thread.join()


@jobs.task
async def interleave_async(name: str, count: int) -> None:
    """The same among coroutines."""
    for number in range(count):
        log.info("%s %d", name, number)
        await asyncio.sleep(0)


class Hostile:
    """Cannot be shown."""

    def __str__(self) -> str:
        raise RuntimeError("no")


@jobs.task
def hostile() -> None:
    """Log what cannot be formatted or stored as it is."""
    log.info("%d apples", "many")
    log.info("one %s", "two", "three")  # noqa: PLE1205
    log.info("%s", Hostile())
    log.info("a nul \0 and a surrogate \ud800")
    log.info("x" * 10_000_000)
    logging.getLogger("n" * 5000).info("a long name")
    log.log(10**6, "a level")


@jobs.task
def chatter(count: int, size: int) -> None:
    """More lines than are kept."""
    for number in range(count):
        log.info("%d %s", number, "y" * size)


@jobs.task(max_attempts=1, max_crashes=1)
def last_words(how: str) -> None:
    """Log, then end by a kill at once."""
    for number in range(50):
        log.info("line %d", number)
    current_job().progress(0.7, "about to die")
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


@jobs.task(max_attempts=3)
def alarmed() -> int:
    """A task with an alarm of its own, whose handler raises and logs, again and again, while lines are sent."""

    class Alarm(BaseException):  # logging itself swallows any Exception that is raised in it
        pass

    def ring(*_: Any) -> None:
        log.info("ring")
        raise Alarm

    signal.signal(signal.SIGALRM, ring)
    rung = 0
    for _ in range(200):
        with contextlib.suppress(Alarm):
            signal.setitimer(signal.ITIMER_REAL, 0.0005)  # in here: on a busy machine it may ring at once
            while True:
                log.info("z" * 2000)
        rung += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    return rung


@jobs.task(transactional=True)
def settle(*, session: Session) -> None:
    """Short, and its words come just before it ends itself."""
    session.execute(text("SELECT 1"))
    log.info("settled")
    current_job().progress(1, "done")


@jobs.task
def stoppable(gate: str, stubborn: bool = False) -> None:
    """Wait for a wish to stop, and tell when it comes; a stubborn one swallows what is raised and goes on."""
    note("begin", current_job().id)
    asked = over = False
    while not over:
        try:  # around all of it: what is raised may come between any two instructions
            while not Path(gate).exists():
                if not asked and current_job().should_stop():
                    asked = True
                    note("asked", current_job().id)
                time.sleep(0.01)
            over = True
        except JobStopped as stop:
            note(f"stopped-{stop.reason}", current_job().id)
            if not stubborn:
                raise


@jobs.task
def cooperative(gate: str) -> None:
    """Leave as soon as asked."""
    note("begin", current_job().id)
    while not Path(gate).exists():
        current_job().raise_if_stopping()
        time.sleep(0.01)


@jobs.task
async def coroutine(stubborn: bool = False) -> None:
    """Wait in an await; a stubborn one swallows its cancellation."""
    note("begin", current_job().id)
    for _ in range(1000):
        try:
            await asyncio.sleep(0.1)
        except asyncio.CancelledError:
            note("cancelled", current_job().id)
            if not stubborn:
                raise


@jobs.task(transactional=True)
def query(seconds: float, *, session: Session) -> None:
    """Spend the time in a statement."""
    note("begin", current_job().id)
    session.execute(
        text("INSERT INTO chaos_effects (job_id, lease) VALUES (:id, :lease)"), {"id": current_job().id, "lease": current_job().lease}
    )
    session.execute(text("SELECT pg_sleep(:seconds)"), {"seconds": seconds})


@jobs.task
def superseded(gate: str) -> None:
    """Wait until it is another attempt's job, then try to speak and to enqueue."""
    job = current_job()
    note("begin", job.id)
    hold(gate)
    log.info("a zombie's line")
    job.progress(0.9, "a zombie's progress")
    job.checkpoint("a zombie's checkpoint")
    try:
        child.enqueue(1)
    except LeaseLost:
        note("refused", job.id)
