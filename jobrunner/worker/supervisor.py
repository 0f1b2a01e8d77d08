"""Owns a worker's life: start, the main loop between children and database, lost leases, shutdown.

It must not run SQL after the start (the link does) nor task code (the children do).
"""

from __future__ import annotations

import contextlib
import json
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
from jobrunner.worker.claimer import Claimer, Room
from jobrunner.worker.heartbeat import Heartbeat
from jobrunner.worker.link import Link
from jobrunner.worker.listener import Listener
from jobrunner.worker.log import logger
from jobrunner.worker.pool import Pool, Shape

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
        self._selector = selectors.DefaultSelector()
        self.pool = self._new_pool()
        self.exit_signal: int | None = None
        self.worker_id = 0
        self.claimed_count = 0
        self._limits = {name: limit for name, limit in options.queues if limit is not None}
        self._wake_read, self._wake_write = socket.socketpair()
        self._signals = 0
        self._grace_ends: float | None = None
        self._ended = False
        self._drained = False
        self._long_at = 0.0
        self._shown = "[]"  # what runs here, as of the last look; read by the heartbeat
        self._shown_jobs: list[int] = []
        self._show_at = 0.0
        self._claims = 0
        self._starts: list[tuple[int, int, float]] = []

    # -- start and end

    def run(self) -> int:
        """Work until told to stop, drained, or out of time.

        Raises:
            DatabaseUnreachable, SchemaError, AppImportError: at the start, before anything is claimed.
        """
        self._check_database()
        self.pool.start()
        try:
            self._register()
            self._start_threads()
            return self._loop()
        finally:
            if self.pool.forking.process.poll() is None:
                self.pool.halt("deploy")

    def _new_pool(self) -> Pool:
        options = self.options
        shape = Shape(options.slots, options.threads, options.async_slots, options.max_jobs_per_child, options.max_memory_per_child)
        return Pool(options.app, options.dsn.url, shape, self._selector)

    def _check_database(self) -> None:
        connect(self.options.dsn).close()  # its error is the one with the reason
        migrate.check(self.options.dsn.url)

    def _register(self) -> None:
        tasks = list(self.pool.forking.tasks)
        facts = {
            "name": self.options.shown_name,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "kind": self.options.kind,
            "version": version("jobrunner-pg"),
            "queues": [name for name, _ in self.options.queues],
            "tasks": tasks,
            "slots": self.options.all_slots,
        }
        with connect(self.options.dsn) as connection:
            sent = clock.monotonic()
            worker_id = Store(connection).register_worker(facts, self.options.lease)
            if worker_id is None:  # only a worker that wants a slot is turned away
                raise JobrunnerError("the worker could not be registered")
            self.worker_id = worker_id
        self._lease_from = sent
        shown = {"worker": facts["name"], "worker_id": self.worker_id, "slots": self.options.all_slots, "tasks": len(tasks)}
        logger.info("worker started", extra={**shown, "queues": ",".join(name for name, _ in self.options.queues)})
        if not tasks:
            logger.warning("the app registers no task: nothing can run here")

    def _start_threads(self) -> None:
        queues = [name for name, _ in self.options.queues]
        claimers = [Claimer(queues, self.pool.tasks_of(lane), self.options.poll.total_seconds()) for lane in self.pool.lanes]
        self.link = Link(self.options.dsn, self.worker_id, claimers, self._wake)
        self._start_heartbeat()
        self.listener = (
            Listener(self.options.dsn, frozenset(queues), self.link.wake) if self.options.listen and not self.options.drain else None
        )
        self.link.start()
        if self.listener is not None:
            self.listener.start()

    def _start_heartbeat(self) -> None:
        ends = self._lease_from + self.options.lease.total_seconds()
        self._extend_lease(ends)
        self.heartbeat = Heartbeat(
            self.options.dsn, self.worker_id, self.options.lease, ends,
            counts=self._counts, running=lambda: self._shown, extended=self._extend_lease,
        )  # fmt: skip
        self.heartbeat.start()

    def _extend_lease(self, ends: float) -> None:
        self.pool.forking.extend_lease(ends)

    def _counts(self) -> WorkerCounts:
        finisher = self.link.finisher
        return WorkerCounts(finisher.succeeded_count, finisher.failed_count, self.pool.crashed_count, self.claimed_count)

    # -- the loop

    def _loop(self) -> int:
        self._catch_signals()
        self._selector.register(self._wake_read, selectors.EVENT_READ, lambda: self._wake_read.recv(4096))
        started = clock.monotonic()
        self.pool.fork_missing(started)
        while not self._ended:
            due = self.pool.next_deadline(clock.monotonic())
            ready = self._selector.select(TICK if due is None else min(TICK, due))
            now = clock.monotonic()
            if now >= self.heartbeat.ends - FENCE_MARGIN * self.options.lease.total_seconds() or self.heartbeat.lost:
                self._lease_lost()
                continue
            for key, _ in ready:
                # What one of them said may have been the end of another, whose socket is closed: only its number can be looked up.
                if self._selector.get_map().get(key.fd) is key:
                    key.data()
            if self.pool.template_died:
                self._template_died()
                continue
            self._handle_events(now)
            self.pool.enforcer.check(self.pool.children(), now)
            for lane in self.pool.lanes:
                lane.rebalance(now)
            self.pool.fork_missing(now)
            self._hand_out(now)
            self._mind_the_end(now, started)
            self._exchange(now)
            self._show(now)
        return self._leave()

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
                    self.pool.cancel(value, now)
                case "superseded":
                    logger.warning("job is another attempt's by now: ending ours", extra={"job": value[0], "lease": value[1]})
                    self.pool.supersede(value[0], value[1], now)
                case "fatal":
                    raise value

    def _take_in(self, worker_id: int, claimed: list[list[ClaimedJob]]) -> None:
        self._claims += 1
        if worker_id != self.worker_id:
            return  # claimed under a lease that is lost
        for lane, jobs in zip(self.pool.lanes, claimed, strict=True):
            self._drained = self._drained and not jobs
            self.claimed_count += len(jobs)
            lane.backlog.extend(jobs)
        if self._signals:
            self.pool.release_unstarted()

    def _hand_out(self, now: float) -> None:
        for lane in self.pool.lanes:
            for job in lane.hand_out(now):
                self._starts.append((job.id, job.lease, 0.0))

    def _exchange(self, now: float) -> None:
        starts = self._starts + self._long_running(now)
        self._starts = []
        self._hand_over(starts, self._rooms(now))

    def _hand_over(self, starts: list[tuple[int, int, float]], rooms: list[Room]) -> None:
        notes, lines = self.pool.take_words()
        if notes or lines:
            self.link.hear(notes, lines)
        self.link.exchange(self.pool.take_ended(), starts, rooms, self._claims)

    def _long_running(self, now: float) -> list[tuple[int, int, float]]:
        """Attempts that have been running for long and are not on record as begun; looked for at every heartbeat's pace."""
        if now < self._long_at:
            return []
        self._long_at = now + LONG
        found: list[tuple[int, int, float]] = []
        for child in self.pool.children():
            for run in child.active():
                if not run.recorded and now - run.since > LONG:
                    run.recorded = True
                    found.append((run.job.id, run.job.lease, now - run.since))
        return found

    def _show(self, now: float) -> None:
        """Keep for the heartbeat what the slots run; when jobs of some length come or go it is to say so soon."""
        if now < self._show_at:
            return
        self._show_at = now + TICK
        running = self.pool.running(now)
        self._shown = json.dumps(running)
        jobs = [run["job"] for run in running if run["seconds"] > TICK]
        if jobs != self._shown_jobs:
            self._shown_jobs = jobs
            self.heartbeat.news()

    def _rooms(self, now: float) -> list[Room]:
        """How many jobs each lane wants; the bounds of queues hold for all lanes together, and stand in each room."""
        left = self.options.max_jobs - self.claimed_count if self.options.max_jobs is not None else None
        totals: list[int] = []
        for lane in self.pool.lanes:
            total = 0 if self.pool.stopping else lane.room(now)
            if left is not None:
                total = min(total, max(0, left))
                left -= total
            totals.append(total)
        bounds = self._bounds() if any(totals) else {}
        return [Room(total, bounds) for total in totals]

    def _bounds(self) -> dict[str, int]:
        """How many more jobs of each bounded queue may run in this worker."""
        if not self._limits:
            return {}
        running: dict[str, int] = {}
        for job in self.pool.in_flight():
            running[job.queue] = running.get(job.queue, 0) + 1
        return {queue: max(0, limit - running.get(queue, 0)) for queue, limit in self._limits.items()}

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
                self._register()
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
        self._extend_lease(self.heartbeat.ends)

    def _replace_pool(self, exit_cause: str, *, blame: bool) -> None:
        old = self.pool
        old.halt(exit_cause, blame=blame)
        self.pool = self._new_pool()
        self.pool.inherit(old)
        self.pool.start()

    def _mind_the_end(self, now: float, started: float) -> None:
        if not self._signals:
            over = self.options.max_seconds is not None and now - started >= self.options.max_seconds
            full = self.options.max_jobs is not None and self.claimed_count >= self.options.max_jobs
            busy = any(True for _ in self.pool.in_flight()) or self.pool.unwritten or self.link.unwritten()
            if over:
                self._stop(now)
            elif (self.options.drain and self._drained and not busy) or (full and not busy):
                self._ended = True
            return
        if self._grace_ends is None:
            self._stop(now)
        elif self._signals > 1 and self._grace_ends != float("inf"):
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
        self.pool.ask_all(self.options.grace.total_seconds(), now)
        running = sum(1 for _ in self.pool.in_flight())
        logger.info("stopping", extra={"running": running, "grace_s": self.options.grace.total_seconds()})

    def _leave(self) -> int:
        self._hand_over([], [Room(0) for _ in self.pool.lanes])
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
