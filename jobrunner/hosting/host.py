"""Owns a web process's part in the embedded worker: when to begin, whose turn it is, starting it again, and leaving in order.

It must not start anything at import, nor in a process that does not serve: `jobrunner.flask` and `serving` say when one does. Of all
processes that serve an app on a host one has the worker; the others look every second whether it is gone.
"""

from __future__ import annotations

import atexit
import functools
import logging
import os
import sys
import threading
import weakref
from typing import TYPE_CHECKING, Any

from jobrunner import clock
from jobrunner.errors import ConfigurationError, JobrunnerError
from jobrunner.hosting import address, serving
from jobrunner.hosting.beating import beating
from jobrunner.hosting.setting import find_grace, is_forbidden
from jobrunner.settings import EMBEDDED
from jobrunner.texts import redacted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from flask import Flask

    from jobrunner.app import JobRunner
    from jobrunner.hosting.attached import Attached
    from jobrunner.hosting.seat import Seat
    from jobrunner.hosting.setting import Setting

MODULE = "jobrunner.cli.embedded_worker"  # what the worker's process runs; it stands above this layer
LOOK = 1.0  # seconds between looks at the worker, and at the seat that another process has
PAUSE = 1.0  # seconds before a worker that ended is started again; doubled each time
LONGEST_PAUSE = 60.0  # seconds: each start imports the application
SETTLED = 60.0  # seconds: one that lived so long begins with the short pause again
LAST_WORDS = 5.0  # seconds after the grace in which a worker writes what became of its jobs; with 20 s it stays below gunicorn's 30


class Host:
    """The embedded worker of one app, in this process. Thread-safe; a forked child begins anew, with nothing.

    Args:
        app: the Flask app that is served.
        jobs: its JobRunner.
        known: what `flask --app` was given, if anything.
    """

    def __init__(self, app: Flask, jobs: JobRunner, known: str | None = None) -> None:
        self.app, self.jobs = app, jobs
        self._known = known
        self._accompanied: Any = None
        self._said = ""
        self._begin_anew()
        _hosts.add(self)

    def _begin_anew(self) -> None:
        self._guard = threading.Lock()
        self._leaving = threading.Event()
        self._thread: threading.Thread | None = None
        self._seat: Seat | None = None
        self._worker: Attached | None = None
        self._started_at = self._again_at = 0.0
        self._pause = PAUSE

    # -- when to begin

    def notice(self, environ: Mapping[str, Any]) -> bool:
        """Begin, when this request shows that the process serves. Returns whether nothing more has to be noticed."""
        if not serving.is_served(environ) or self.app.testing or serving.is_tested():
            return False
        self.begin()
        return True

    def notice_server(self, server: Any) -> None:
        """Begin, when this development server serves the app."""
        if self._thread is None and self.app in serving.served_by(server) and not self.app.testing and not serving.is_tested():
            self.begin()

    def look_around(self) -> None:
        """Begin together with the gunicorn worker that loads the app now or was just forked, or a development server, if there is one."""
        if self._setting() is None:
            return
        serving.watch_werkzeug(_notice_server)
        worker = serving.gunicorn_worker()
        if worker is None or worker is self._accompanied:
            return
        self._accompanied = worker
        self._known = serving.factory_of(worker) or self._known
        serving.accompany(worker, self.begin, self.leave)

    def begin(self, beat: Callable[[], object] | None = None) -> None:
        """Take part from now on, if the setting says so; once. Never raises: what is wrong is in the app's log, and requests go on.

        The embedded PostgreSQL of a project without a configured database is started and its schema upgraded here, before it returns.

        Args:
            beat: called several times a second meanwhile: a first start makes the cluster, which may take longer than a server is patient.
        """
        setting = self._setting()
        if setting is None:
            return
        with self._guard:
            if self._thread is not None or self._leaving.is_set():
                return
            try:
                beating(functools.partial(_prepare, self.jobs), beat)
            except Exception as error:  # noqa: BLE001  the worker tries by itself later; the web server must not fall over it
                self._complain("cannot prepare this project's own PostgreSQL", error)
            atexit.register(self.leave)
            self._thread = threading.Thread(target=self._run, args=(setting,), name="jobrunner-embedded-worker", daemon=True)
            self._thread.start()

    def _setting(self) -> Setting | None:
        if is_forbidden():
            return None
        try:
            return self.jobs.find_embedded_worker()
        except ConfigurationError as error:
            self._complain("there is no embedded worker", error)
            return None

    # -- having the worker, or waiting for it

    def _run(self, setting: Setting) -> None:
        while True:
            try:
                if self._has_seat(setting):
                    self._tend(setting)
            except Exception as error:  # noqa: BLE001  whatever it is, the next look may go better: nobody else would start it
                self._complain("cannot start the embedded worker", error)
                self._put_off()
            if self._leaving.wait(LOOK):
                return

    def _has_seat(self, setting: Setting) -> bool:
        from jobrunner.hosting.seat import Seat

        with self._guard:
            if self._leaving.is_set():
                return False
            if self._seat is None:
                now = clock.monotonic()
                if now < self._again_at:
                    return False
                self._started_at = now  # while nobody knows where the app is this fails, and is put off as any other start
                self._seat = Seat(address.key(self.app, self.jobs, setting, self._known))
            try:
                taken = self._seat.take()
            except OSError as error:
                self._complain("no place for a lock, so this web process has a worker of its own", error, only_once=True)
                return True
            self._seat.refresh(clock.monotonic())
            return taken

    def _tend(self, setting: Setting) -> None:
        """Start the worker if there is none, again if it has ended."""
        with self._guard:
            code = self._worker.exit_code() if self._worker is not None else None
            if self._leaving.is_set() or (self._worker is not None and code is None):
                return
            now = clock.monotonic()
            if self._worker is not None:
                self._worker.let_go()
                self._worker = None
                self._put_off(now)
                again = f"starting it again in {max(0.0, self._again_at - now):.0f} s"
                self.app.logger.error("jobrunner: the embedded worker ended with exit code %s; %s", code, again)
            if now >= self._again_at:
                self._start(setting, now)

    def _put_off(self, now: float | None = None) -> None:
        now = clock.monotonic() if now is None else now
        if now - self._started_at >= SETTLED:
            self._pause = PAUSE
        self._again_at = now + self._pause
        self._pause = min(2 * self._pause, LONGEST_PAUSE)

    def _start(self, setting: Setting, now: float) -> None:
        from jobrunner.hosting.attached import Attached

        self._started_at = now
        where = address.find_address(self.app, self._known)
        quiet = not self.app.debug and self.app.logger.getEffectiveLevel() > logging.INFO
        options = {
            "--parent": str(os.getpid()),
            "--app": where,
            "--queues": address.queues(self.jobs, setting),
            f"--{setting.kind}": str(setting.number),
            "--grace": f"{self._grace():g}s",
            "--level": "WARNING" if quiet else "INFO",
        }
        if root := address.root_of(where):
            options["--root"] = root
        command = [sys.executable, "-m", MODULE, *(word for option in options.items() for word in option)]
        self._worker = Attached(lambda tie: [*command, "--tie", str(tie)], address.environment(self.jobs))
        self.app.logger.info("jobrunner: embedded worker started, pid %s, %s, app %s", self._worker.pid, setting, where)

    def _grace(self) -> float:
        return find_grace(self.app.config, development=self.app.debug).total_seconds()

    # -- leaving

    def leave(self, *, wait: bool = True, beat: Callable[[], object] = lambda: None) -> None:
        """Have no worker any more. One that runs gives its jobs their grace, and back when it is over; another process starts the next.

        Args:
            wait: stay until it has ended, at most for the grace and a moment: with the last web process a container may end.
            beat: called several times a second meanwhile.
        """
        self._leaving.set()
        with self._guard:
            worker = self._worker
            if worker is not None:
                worker.let_go()
            if self._seat is not None:
                self._seat.give_up()
        ended = worker is None or not wait or worker.wait(self._grace() + LAST_WORDS, beat)
        self._worker = None  # only now: when a second signal has broken that off, the end of the process comes here again, and waits
        if worker is not None and not ended:
            self.app.logger.warning("jobrunner: the embedded worker, pid %s, has not ended yet", worker.pid)

    def forget(self) -> None:
        """In a forked child: the worker, the seat and the thread are the parent's."""
        if self._worker is not None:
            self._worker.let_go()
            _inherited.append(self._worker)  # never collected: that would look after a process which is not this one's child
        if self._seat is not None:
            self._seat.forget()
        atexit.unregister(self.leave)
        self._begin_anew()
        self.look_around()

    def _complain(self, what: str, error: BaseException, *, only_once: bool = False) -> None:
        words = f"{error} ({error.hint})" if isinstance(error, JobrunnerError) else f"{type(error).__name__}: {error}"
        if not only_once or words != self._said:
            self.app.logger.error("jobrunner: %s: %s", what, redacted(words))
        self._said = words


def _prepare(jobs: JobRunner) -> None:
    """The first request of a fresh project may enqueue already: then its PostgreSQL runs, with our schema."""
    if jobs.configured_dsn() is None and jobs.routing.databases:
        return
    dsn = jobs.dsn
    if dsn.origin == EMBEDDED:
        from jobrunner import migrate

        if not migrate.version(dsn.url).up_to_date:
            migrate.upgrade(dsn.url)


def _notice_server(server: Any) -> None:
    for host in list(_hosts):
        host.notice_server(server)


def _after_fork() -> None:
    for host in list(_hosts):
        host.forget()


_hosts: weakref.WeakSet[Host] = weakref.WeakSet()
_inherited: list[Attached] = []
os.register_at_fork(after_in_child=_after_fork)
