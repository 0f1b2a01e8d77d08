"""Owns a worker's life: start, the main loop between children and database, lost leases, shutdown.

It must not run SQL (link and registration do) nor task code (the children do).
"""

from __future__ import annotations

import contextlib
import select
import selectors
import signal
import socket
import time
from typing import TYPE_CHECKING, Any

from jobrunner import clock
from jobrunner.claimer import Claimer, Room
from jobrunner.jobs import WorkerCounts
from jobrunner.worker.bounds import Bounds
from jobrunner.worker.deliveries import Deliveries
from jobrunner.worker.link import Link
from jobrunner.worker.listener import Listener
from jobrunner.worker.log import logger
from jobrunner.worker.pool import Pool, Shape
from jobrunner.worker.registration import BUSY, FAILED, LOST, Departure, Registration
from jobrunner.worker.rooms import rooms
from jobrunner.worker.sight import Sight

if TYPE_CHECKING:
    from types import FrameType

    from jobrunner.jobs import ClaimedJob
    from jobrunner.worker.heartbeat import Heartbeat
    from jobrunner.worker.options import WorkerOptions

TICK = 1.0  # seconds between turns of the loop when nothing happens
REST = 0.002  # seconds between turns, at least, while every child has work for so long
FENCE_MARGIN = 0.05  # of the lease: children are killed this much before the database may give their jobs away
JOBS_FAILED = 1  # the exit code of a worker that is to fail when a job does
_LAST_WORDS = 10.0  # seconds a stopping worker waits for a database that is away


class _ToldToStop(BaseException):
    """A signal came while the application was being imported, which may take long: there is nothing to finish."""


class Supervisor:
    """One worker process, from its row in `workers` to the record of its run."""

    def __init__(self, options: WorkerOptions) -> None:
        self.options = options
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = socket.socketpair()
        self.pool = self._new_pool()
        queues = [name for name, _ in options.queues]
        self._claimers = [Claimer(queues, [], options.poll.total_seconds()) for _ in self.pool.lanes]
        self._deliveries = Deliveries(queues, options.poll.total_seconds())
        self.link = Link(options.dsn, self._claimers, self._wake, options.chores, self._deliveries)
        self.listener = Listener(options.dsn, frozenset(queues), self.link.wake) if options.listen and not options.drain else None
        self.sight = Sight()
        self.registration = Registration(options, counts=self._counts, running=lambda: self.sight.running, extended=self._extend_lease)
        self.exit_signal: int | None = None
        self.claimed_count = 0
        self._limits = {name: limit for name, limit in options.queues if limit is not None}
        self._bounds = Bounds(options.time_limit, options.soft_time_limit)
        self._importing = False
        self._imported = False
        self._signals = 0
        self._grace_ends: float | None = None
        self._ended = False
        self._drained = False
        self._time_over = False
        self._slot_lost = False
        self._claims = 0
        self._fed = False
        self._turned_at = 0.0
        self._starts: list[tuple[int, int, float]] = []

    # -- start and end

    def run(self) -> Departure:
        """Work until told to stop, drained, or out of time.

        Raises:
            DatabaseUnreachable, SchemaError: before a row was taken.
            AppImportError: the application cannot be imported; that, as every error from here on, is on record in `worker_runs`.
        """
        self.registration.check_database()
        self._catch_signals()
        if not self.registration.take([]):
            return Departure(BUSY)
        try:
            return self._work()
        except BaseException as error:
            self._give_up(error)
            raise

    def _work(self) -> Departure:
        self.link.join_as(self.worker_id)
        try:
            ready = self._import_app()
        except _ToldToStop:
            ready = False
        if ready:
            self.link.start()
            if self.listener is not None:
                self.listener.start()
            self._loop()
        return self._leave()

    def _import_app(self) -> bool:
        """Start the pool, which imports the application, and say which tasks run here. False when the worker is to leave already."""
        self._importing = True
        if not self._signals:
            self.pool.start()
        self._importing = False
        if self._signals:
            return False
        self._imported = True
        self._extend_lease(self.heartbeat.ends)
        for claimer, lane in zip(self._claimers, self.pool.lanes, strict=True):
            claimer.tasks = self.pool.tasks_of(lane)
        self._deliveries.tasks = self.pool.forking.delivering
        if not self.registration.announce(self.pool.forking.tasks, self.pool.forking.keep, self.pool.forking.declared):
            logger.error("lease lost while the app was imported", extra={"worker_id": self.worker_id})
            return self._register_again()
        self._say_started()
        return True

    def _say_started(self, message: str = "worker started") -> None:
        options, tasks = self.options, len(self.pool.forking.tasks)
        shown = {"worker": options.shown_name, "worker_id": self.worker_id, "slots": options.all_slots, "tasks": tasks}
        logger.info(message, extra={**shown, "queues": ",".join(name for name, _ in options.queues)})
        if not tasks:
            logger.warning("the app registers no task: nothing can run here")

    def _new_pool(self) -> Pool:
        options = self.options
        most = options.max_jobs_per_child, options.max_memory_per_child
        shape = Shape(options.slots, options.threads, options.async_slots, *most, options.name)
        return Pool(options.app, options.dsn.url, shape, self._selector)

    @property
    def worker_id(self) -> int:
        """Of its row in `workers`."""
        return self.registration.worker_id

    @property
    def heartbeat(self) -> Heartbeat:
        """What keeps the lease."""
        return self.registration.heartbeat

    def _extend_lease(self, ends: float) -> None:
        if self._imported:
            self.pool.forking.extend_lease(ends)

    def _counts(self) -> WorkerCounts:
        finisher = self.link.finisher
        return WorkerCounts(finisher.succeeded_count, finisher.failed_count, self.pool.crashed_count, self.claimed_count)

    # -- the loop

    def _loop(self) -> None:
        self._selector.register(self._wake_read, selectors.EVENT_READ, lambda: self._wake_read.recv(4096))
        started = clock.monotonic()
        self.pool.fork_missing(started)
        if self.options.began is not None:
            started = self.options.began
        while not self._ended:
            self._rest()
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
            if self.sight.look(self.pool, now):
                self.heartbeat.news()

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

    def _take_in(self, worker_id: int, claimed: list[list[ClaimedJob]], seconds: float) -> None:
        self._claims += 1
        if worker_id != self.worker_id:
            return  # claimed under a lease that is lost
        for lane, jobs in zip(self.pool.lanes, claimed, strict=True):
            self._drained = self._drained and not jobs
            self.claimed_count += len(jobs)
            lane.backlog.extend(self._bounds.of(jobs))
            if jobs:
                lane.fetched(seconds)
        if self._signals:
            self.pool.release_unstarted()

    def _hand_out(self, now: float) -> None:
        for lane in self.pool.lanes:
            for job in lane.hand_out(now):
                self._starts.append((job.id, job.lease, 0.0))

    def _exchange(self, now: float) -> None:
        starts = self._starts + self.sight.long_running(self.pool, now)
        self._starts = []
        left = self.options.max_jobs - self.claimed_count if self.options.max_jobs is not None else None
        self._fed = self.pool.is_fed(REST)
        self._hand_over(starts, rooms(self.pool, self._limits, left, now), may_wait=self._fed)

    def _rest(self) -> None:
        """Let the children go on for a moment while all of them have enough to do: short jobs end by the dozen, and need no turn each."""
        if self._fed and (pause := self._turned_at + REST - clock.monotonic()) > 0:
            time.sleep(pause)
        self._turned_at = clock.monotonic()

    def _hand_over(self, starts: list[tuple[int, int, float]], rooms: list[Room], *, may_wait: bool = False) -> None:
        notes, lines = self.pool.take_words()
        if notes or lines:
            self.link.hear(notes, lines)
        self.link.exchange(self.pool.take_ended(), starts, rooms, self._claims, may_wait=may_wait)

    # -- leases and the end

    def _lease_lost(self) -> None:
        """The jobs may be given to others from now on: end every child first, then start again as a new worker.

        Outcomes of before still go out: each carries its lease, so what was given away meanwhile is refused.
        """
        held = sum(1 for _ in self.pool.in_flight())
        logger.error("lease lost: killing all children", extra={"worker_id": self.worker_id, "jobs": held})
        self.heartbeat.stop()
        self._replace_pool("lost lease", blame=False)
        if not self._register_again():
            self._ended = True

    def _pause(self, seconds: float) -> None:
        """Wait for that long, or until a signal. What else is there to be read stays there, and must not end the pause."""
        until = clock.monotonic() + seconds
        while not self._signals and (left := until - clock.monotonic()) > 0:
            if select.select([self._wake_read], [], [], left)[0]:
                self._wake_read.recv(4096)

    def _register_again(self) -> bool:
        """Take a row anew. False when the worker has to leave: it was told to, or its slot is another's by now."""
        while not self._signals:
            try:
                taken = self.registration.take(self.pool.forking.tasks)
            except Exception as error:  # noqa: BLE001  the database may be away for as long as it likes
                logger.warning("cannot register again yet", extra={"error": type(error).__name__})
                self._pause(TICK)
                continue
            if not taken:
                logger.error("another worker has the slot by now: leaving", extra={"pool": self.options.pool})
                self._slot_lost = True
                return False
            self.link.join_as(self.worker_id)
            self._say_started("worker registered again")
            return True
        return False

    def _template_died(self) -> None:
        """Somebody killed the template (out of memory?), and the kernel its children: start another."""
        logger.error("the template process died", extra={"jobs": sum(1 for _ in self.pool.in_flight())})
        self._replace_pool("template died", blame=True)
        self._extend_lease(self.heartbeat.ends)

    def _replace_pool(self, exit_cause: str, *, blame: bool) -> None:
        old = self.pool
        old.halt(exit_cause, blame=blame)
        new = self._new_pool()
        new.inherit(old)
        new.start()
        self.pool = new  # only now: the heartbeat's thread speaks to its template

    def _mind_the_end(self, now: float, started: float) -> None:
        if not self._signals:
            over = self.options.max_seconds is not None and now - started >= self.options.max_seconds
            full = self.options.max_jobs is not None and self.claimed_count >= self.options.max_jobs
            busy = any(True for _ in self.pool.in_flight()) or self.pool.unwritten or self.link.unwritten() or self.link.events
            if over:
                self._time_over = True
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

    def _leave(self) -> Departure:
        # A worker that does not stay never comes to the rare steps in its rounds.
        lost = self._flush(tidy=self.options.kind != "daemon" and self.exit_signal is None)
        self._end_pool()
        if self.listener is not None:
            self.listener.stop()
        if lost:
            logger.error("database away: outcomes not written; those jobs run again after the lease", extra={"outcomes": lost})
        jobs_failed = self.link.finisher.failed_jobs
        if lost or self._signals > 1:
            exit_code = 128 + (self.exit_signal or signal.SIGTERM)
        else:
            exit_code = JOBS_FAILED if jobs_failed and self.options.fail_on_job_failure else 0
        departure = self.registration.close(Departure(self._why(), exit_code, jobs_failed=jobs_failed))
        logger.info("worker stopped", extra={"worker_id": self.worker_id, "reason": departure.reason, **departure.counts._asdict()})
        return departure

    def _why(self) -> str:
        if self._slot_lost:
            return LOST
        if self.exit_signal is not None:
            return "signal"
        return "time" if self._time_over else "drained" if self.options.drain and self._drained else "done"

    def _give_up(self, error: BaseException) -> None:
        """After an error of which nothing is known: no child goes on, what it held is given back, the run is on record."""
        try:
            self._end_pool()
            self._flush()
        finally:
            code_of = self.options.code_of
            self.registration.close(Departure(FAILED, 1 if code_of is None else code_of(error)), error)

    def _end_pool(self) -> None:
        if self._imported and self.pool.forking.process.poll() is None:
            self.pool.halt("deploy", in_order=True)

    def _flush(self, *, tidy: bool = False) -> int:
        """Write what is left to write. Returns how much could not be written."""
        if self.link.is_alive():
            self._hand_over([], [Room(0) for _ in self.pool.lanes])
            self.link.close(tidy=tidy)
            self.link.join(timeout=max(1.0, min(_LAST_WORDS, self.heartbeat.ends - clock.monotonic())))
        return self.link.unwritten()

    def _catch_signals(self) -> None:
        self._wake_write.setblocking(False)  # noqa: FBT003  the standard library's signature
        signal.set_wakeup_fd(self._wake_write.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, *((signal.SIGHUP,) if self.options.kind == "embedded" else ())):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> Any:
        if number == signal.SIGHUP and self._signals:
            return  # the web server is gone, and its service manager has told this process already: nobody is in a hurry
        self._signals += 1
        self.exit_signal = number
        if self._importing:
            self._importing = False
            raise _ToldToStop
