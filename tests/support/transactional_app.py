"""The application of the chaos tests of transactional jobs: effects in the job's transaction, and traps at chosen points of it.

The traps are set by wrapping functions of the worker here, in the children of this application; the product knows nothing of them.
`JOBRUNNER_CHAOS_MUTANT` takes protections away, to show that the others hold, or that the checker notices: `lenient` leaves the sessions
of earlier attempts alone, so that the fence is all there is; `unfenced` ends a job by its id alone as well; `unchecked` commits although
the job was not there to be ended.
"""

from __future__ import annotations

import os
import signal
import time
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
from sqlalchemy import text

from jobrunner import JobRunner, current_job, statements
from jobrunner.worker import transactions
from tests.support.chaos_app import note

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

jobs = JobRunner()

EFFECT = text("INSERT INTO chaos_effects (job_id, lease) VALUES (:id, :lease)")
CHILD = text("INSERT INTO chaos_children (parent_id, lease, child_id) VALUES (:id, :lease, :child)")
MUTANT = os.environ.get("JOBRUNNER_CHAOS_MUTANT")
FENCES = (" AND j.lease = f.lease", " AND j.lease = old.lease")
ENOUGH = 1000  # attempts and crashes: chaos must not use them up

trap: ContextVar[tuple[str, str] | None] = ContextVar("trap", default=None)
backend: ContextVar[int] = ContextVar("backend")


@jobs.task
def child(parent: int) -> None:
    """What a settled job leaves to be done."""


@jobs.task(transactional=True, max_attempts=ENOUGH, max_crashes=ENOUGH, backoff="constant", backoff_base=0)
def settle(number: int, seconds: float = 0.0, point: str | None = None, how: str = "", gate: str | None = None, *, session: Session) -> int:
    """One effect, one child, and one entry about the child in the job's transaction; with a trap in its first attempt.

    Later attempts wait in their body until the gate is there, if there is to be one.
    """
    job = current_job()
    trap.set((point, how) if point is not None and job.lease == 1 else None)
    backend.set(session.scalar(text("SELECT pg_backend_pid()")))
    note("begin", number)
    spring("before")
    session.execute(EFFECT, {"id": job.id, "lease": job.lease})
    enqueued = child.enqueue(job.id)
    session.execute(CHILD, {"id": job.id, "lease": job.lease, "child": enqueued.id})
    spring("written")
    time.sleep(seconds)
    while gate is not None and job.lease > 1 and not Path(gate).exists():
        time.sleep(0.01)
    spring("returning")
    return number


def spring(point: str) -> None:
    """Do what the trap says, if it is set for this point."""
    found = trap.get()
    if found is None or found[0] != point:
        return
    trap.set(None)
    note(f"trap-{point}", current_job().id)
    match found[1]:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "kill_worker":
            os.kill(supervisor(), signal.SIGKILL)
            time.sleep(60)  # the template, which is the watchdog, ends this process
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "stop_tree":
            for pid in (supervisor(), os.getppid(), os.getpid()):
                os.kill(pid, signal.SIGSTOP)
        case "terminate":
            with psycopg.connect(os.environ["JOBRUNNER_DSN"], autocommit=True) as connection:
                connection.execute("SELECT pg_terminate_backend(%s, 5000)", (backend.get(),))
        case unknown:
            raise ValueError(unknown)


def supervisor() -> int:
    """The process id of this child's worker."""
    return int(Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()[1])


_succeed, _commit, _load = transactions._succeed, transactions._commit, statements.load


def succeed(connection: Any, outcome: Any) -> bool:
    """The fenced DELETE, and the trap behind it."""
    spring("finishing")
    done = _succeed(connection, outcome)
    if not done:
        note("refused", outcome.id)
    spring("locked")
    return done or MUTANT == "unchecked"


def commit(session: Session) -> None:
    """COMMIT, and the trap behind it."""
    _commit(session)
    note("end", current_job().id)
    spring("committed")


def load(name: str) -> str:
    """The statements, without the fence in the one that ends a job."""
    found = _load(name)
    if name == "succeed":
        for fence in FENCES:
            assert fence in found, "the mutant does not change anything any more"
            found = found.replace(fence, "")
    return found


transactions._succeed, transactions._commit = succeed, commit
if MUTANT is not None:
    transactions._END_EARLIER = "SELECT CAST(%(names)s AS text[])"
if MUTANT == "unfenced":
    statements.load = load  # type: ignore[assignment]
