"""Owns a worker's life: start, the main loop between children and database, lost leases, shutdown.

It must not run SQL after the start (the link does) nor task code (the children do).
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from jobrunner import clock, migrate
from jobrunner.connecting import connect
from jobrunner.errors import JobrunnerError
from jobrunner.jobs import Leaving, WorkerCounts
from jobrunner.store import Store
from jobrunner.worker.children import MAX_AHEAD, Child
from jobrunner.worker.claimer import Claimer, Room
from jobrunner.worker.heartbeat import Heartbeat
from jobrunner.worker.link import Link
from jobrunner.worker.listener import Listener
from jobrunner.worker.log import logger
from jobrunner.worker.pool import Pool

if TYPE_CHECKING:
    from types import FrameType

    from jobrunner.jobs import ClaimedJob
    from jobrunner.worker.options import WorkerOptions

LONG = 5.0  # seconds after which a running job's start is put on record
TICK = 1.0  # seconds between turns of the loop when nothing happens
FENCE_MARGIN = 0.05  # of the lease: children are killed this much before the database may give their jobs away
_LAST_WORDS = 10.0  # seconds a stopping worker waits for a database that is away


class Supervisor:
    """One worker process: `run` returns its exit code."""

    def __init__(self, options: WorkerOptions) -> None:
        self.options = options
        self.pool = Pool(options.app, options.dsn.url, options.slots)
        self.exit_signal: int | None = None
        self.worker_id = 0
        self.claimed_count = 0
        self._limits = {name: limit for name, limit in options.queues if limit is not None}
        self._wake_read, self._wake_write = socket.socketpair()
        self._signals = 0
        self._grace_ends: float | None = None
        self._ended = False
        self._drained = False
        self._watched: dict[int, Child] = {}
        self._long_at = 0.0
        self._claims = 0
        self._starts: list[tuple[int, int, float]] = []

    # -- start and end

    def run(self) -> int:
        """Work until told to stop, drained, or out of time.

        Raises:
            DatabaseUnreachable, SchemaError, AppImportError: at the start, before anything is claimed.
        """
        self._check_database()
        tasks = self.pool.start_template()
        try:
            self._register(tasks)
            self._start_threads(tasks)
            return self._loop()
        finally:
            if self.pool.template.poll() is None:
                self.pool.halt("deploy")

    def _check_database(self) -> None:
        connect(self.options.dsn).close()  # its error is the one with the reason
        migrate.check(self.options.dsn.url)

    def _register(self, tasks: list[str]) -> None:
        facts = {
            "name": self.options.shown_name,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "kind": self.options.kind,
            "version": version("jobrunner-pg"),
            "queues": [name for name, _ in self.options.queues],
            "tasks": tasks,
            "slots": self.options.slots,
        }
        with connect(self.options.dsn) as connection:
            sent = clock.monotonic()
            worker_id = Store(connection).register_worker(facts, self.options.lease)
            if worker_id is None:  # only a worker that wants a slot is turned away
                raise JobrunnerError("the worker could not be registered")
            self.worker_id = worker_id
        self.tasks = tasks
        self._lease_from = sent
        shown = {"worker": facts["name"], "worker_id": self.worker_id, "slots": self.options.slots, "tasks": len(tasks)}
        logger.info("worker started", extra={**shown, "queues": ",".join(name for name, _ in self.options.queues)})
        if not tasks:
            logger.warning("the app registers no task: nothing can run here")

    def _start_threads(self, tasks: list[str]) -> None:
        queues = [name for name, _ in self.options.queues]
        self.link = Link(self.options.dsn, self.worker_id, Claimer(queues, tasks, self.options.poll.total_seconds()), self._wake)
        self._start_heartbeat()
        self.listener = (
            Listener(self.options.dsn, frozenset(queues), self.link.wake) if self.options.listen and not self.options.drain else None
        )
        self.link.start()
        if self.listener is not None:
            self.listener.start()

    def _start_heartbeat(self) -> None:
        ends = self._lease_from + self.options.lease.total_seconds()
        self.pool.extend_lease(ends)
        self.heartbeat = Heartbeat(
            self.options.dsn, self.worker_id, self.options.lease, ends, counts=self._counts, extended=self._extend_lease
        )
        self.heartbeat.start()

    def _extend_lease(self, ends: float) -> None:
        self.pool.extend_lease(ends)

    def _counts(self) -> WorkerCounts:
        return WorkerCounts(self.link.finisher.succeeded_count, self.link.finisher.failed_count, self.pool.crashed_count)

    # -- the loop

    def _loop(self) -> int:
        self._catch_signals()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._selector.register(self.pool.control, selectors.EVENT_READ)
        started = clock.monotonic()
        self.pool.fork_missing(started)
        while not self._ended:
            ready = self._wait()
            now = clock.monotonic()
            if now >= self.heartbeat.ends - FENCE_MARGIN * self.options.lease.total_seconds() or self.heartbeat.lost:
                self._lease_lost()
                continue
            if not self._read(ready):
                self._template_died()
                continue
            self._handle_events(now)
            self.pool.check_limits(now)
            self.pool.rebalance(now)
            self.pool.fork_missing(now)
            self._hand_out(now)
            self._mind_the_end(now, started)
            self._exchange(now)
        return self._leave()

    def _wait(self) -> list[int]:
        """Wait for something to read, or until something is due. Returns the descriptors that have something."""
        gone = [key for key, child in self._watched.items() if child.deaf or self.pool.children.get(child.slot) is not child]
        for key in gone:
            del self._watched[key]
            self._selector.unregister(key)
        for child in self.pool.children.values():
            if child.outbox.fileno() not in self._watched and not child.deaf:
                self._watched[child.outbox.fileno()] = child
                self._selector.register(child.outbox.fileno(), selectors.EVENT_READ)
        due = self.pool.next_deadline(clock.monotonic())
        return [key.fd for key, _ in self._selector.select(TICK if due is None else min(TICK, due))]

    def _read(self, ready: list[int]) -> bool:
        """Take in what children and template say; False when the template is dead."""
        for descriptor in ready:
            if descriptor == self._wake_read.fileno():
                self._wake_read.recv(4096)
            elif descriptor == self.pool.control.fileno():
                if not self.pool.on_control():
                    return False
            elif descriptor in self._watched:
                self.pool.on_outbox(self._watched[descriptor])
        return True

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # enough of them are waiting to be read
            self._wake_write.send(b"x", socket.MSG_DONTWAIT)

    def _handle_events(self, now: float) -> None:
        while self.link.events:
            event, value = self.link.events.popleft()
            match event:
                case "claimed":
                    self._take_in(*value)
                case "idle":
                    self._drained = True
                case "written" if self.options.drain:
                    self._drained = False  # what was written may be due again
                    self.link.wake()
                case "started":
                    asked, begun = value
                    self.pool.begin(begun, asked, now)
                case "cancel":
                    for job_id in value:
                        self.pool.cancel(job_id, now)
                case "fatal":
                    raise value

    def _take_in(self, worker_id: int, jobs: list[ClaimedJob]) -> None:
        self._claims += 1
        if worker_id != self.worker_id:
            return  # claimed under a lease that is lost
        self._drained = self._drained and not jobs
        self.claimed_count += len(jobs)
        self.pool.backlog.extend(jobs)
        if self._signals:
            self.pool.release_unstarted()

    def _hand_out(self, now: float) -> None:
        for job in self.pool.hand_out(now):
            self._starts.append((job.id, job.lease, 0.0))

    def _exchange(self, now: float) -> None:
        starts = self._starts + self._long_running(now)
        self._starts = []
        outcomes, self.pool.outcomes = self.pool.outcomes, []
        self.link.exchange(outcomes, starts, self._room(now), self._claims)

    def _long_running(self, now: float) -> list[tuple[int, int, float]]:
        """Attempts that have been running for long and are not on record as begun; looked for at every heartbeat's pace."""
        if now < self._long_at:
            return []
        self._long_at = now + LONG
        found: list[tuple[int, int, float]] = []
        for child in self.pool.children.values():
            job = next(iter(child.jobs.values()), None)
            if job is not None and not child.recorded and now - child.since > LONG:
                child.recorded = True
                found.append((job.id, job.lease, now - child.since))
        return found

    def _room(self, now: float) -> Room:
        total = self.pool.room(now)
        # Claims are made for a good part of the room at once: a commit for every other short job would be the cost.
        if self.options.max_jobs is not None:
            total = min(total, max(0, self.options.max_jobs - self.claimed_count))
        if total * 4 < min(MAX_AHEAD, sum(child.room(now) + len(child.jobs) for child in self.pool.children.values())):
            return Room(0)
        if not self._limits:
            return Room(total)
        running: dict[str, int] = {}
        for job in self.pool.in_flight():
            running[job.queue] = running.get(job.queue, 0) + 1
        return Room(total, {queue: max(0, limit - running.get(queue, 0)) for queue, limit in self._limits.items()})

    # -- leases and the end

    def _lease_lost(self) -> None:
        """The jobs may be given to others from now on: end every child first, then start again as a new worker.

        Outcomes of before still go out: each carries its lease, so what was given away meanwhile is refused.
        """
        held = sum(1 for _ in self.pool.in_flight())
        logger.error("lease lost: killing all children", extra={"worker_id": self.worker_id, "jobs": held})
        self.heartbeat.stop()
        self._replace_pool("lost lease", blame=False)
        while not self._signals:
            try:
                self._register(self.tasks)
            except Exception as error:  # noqa: BLE001  the database may be away for as long as it likes
                logger.warning("cannot register again yet", extra={"error": type(error).__name__})
                self._selector.select(TICK)
            else:
                self.link.rejoin(self.worker_id)
                self._start_heartbeat()
                return
        self._ended = True

    def _template_died(self) -> None:
        """Somebody killed the template (out of memory?), and the kernel its children: start another."""
        logger.error("the template process died", extra={"jobs": sum(1 for _ in self.pool.in_flight())})
        self._replace_pool("template died", blame=True)
        self.pool.extend_lease(self.heartbeat.ends)

    def _replace_pool(self, exit_cause: str, *, blame: bool) -> None:
        for key in self._watched:
            self._selector.unregister(key)
        self._watched.clear()
        self._selector.unregister(self.pool.control)
        old = self.pool
        old.halt(exit_cause, blame=blame)
        self.pool = Pool(self.options.app, self.options.dsn.url, self.options.slots)
        self.pool.outcomes, self.pool.crashed_count, self.pool.stopping = old.outcomes, old.crashed_count, old.stopping
        self.pool.start_template()
        self._selector.register(self.pool.control, selectors.EVENT_READ)

    def _mind_the_end(self, now: float, started: float) -> None:
        if not self._signals:
            over = self.options.max_seconds is not None and now - started >= self.options.max_seconds
            full = self.options.max_jobs is not None and self.claimed_count >= self.options.max_jobs
            busy = any(True for _ in self.pool.in_flight()) or bool(self.pool.outcomes) or self.link.unwritten()
            if over:
                self._stop(now)
            elif (self.options.drain and self._drained and not busy) or (full and not busy):
                self._ended = True
            return
        if self._grace_ends is None:
            self._stop(now)
        elif now >= self._grace_ends or self._signals > 1:
            self.pool.end_all("deploy", now)
            self._grace_ends = float("inf")
        if not any(True for _ in self.pool.in_flight()):
            self._ended = True

    def _stop(self, now: float) -> None:
        """First signal: claim nothing more, give back what has not begun, let the rest finish for the time of grace."""
        self._signals = max(self._signals, 1)
        self._grace_ends = now + self.options.grace.total_seconds()
        self.link.stop_claiming()
        self.pool.stopping = True
        self.pool.release_unstarted()
        running = sum(1 for _ in self.pool.in_flight())
        logger.info("stopping", extra={"running": running, "grace_s": self.options.grace.total_seconds()})

    def _leave(self) -> int:
        outcomes, self.pool.outcomes = self.pool.outcomes, []
        self.link.exchange(outcomes, [], Room(0), self._claims)
        self.link.close()
        self.link.join(timeout=max(1.0, min(_LAST_WORDS, self.heartbeat.ends - clock.monotonic())))
        self.heartbeat.stop()
        if self.listener is not None:
            self.listener.stop()
        lost = self.link.unwritten()
        if lost:
            logger.error("database away: outcomes not written; those jobs run again after the lease", extra={"outcomes": lost})
        else:
            self._sign_off()
        counts = self._counts()
        logger.info("worker stopped", extra={"worker_id": self.worker_id, **counts._asdict()})
        clean = not lost and self._signals <= 1
        return 0 if clean else 128 + (self.exit_signal or signal.SIGTERM)

    def _sign_off(self) -> None:
        why = "signal" if self.exit_signal else "drained" if self.options.drain else "done"
        try:
            with connect(self.options.dsn) as connection:
                Store(connection).stop_worker(self.worker_id, Leaving(why), self._counts())
        except Exception as error:  # noqa: BLE001  everything is written; the row is closed by the next rescue
            logger.warning("could not close the worker's row", extra={"error": type(error).__name__})

    def _catch_signals(self) -> None:
        self._wake_write.setblocking(False)  # noqa: FBT003  the standard library's signature
        signal.set_wakeup_fd(self._wake_write.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> Any:
        self._signals += 1
        self.exit_signal = number
