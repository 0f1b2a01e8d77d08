"""Owns the children: who runs what, handing out jobs, taking them back, killing, and what a death means.

It must not talk to the database nor decide what to claim. All of it runs in the worker's main thread.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from typing import TYPE_CHECKING, Any

from jobrunner import clock
from jobrunner.errors import AppImportError
from jobrunner.jobs import ClaimedJob, Ending, Outcome, Succeeded, Unsuccessful
from jobrunner.worker import wire
from jobrunner.worker.children import KILL_AFTER, STALE, Child, Kill, died
from jobrunner.worker.log import logger

if TYPE_CHECKING:
    from collections.abc import Iterator


class Pool:
    """The children of one worker, forked by its template process."""

    def __init__(self, app: str | None, dsn: str, slots: int) -> None:
        self.app, self.dsn, self.slots = app, dsn, slots
        self.children: dict[int, Child] = {}  # by slot
        self.backlog: deque[ClaimedJob] = deque()
        self.outcomes: list[Outcome] = []
        self.crashed_count = 0
        self.stopping = False
        self._fork_at: dict[int, float] = {}

    # -- the template

    def start_template(self) -> list[str]:
        """Start the template and wait for the app's import. Returns the names of its tasks.

        Raises:
            AppImportError: the app cannot be imported; the message is the app's own error.
        """
        self.control, theirs = socket.socketpair(socket.AF_UNIX, wire.JOB_SOCKET)
        command = [sys.executable, "-m", "jobrunner.worker.template", "--control", str(theirs.fileno()), "--parent", str(os.getpid())]
        if self.app:
            command += ["--app", self.app]
        # A session of its own: Ctrl-C in the terminal reaches the worker only, which ends its children in order.
        self.template = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, start_new_session=True)
        theirs.close()
        wire.send_message(self.control, {"dsn": self.dsn})
        try:
            message, _ = wire.receive_message(self.control)
        except ConnectionError:
            message = {}
        if message.get("event") != "ready":
            self.template.wait()
            error = AppImportError(
                message.get(
                    "message", f"the process that imports the app ended with status {self.template.returncode} before it was ready"
                ),
                hint=message.get("hint", ""),
            )
            error.add_note(message.get("traceback", ""))
            raise error
        return list(message["tasks"])

    def extend_lease(self, ends: float) -> None:
        """Tell the template until when its children may live. Called from the heartbeat's thread; one datagram is atomic."""
        try:
            wire.send_message(self.control, {"do": "lease", "ends": ends})
        except OSError:
            logger.debug("the template is gone; the main loop will see it")

    def fork_missing(self, now: float) -> None:
        """Ask for a child in every empty slot; a slot whose child died without a job waits a second."""
        for slot in range(self.slots):
            if slot in self.children or self.stopping or self._fork_at.get(slot, 0.0) > now:
                continue
            inbox, inbox_there = socket.socketpair(socket.AF_UNIX, wire.JOB_SOCKET)
            outbox, outbox_there = socket.socketpair()
            outbox.setblocking(False)  # noqa: FBT003  the standard library's signature
            self.children[slot] = Child(slot, inbox, inbox_there, outbox)
            wire.send_message(self.control, {"do": "fork", "slot": slot}, (inbox_there.fileno(), outbox_there.fileno()))
            outbox_there.close()

    def halt(self, exit_cause: str, *, blame: bool = False) -> None:
        """End the template and with it every child; returns when they are gone.

        What they finished counts; what they were running is given back, or counts as a crash when they are to `blame`.
        """
        with contextlib.suppress(OSError):  # it may be gone already
            wire.send_message(self.control, {"do": "stop"})
        try:
            self.template.wait(timeout=KILL_AFTER)
        except subprocess.TimeoutExpired:
            self.template.kill()  # the kernel ends its children
            self.template.wait()
        now = clock.monotonic()
        for child in self.children.values():
            self.on_outbox(child)
            self._take_back(child)
            self._unreserve(child)
            for job in child.jobs.values():
                kill = None if blame else Kill(Ending.RELEASE, None, None, exit_cause, now)
                self.outcomes.append(died(job, child.kill or kill, exit_cause, child.since, now))
            child.close()
        self.children.clear()
        self.release_unstarted()
        self.control.close()

    # -- events

    def on_control(self) -> bool:
        """Handle one message of the template; False when the template is gone."""
        try:
            message, _ = wire.receive_message(self.control)
        except ConnectionError:
            return False
        match message.get("event"):
            case "forked":
                self.children[message["slot"]].pid = message["pid"]
            case "exited":
                child = next((c for c in self.children.values() if c.pid == message["pid"]), None)
                if child is not None:
                    self._bury(child, message["status"])
            case _:
                return bool(message)
        return True

    def on_outbox(self, child: Child) -> None:
        """Read what a child has finished."""
        while True:
            try:
                data = child.outbox.recv(1 << 18)
            except (BlockingIOError, ConnectionError):
                break
            if not data:  # the task closed every file, or the process is going
                child.deaf = True
                self._signal(child, signal.SIGKILL)
                break
            child.buffer += data
        if b"\n" not in child.buffer:
            return
        *lines, rest = child.buffer.split(b"\n")
        child.buffer = bytearray(rest)
        now = clock.monotonic()
        for line in lines:
            self._finished(child, json.loads(line), now)
        child.since, child.recorded = now, False

    def _finished(self, child: Child, fields: list[Any], now: float) -> None:
        job_id, lease, ending, *rest, run_ms, cpu_ms = fields
        if child.jobs.pop(job_id, None) is None:
            return
        child.learn(run_ms)
        if ending == "ok":
            self.outcomes.append(Succeeded(job_id, lease, rest[0], run_ms, cpu_ms, now))
        else:
            error_type, message, trace, fingerprint, exit_cause, delay_ms = rest
            self.outcomes.append(
                Unsuccessful(
                    Ending(ending), job_id, lease, error_type, message, trace, fingerprint, exit_cause, run_ms, cpu_ms, now, delay_ms
                )
            )

    def _bury(self, child: Child, status: int) -> None:
        """A child is dead: its finished jobs count, unread ones go back to the front, the one it ran ends as the cause says."""
        self.on_outbox(child)
        self._take_back(child)
        self._unreserve(child)
        now = clock.monotonic()
        cause = f"signal {-status}" if status < 0 else f"exit {status}"
        if not child.jobs:
            self._fork_at[child.slot] = now + 1.0
        for job in child.jobs.values():
            self.outcomes.append(died(job, child.kill, cause, child.since, now))
            if child.kill is None:
                self.crashed_count += 1
                facts = {"job": job.id, "task": job.task, "attempt": job.attempt, "lease": job.lease, "cause": cause}
                logger.error("job's process died", extra=facts)
        child.close()
        del self.children[child.slot]

    # -- handing out

    def room(self, now: float) -> int:
        """How many more jobs should be claimed."""
        if self.stopping:
            return 0
        return max(0, sum(child.room(now) for child in self.children.values()) - len(self.backlog))

    def in_flight(self) -> Iterator[ClaimedJob]:
        """Every job this worker holds."""
        yield from self.backlog
        for child in self.children.values():
            yield from child.jobs.values()
            if child.reserved is not None:
                yield child.reserved

    def hand_out(self, now: float) -> list[ClaimedJob]:
        """Give the backlog to children, idle ones first. Returns suspects that need their start recorded before `begin`."""
        suspects: list[ClaimedJob] = []
        for child in sorted(self.children.values(), key=lambda c: len(c.jobs)):
            while self.backlog and child.room(now) > 0:
                job = self.backlog[0]
                if job.suspect:
                    if not child.idle:
                        break
                    child.reserved = self.backlog.popleft()
                    suspects.append(job)
                    break
                if not self._send(child, job, now):
                    break
                self.backlog.popleft()
        return suspects

    def begin(self, begun: set[int], asked: set[int], now: float) -> None:
        """Send the suspects whose start is now on record; one that was asked for and is not there belongs to somebody else."""
        for child in self.children.values():
            job = child.reserved
            if job is None or job.id not in asked:
                continue
            child.reserved = None
            if job.id not in begun:
                logger.warning("job was taken over before it began", extra={"job": job.id, "lease": job.lease})
            elif self._send(child, job, now):
                child.recorded = True
            else:
                self.outcomes.append(Unsuccessful(Ending.RELEASE, job.id, job.lease))

    def _send(self, child: Child, job: ClaimedJob, now: float) -> bool:
        try:
            wire.send_job(child.inbox, wire.encode_job(job))
        except (BlockingIOError, ConnectionError, BrokenPipeError):
            return False
        if not child.jobs:
            child.since, child.recorded = now, False
        child.jobs[job.id] = job
        return True

    def rebalance(self, now: float) -> None:
        """Take back jobs that wait behind a running one while another child is idle, or for long; give up those nobody can start."""
        idle = any(child.idle for child in self.children.values())
        for child in self.children.values():
            if len(child.jobs) > 1 and (now - child.since > STALE or (idle and not self.backlog)):
                self._take_back(child)
        if self.backlog and all(child.jobs and now - child.since > STALE for child in self.children.values()):
            self.release_unstarted()

    def release_unstarted(self) -> None:
        """Give back to the queue everything that no child has begun; no attempt is used up."""
        for child in self.children.values():
            self._take_back(child)
            if self.stopping:
                self._unreserve(child)
        while self.backlog:
            job = self.backlog.popleft()
            self.outcomes.append(Unsuccessful(Ending.RELEASE, job.id, job.lease))

    def _take_back(self, child: Child) -> None:
        taken: list[ClaimedJob] = []
        while True:
            try:
                data = wire.receive_job(child.inbox_there, socket.MSG_DONTWAIT)
            except (BlockingIOError, ConnectionError):
                break
            if not data:
                break
            job = child.jobs.pop(wire.job_id(data), None)
            if job is not None:
                taken.append(job)
        self.backlog.extendleft(reversed(taken))

    def _unreserve(self, child: Child) -> None:
        if child.reserved is not None:
            self.backlog.appendleft(child.reserved)
            child.reserved = None

    # -- killing

    def check_limits(self, now: float) -> None:
        """Start or finish the killing of children whose job is past its time limit."""
        for child in self.children.values():
            if child.kill is not None:
                if now >= child.kill.hard_at:
                    self._signal(child, signal.SIGKILL)
                    child.kill.hard_at = now + KILL_AFTER
                continue
            job = next(iter(child.jobs.values()), None)
            if job is not None and job.time_limit_ms is not None and (now - child.since) * 1000 > job.time_limit_ms:
                message = f"ran longer than its time_limit of {job.time_limit_ms / 1000:g} s"
                self.end(child, Kill(Ending.RETRY, "jobrunner.errors.TimeLimitExceeded", message, "timeout", now + KILL_AFTER))

    def end(self, child: Child, kill: Kill) -> None:
        """Ask a child's process group to go, and force it a second later; `kill` says how its job ends."""
        self._take_back(child)
        child.kill = kill
        self._signal(child, signal.SIGTERM)

    def cancel(self, job_id: int, now: float) -> None:
        """End one job that somebody asked to cancel, begun or not."""
        for child in self.children.values():
            if job_id not in child.jobs:
                continue
            if next(iter(child.jobs)) == job_id and child.kill is None:
                self.end(child, Kill(Ending.ABORT, None, None, "cancelled", now + KILL_AFTER))
            else:
                self._take_back(child)
        for job in [job for job in self.backlog if job.id == job_id]:
            self.backlog.remove(job)
            self.outcomes.append(Unsuccessful(Ending.ABORT, job.id, job.lease, exit_cause="cancelled"))

    def end_all(self, exit_cause: str, now: float) -> None:
        """End every running job and give it back without using up an attempt."""
        self.release_unstarted()
        for child in self.children.values():
            if child.kill is None:
                self.end(child, Kill(Ending.RELEASE, None, None, exit_cause, now + KILL_AFTER))

    def _signal(self, child: Child, number: int) -> None:
        if child.pid is not None:
            with contextlib.suppress(OSError):  # the template is gone, and the child with it
                wire.send_message(self.control, {"do": "kill", "pid": child.pid, "signal": int(number)})

    def next_deadline(self, now: float) -> float | None:
        """Seconds until something here is due without an event: a limit, a hard kill, a fork, stale jobs."""
        times = [at for slot, at in self._fork_at.items() if slot not in self.children]
        for child in self.children.values():
            job = next(iter(child.jobs.values()), None)
            if child.kill is not None:
                times.append(child.kill.hard_at)
            elif job is not None:
                if job.time_limit_ms is not None:
                    times.append(child.since + job.time_limit_ms / 1000)
                if len(child.jobs) > 1 or self.backlog:
                    times.append(max(child.since + STALE, now + STALE / 4))
        return max(0.0, min(times) - now) if times else None
