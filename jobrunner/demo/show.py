"""Owns the course of the demonstration: worker and pages start, jobs are written, watched to their end, and everything is put away.

It must not print: what happens is told to `note`, how far it is to `progress`.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import psycopg
import sqlalchemy as sa

from jobrunner import statements
from jobrunner.connecting import connect
from jobrunner.demo import numbers, tasks
from jobrunner.demo.inputs import ATTEMPTS_FOR_LATE, Trouble, deliver, make_troubles
from jobrunner.demo.processes import Interrupts, Process, stop
from jobrunner.errors import DatabaseUnreachable, JobrunnerError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from jobrunner.settings import Dsn

LEASE = "5s"  # instead of 30: who kills the worker wants to see its jobs come back
GRACE = "2s"  # for running jobs at the end: an analysis takes milliseconds
TICK = 0.25  # seconds between two looks
OUTAGE = 30.0  # seconds that the database may be away
STANDSTILL = 20.0  # seconds without an ended job after which that is said
START = 30.0  # seconds a worker may take until it is registered, and the pages until they answer
MAX_DEATHS = 3  # of the worker in a row without one job ended in between
FIRST = -10  # priority of the inputs that make trouble: their pauses pass while the others run
APP = "jobrunner.demo.tasks"


class WorkerGone(JobrunnerError):
    """The worker does not stay alive; the message has its last words."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How to run it.

    Attributes:
        dsn: the database, migrated.
        sources: the files to analyse.
        found_count: out of how many they were chosen.
        port: of the pages; free.
        slots: of the worker; None for its default.
        note: takes a sentence about what happened.
        progress: takes how far it is, several times a second.
    """

    dsn: Dsn
    sources: Sequence[str]
    found_count: int
    port: int
    slots: int | None
    note: Callable[[str], None]
    progress: Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far it is."""

    jobs: int
    states: Mapping[str, int]

    @property
    def ended(self) -> int:
        """Jobs that are finished, whatever came of them."""
        return sum(self.states.get(state, 0) for state in numbers.FINISHED)

    @property
    def live(self) -> int:
        """Jobs that wait or run."""
        return sum(self.states.values()) - self.ended


class Demo:
    """One run. As a context manager: whatever happens, at its end no process of it is left, and no job of it waits.

    Inside, Ctrl-C, SIGTERM and SIGHUP raise Interrupted.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.name = f"demo-{secrets.token_hex(3)}"
        self.url = f"http://127.0.0.1:{settings.port}/"
        self.own = numbers.Own(self.name, ())
        self.planned: dict[int, Trouble] = {}
        self._interrupts = Interrupts()
        self._directory: Path | None = None
        self._connection: psycopg.Connection[Any] | None = None
        self._delivered = False
        self._pages_gone = False
        self._deaths = 0
        self._ended_before = 0
        self._moved_at = 0.0
        slots = ["-c", str(settings.slots)] if settings.slots else []
        self.worker = Process("work", self.name, "--app", APP, "--name", self.name, "--lease", LEASE, "--grace", GRACE, *slots)
        self.pages = Process("web", "--port", str(settings.port))

    def __enter__(self) -> Self:
        self._interrupts.open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        try:
            self._interrupts.hold()
        finally:  # also when the first signal came just then
            stop([self.worker, self.pages], self._interrupts)
            with contextlib.suppress(psycopg.Error, JobrunnerError):  # the database is gone, and with it the way to tidy up there
                self._cancel_rest()
            if self._connection is not None:
                self._connection.close()
            if self._directory is not None:
                shutil.rmtree(self._directory, ignore_errors=True)
            self._interrupts.close()

    # -- the course

    def start(self) -> None:
        """Start the worker and the pages; when this returns, the worker is ready and the pages are about to be.

        Raises:
            WorkerGone: it ended at once; the message has its last words.
        """
        self._directory = Path(tempfile.mkdtemp(prefix="jobrunner-demo-"))
        self.troubles = make_troubles(self._directory)
        environment = os.environ | {"JOBRUNNER_DSN": self.settings.dsn.url, "PYTHONUNBUFFERED": "1"}
        self.worker.start(environment, self._directory / "worker.log")
        self._await_worker()
        self.pages.start(environment, self._directory / "pages.log")

    def write_jobs(self) -> float:
        """Write all jobs, in one transaction. Returns how long that took, in seconds."""
        began = time.monotonic()
        tasks.jobs.use_dsn(self.settings.dsn.url, self.settings.dsn.origin)
        engine = sa.create_engine(self.settings.dsn.sqlalchemy_url)
        ids: list[int] = []
        with engine.begin() as connection:
            common: dict[str, Any] = {"connection": connection, "queue": self.name, "tags": ["demo", self.name]}
            for trouble in self.troubles:
                task = tasks.jobs.registry[trouble.task].options(**common, priority=FIRST)
                if trouble.expected == "succeeded":
                    task = task.options(max_attempts=ATTEMPTS_FOR_LATE)
                (job_id,) = task.enqueue_many([(str(trouble.path),)])
                self.planned[job_id] = trouble
            ids += self.planned
            ids += tasks.analyse_file.options(**common).enqueue_many([(path,) for path in self.settings.sources])
        engine.dispose()
        self.own = numbers.Own(self.name, ids)
        return time.monotonic() - began

    def watch(self) -> numbers.Summary:
        """Wait until every job has ended. A worker that dies is replaced.

        Raises:
            WorkerGone: it dies again and again.
            DatabaseUnreachable: for half a minute.
        """
        self._moved_at = time.monotonic()
        while True:
            progress = self.look()
            self.settings.progress(progress)
            if not progress.live:
                return numbers.summarise(self._ask, self.own)
            self._deliver()
            self._mind(progress)
            time.sleep(TICK)

    def pages_answer(self) -> bool:
        """Wait until the pages can be opened; False when their process has ended, or takes too long."""
        ends = time.monotonic() + START
        while self.pages.ended() is None and time.monotonic() < ends:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.settings.port), timeout=1):
                return True
            time.sleep(TICK / 5)
        return False

    def serve(self) -> None:
        """Go on as before, so that the pages can be looked at and jobs retried, until interrupted. Returns when the pages are gone."""
        while not self._pages_gone:
            self._mind(self.look())
            time.sleep(TICK)

    def look(self) -> Progress:
        """How far it is."""
        return Progress(len(self.own.ids), numbers.count_states(self._ask, self.own))

    # -- questions afterwards

    def surprises(self, summary: numbers.Summary) -> list[str]:
        """What is not as it should be, one sentence each; empty when all is well."""
        found = []
        missing = summary.jobs - summary.succeeded - summary.failed - summary.quarantined
        if missing:
            found.append(f"{missing} jobs are missing: somebody cancelled or deleted them")
        ended = numbers.endings(self._ask, self.own, list(self.planned))
        for job_id, trouble in self.planned.items():
            state, error_type = ended.get(job_id, ("gone", None))
            if state != trouble.expected or (error_type and error_type != trouble.error_type):
                told = f"{state} ({error_type})" if error_type else state
                found.append(f"job {job_id}, {trouble.path.name}, was to end as {trouble.expected} ({trouble.error_type}) but is {told}")
        return found

    def reasons(self) -> list[numbers.Reason]:
        """Why jobs did not succeed."""
        return numbers.find_reasons(self._ask, self.own)

    def most_complex(self) -> list[numbers.Finding]:
        """The most complex functions of all."""
        return numbers.find_most_complex(self._ask, self.own)

    @property
    def query(self) -> str:
        """The question that `most_complex` asks."""
        return numbers.findings_query(self.own)

    # -- minding

    def _mind(self, progress: Progress) -> None:
        now = time.monotonic()
        if progress.ended != self._ended_before or not progress.live:
            self._ended_before, self._moved_at, self._deaths = progress.ended, now, 0
        elif now - self._moved_at > STANDSTILL:
            self._moved_at = now
            self.settings.note(f"no job has ended for {STANDSTILL:.0f} s; worker {self.worker.pid} says: {self.worker.last_words()}")
        if (ending := self.worker.ended()) is not None:
            self._replace_worker(ending)
        if not self._pages_gone and (ending := self.pages.ended()) is not None:
            self._pages_gone = True
            self.settings.note(f"the pages' process {ending}: {self.pages.last_words()}")

    def _replace_worker(self, ending: str) -> None:
        self._deaths += 1
        gone = self.worker.pid
        if self._deaths >= MAX_DEATHS:
            raise WorkerGone(f"worker {gone} {ending}, {MAX_DEATHS} times in a row: {self.worker.last_words()}")
        self.worker.restart()
        self.settings.note(
            f"worker {gone} {ending}; started another, {self.worker.pid}. Its jobs run again when the lease of {LEASE} is over"
        )

    def _await_worker(self) -> None:
        ends = time.monotonic() + START
        while not numbers.is_registered(self._ask, self.name, self.worker.pid):
            if (ending := self.worker.ended()) is not None:
                raise WorkerGone(f"the worker {ending}: {self.worker.last_words()}")
            if time.monotonic() > ends:
                raise WorkerGone(f"the worker has not registered within {START:.0f} s: {self.worker.last_words()}")
            time.sleep(TICK / 5)

    def _deliver(self) -> None:
        if self._delivered:
            return
        for job_id, trouble in self.planned.items():
            if trouble.expected == "succeeded" and numbers.has_failed_once(self._ask, job_id):
                self._delivered = deliver(trouble)

    # -- the database

    def _ask(self, query: str, parameters: Mapping[str, Any]) -> Sequence[Any]:
        """The rows of an answer; waits while the database restarts."""
        ends = time.monotonic() + OUTAGE
        while True:
            try:
                if self._connection is None:
                    self._connection = connect(self.settings.dsn, application_name="jobrunner-demo")
                return self._connection.execute(query, parameters or None).fetchall()
            except (psycopg.OperationalError, DatabaseUnreachable) as error:
                if self._connection is not None:
                    self._connection.close()
                    self._connection = None
                    self.settings.note(f"the database does not answer ({' '.join(str(error).split())}); trying for {OUTAGE:.0f} s")
                if time.monotonic() > ends:
                    raise
                time.sleep(TICK)

    def _cancel_rest(self) -> None:
        """Cancel what nobody would run any more: the queue is this run's own."""
        if not self.own.ids:
            return
        connection = connect(self.settings.dsn)
        with connection:
            for name in ("cancel", "request_cancel"):
                connection.execute(statements.load(name), {"ids": list(self.own.ids)})
