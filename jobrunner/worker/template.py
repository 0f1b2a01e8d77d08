"""Owns the warmed-up process: it imports the application once and forks children from that, in milliseconds.

It must not run task code, open connections or start threads: what a child inherits has to be safe to fork. It is also the
watchdog of its children: when the worker is gone, or its lease has run out while the worker itself stands still, it kills them.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import os
import selectors
import signal
import socket
import sys
import time
import traceback
from typing import TYPE_CHECKING, Any

from jobrunner import clock
from jobrunner.errors import JobrunnerError
from jobrunner.routing import HOME
from jobrunner.worker import child, limits, loops, procfs, roots, threads, voices, wire

if TYPE_CHECKING:
    from jobrunner.app import JobRunner

PARTING = 2.0  # seconds for children that leave in order
GLANCE = 0.01  # seconds between two looks whether they have


class Template:
    """Forks, reaps and kills children on the worker's word."""

    def __init__(self, jobs: JobRunner, control: socket.socket) -> None:
        self.jobs = jobs
        self.control = control
        self.children: set[int] = set()
        self.own = set(procfs.children(os.getpid()))  # helpers that the application started while it was imported
        self.lease_ends: float | None = None
        self._in_order = False  # whether the children were told to leave, and may take their time for it
        self._wake_read, self._wake_write = socket.socketpair()

    def run(self) -> None:
        """Serve until the worker says stop or is gone; then nothing of ours is left running."""
        self._wake_write.setblocking(False)  # noqa: FBT003  the standard library's signature
        signal.set_wakeup_fd(self._wake_write.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        selector = selectors.DefaultSelector()
        selector.register(self.control, selectors.EVENT_READ)
        selector.register(self._wake_read, selectors.EVENT_READ)
        try:
            while True:
                for key, _ in selector.select(self._patience()):
                    if key.fileobj is self._wake_read:
                        self._wake_read.recv(4096)
                    elif not self._obey():
                        return
                self._reap()
                self._watch_lease()
        finally:
            signal.set_wakeup_fd(-1)  # the children's deaths come after the socket is closed
            if self._in_order and self.jobs.lifecycle.companions:
                self._let_leave()
            self.kill_all()

    def _let_leave(self) -> None:
        """Wait for the children, which have something to do at their end; not for one that takes too long."""
        ends = clock.monotonic() + PARTING
        while self.children and clock.monotonic() < ends:
            time.sleep(GLANCE)
            with contextlib.suppress(OSError):  # the worker's socket may be closed
                self._reap()
            self._watch_lease()

    def _obey(self) -> bool:
        try:
            message, descriptors = wire.receive_message(self.control)
        except ConnectionError:
            return False
        match message.get("do"):
            case "fork":
                self._fork(message, descriptors)
            case "kill" if message["pid"] in self.children:
                self._kill(message["pid"], message["signal"])
            case "interrupt" if message["pid"] in self.children:
                os.kill(message["pid"], voices.INTERRUPT)
            case "lease":
                self.lease_ends = message["ends"]
            case "stop":
                self._in_order = bool(message.get("in_order"))
                return False
            case None:
                return False
        return True

    def _fork(self, wanted: dict[str, Any], descriptors: list[int]) -> None:
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            _become_child(self, parent, wanted, descriptors)
        self.children.add(pid)
        for descriptor in descriptors:
            os.close(descriptor)
        wire.send_message(self.control, {"event": "forked", "child": wanted["child"], "pid": pid})

    def _kill(self, pid: int, number: int) -> None:
        """Signal the job's process group; what must die, dies with everything below it, whatever group that has made for itself."""
        if number == signal.SIGKILL:
            procfs.kill_tree(pid)
        limits.kill_group(pid, number)

    def _reap(self) -> None:
        """Collect every dead child; also orphans of jobs, which this process adopts."""
        while True:
            try:
                pid, status, used = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid in self.children:
                self.children.discard(pid)
                limits.kill_group(pid, signal.SIGKILL)  # what the job started and left behind
                self._kill_orphans()
                spent = {"cpu_ms": round((used.ru_utime + used.ru_stime) * 1000), "peak_memory": used.ru_maxrss * 1024}
                wire.send_message(self.control, {"event": "exited", "pid": pid, "status": os.waitstatus_to_exitcode(status), **spent})

    def _kill_orphans(self) -> None:
        """End what a dead child's jobs left behind: a living child adopts its own orphans, so those that came here are nobody's."""
        for pid in procfs.children(os.getpid()):
            if pid not in self.children and pid not in self.own:
                procfs.kill_tree(pid)

    def _patience(self) -> float | None:
        return None if self.lease_ends is None else max(0.0, self.lease_ends - clock.monotonic())

    def _watch_lease(self) -> None:
        if self.lease_ends is not None and clock.monotonic() >= self.lease_ends:
            self.lease_ends = None
            self.kill_all()

    def kill_all(self) -> None:
        """End every child with everything it started."""
        for pid in self.children:
            self._kill(pid, signal.SIGKILL)


def _become_child(template: Template, parent: int, wanted: dict[str, Any], descriptors: list[int]) -> None:
    """Never returns."""
    code = 1
    try:
        os.setsid()
        limits.die_with_parent(parent)
        limits.adopt_orphans()  # so that a daemon which a job makes stays below this process, where it is found
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        template.control.close()
        template._wake_read.close()  # noqa: SLF001
        template._wake_write.close()  # noqa: SLF001
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)  # noqa: FBT003  programs that a job starts are not to hold them
        inbox, outbox, orders = (socket.socket(fileno=descriptor) for descriptor in descriptors[:3])
        template.jobs.lifecycle.process_began()
        channels = child.Channels(inbox, outbox, orders, dict(zip((1, 2), descriptors[3:], strict=True)))
        recycling = child.Recycling(wanted["max_jobs"], wanted["max_memory"])
        match wanted["kind"]:
            case "threads":
                threads.serve(template.jobs, channels, recycling, wanted["capacity"])
            case "async":
                loops.serve(template.jobs, channels, recycling, wanted["capacity"])
            case _:
                child.serve(template.jobs, channels, recycling)
        code = 0
    except (BrokenPipeError, ConnectionError):
        code = 0  # the worker is gone
    except BaseException:  # noqa: BLE001  report before leaving: os._exit tells nobody
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            template.jobs.lifecycle.process_ended(code)
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _import_app(spec: str | None, dsn: str) -> JobRunner:
    from jobrunner.loading import load

    # What the worker resolved is what the app's own code uses, wherever it came from; its children may enqueue. A worker for one of
    # several databases does not make it the only one: the app finds them all, as the worker has.
    if not os.environ.get(HOME):
        os.environ["JOBRUNNER_DSN"] = dsn
    jobs = load(spec)
    if jobs.subscriptions or any(task.running.transactional for task in jobs.registry.values()):
        importlib.import_module("jobrunner.worker.transactions")  # once here, not in every child
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # the app may have put anything there
            stream.flush()  # else every child prints once more what the import has printed
    return jobs


def main() -> None:
    """`python -m jobrunner.worker.template`: started by a worker, with the control socket as an inherited descriptor."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--control", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--app")
    options = parser.parse_args()
    limits.die_with_parent(options.parent, signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    control = socket.socket(fileno=options.control)
    try:
        told = wire.receive_message(control)[0]  # not on the command line, where everybody could read the password
        for directory in told["roots"]:
            roots.add(directory)
        jobs = _import_app(options.app, told["dsn"])
        keep = _keep(jobs)
        jobs.lifecycle.worker_name = told["name"]
        jobs.lifecycle.worker_began()
    except BaseException as error:  # noqa: BLE001  an app can raise anything at import, SystemExit too: the worker reports it
        wire.send_message(control, {"event": "failed", **_explain(error)})
        raise SystemExit(1) from None
    limits.adopt_orphans()
    coroutines = sorted(name for name, task in jobs.registry.items() if task.is_async)
    captured = sorted(name for name, task in jobs.registry.items() if task.running.capture_output)
    ready = {
        "event": "ready", "tasks": jobs.task_names(), "coroutines": coroutines, "captured": captured, "keep": keep,
        "subscriptions": [subscription.document() for subscription in jobs.subscriptions.values()],
    }  # fmt: skip
    wire.send_message(control, ready)
    # What was imported stays: a collection in a child would touch, and so copy, every page of it.
    gc.collect()
    gc.freeze()
    try:
        Template(jobs, control).run()
    finally:
        jobs.lifecycle.worker_ended()


def _keep(jobs: JobRunner) -> dict[str, Any]:
    """What the application says about how long finished jobs are kept; seconds, None is forever."""
    rules = [(rule.task, rule.state, None if rule.keep is None else rule.keep.total_seconds()) for rule in jobs.retention_rules()]
    return {"app": jobs.rules_name, "rules": rules}


def _explain(error: BaseException) -> dict[str, Any]:
    known = isinstance(error, JobrunnerError)
    return {
        "message": str(error) if known else f"could not import the app: {type(error).__name__}: {error}",
        "hint": error.hint if isinstance(error, JobrunnerError) else "",
        "traceback": "".join(traceback.format_exception(error)),
    }


if __name__ == "__main__":
    main()
