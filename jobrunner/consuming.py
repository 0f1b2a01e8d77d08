"""Owns the messages of one queue that this process holds: its row among the workers, its leases, and giving back what is held too long.

It must not decide what becomes of a message: whoever holds it does. All threads that take messages of the queue share one of these, one
thread that renews the lease, and the connections of the pool.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import threading
import weakref
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psycopg

from jobrunner import clock
from jobrunner.claimer import Claimer, Room
from jobrunner.errors import DatabaseUnreachable, LeaseLost
from jobrunner.hearing import ear_of
from jobrunner.holding import ALWAYS, Holds
from jobrunner.jobs import Ending, Leaving, Unsuccessful, WorkerCounts, WorkerSight
from jobrunner.messagestore import EXPIRED_AT_ONCE, MessageStore
from jobrunner.pulling import consumer_facts
from jobrunner.settings import MESSAGE_TASK
from jobrunner.settling import give_back, hint_of, opened, outcome_of, settle_elsewhere
from jobrunner.transient import is_transient

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from jobrunner.envelopes import Message
    from jobrunner.policies import Duration
    from jobrunner.pulling import Home

logger = logging.getLogger("jobrunner.messages")

POLL = 1.0  # seconds between looks while hints may come
DEAF_POLL = 0.25  # seconds between looks where no hint can be heard
# Of the lease that was asked for: after the death of this process a message must be another's within one lease, looks included.
ROW_SHARE = 0.5
SHORTEST_ROW, LONGEST_ROW = 1.0, 15.0  # seconds that the row of this process lives without a word of it
BEATS = 3  # in that time
RETRY = 1.0  # seconds until the database is asked again that did not answer
ELSEWHERE = 30.0  # seconds until an acknowledgement in somebody's transaction is looked at that has no lease to wait for
IDLE = 60.0  # seconds without a message or anybody who asks for one, after which the row is closed
MAINTENANCE = 1.0  # seconds between looks for the messages of consumers that died, and for those that have expired


class Consumer:
    """Takes and holds messages of one queue for this process. Thread-safe; a forked child begins anew, with nothing held."""

    def __init__(self, home: Home, queue: str) -> None:
        self._home, self._queue = home, queue
        self._closed = threading.Event()  # for good: whoever waits, or loops over messages, does not go on with connections of his own
        self.forget()
        _known.add(self)

    def forget(self) -> None:
        """In a forked child: what is held is the parent's."""
        self._taking = threading.Lock()  # the row and the claimer: one look at a time, whoever it is for
        self._state = threading.Condition()
        self._claimer = Claimer([self._queue], [MESSAGE_TASK], POLL)
        self._worker_id = 0
        self._row_seconds = LONGEST_ROW
        self._beat_at = self._maintain_at = self._used_at = 0.0
        self._held = Holds()
        self._waiting = 0
        self._called = False  # whether there may be something new
        self._ended: set[str] = set()  # ordering keys of which a message was settled here since the last look
        self._in_doubt = False  # whether a claim may have committed whose answer never came
        self._thread: threading.Thread | None = None
        self._counts = WorkerCounts()

    # -- taking

    def take(self, most: int, lease: float | None, wait: float) -> list[Message]:
        """At most `most` messages, as soon as there is one; none when there is none for `wait` seconds, or when it is closed.

        Raises:
            psycopg.Error, DatabaseUnreachable: the database did not answer; what was claimed meanwhile comes back by its lease.
        """
        ends = clock.monotonic() + wait
        with self._asking():
            self._shorten(lease)  # in here: a row that is closed because nobody asks forgets how briefly it was to live
            while True:
                with self._taking:
                    messages = [] if self._closed.is_set() else self._look(most, lease)
                left = ends - clock.monotonic()
                if messages or self._closed.is_set() or (left <= 0 and not self._claimer.walking):
                    return messages
                pause = min(left, self._claimer.next_at - clock.monotonic())
                with self._state:
                    if pause > 0 and not self._called:
                        self._state.wait(pause)

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        """Somebody asks for a message: there is a first look whatever was found before, and the row stays."""
        with self._state:
            self._waiting += 1
            self._called = True
        try:
            yield
        finally:
            with self._state:
                self._waiting -= 1
                self._used_at = clock.monotonic()

    def _listen(self) -> None:
        """Hear of new messages for as long as somebody waits; where that cannot be, look more often."""
        ear = ear_of(self._home.database.dsn) if self._home.wakeups else None
        if ear is not None:
            ear.add(self._queue, self.call)
        self._claimer.poll = POLL if ear is not None and ear.hears else DEAF_POLL

    def call(self) -> None:
        """There may be something to take: whoever waits looks at once."""
        with self._state:
            self._called = True
            self._state.notify_all()

    def _look(self, most: int, lease: float | None) -> list[Message]:
        self._listen()
        with self._state:
            called, self._called = self._called, False
            ended, self._ended = self._ended, set()
        if ended:
            self._claimer.follow({self._queue: ended})
        if called:
            self._claimer.wake()
        if not self._claimer.wants(Room(most), clock.monotonic()):
            return []
        with self._database_store() as store:
            worker_id = self._register(store)
            if not worker_id:
                return []
            self._reconcile(store)
            self._maintain(store)
            sent = clock.monotonic()
            self._in_doubt = True
            jobs = self._claimer.claim(store, worker_id, Room(most))
            if suspects := [(job.id, job.lease, 0.0) for job in jobs if job.suspect]:
                store.start(suspects)  # or the death of this process would not be counted against them
            messages = opened(store, jobs, self) if jobs else []
            with self._state:
                ours = self._worker_id == worker_id  # or the row was given up, or closed, meanwhile: nobody would renew the lease of these
                if ours and messages:
                    self._held.add(messages, ALWAYS if lease is None else sent + lease)
                    self._counts = self._counts._replace(claimed=self._counts.claimed + len(jobs))
                    self._state.notify_all()
                self._in_doubt = False  # not before: an interrupt in between would leave messages that nobody knows of while we live
            if not ours and jobs:
                store.finish([Unsuccessful(Ending.RELEASE, job.id, job.lease) for job in jobs])
        return messages if ours else []

    def _reconcile(self, store: MessageStore) -> None:
        """After a connection broke, a claim may have committed whose answer never came: what nobody here knows of goes back."""
        if not self._in_doubt:
            return
        unknown = [held for held in store.held_jobs(self._worker_id) if (held.id, held.lease) not in self._held]
        if unknown:
            store.finish([Unsuccessful(Ending.RELEASE, held.id, held.lease) for held in unknown])
        self._in_doubt = False

    def _shorten(self, lease: float | None) -> None:
        """Let the row live so briefly without a word of this process that the lease asked for is kept also when it dies."""
        wanted = LONGEST_ROW if lease is None else min(LONGEST_ROW, max(SHORTEST_ROW, lease * ROW_SHARE))
        with self._taking:
            if wanted >= self._row_seconds:
                return
            self._row_seconds, self._beat_at = wanted, 0.0  # at once: where the word below fails, the thread goes on with it
            if self._worker_id:
                try:
                    with self._database_store() as store:
                        self._beat(store)
                finally:
                    with self._state:
                        self._state.notify_all()

    def _register(self, store: MessageStore) -> int:
        """The row for which messages are claimed; a new one where there is none; 0 when this is closed, which waits for no look."""
        if self._worker_id or self._closed.is_set():
            return self._worker_id
        worker_id = store.register_worker(consumer_facts(self._queue), timedelta(seconds=self._row_seconds))
        with self._state:
            if not self._closed.is_set():
                self._worker_id = worker_id
                self._beat_at = clock.monotonic() + self._row_seconds / BEATS
                if self._thread is None or not self._thread.is_alive():
                    self._thread = threading.Thread(target=self._mind, name="jobrunner-consumer", daemon=True)
                    self._thread.start()
                return worker_id
        store.stop_worker(worker_id, Leaving("done"), self._counts)
        return 0

    def _maintain(self, store: MessageStore) -> None:
        """What every claim round does: the jobs of the dead go back, whoever they were, and what has expired ends."""
        if clock.monotonic() < self._maintain_at:
            return
        self._maintain_at = clock.monotonic() + MAINTENANCE
        expired = store.expire(EXPIRED_AT_ONCE)
        lost, count = store.rescue()
        for worker in lost:
            logger.warning("rescued what a lost worker held", extra={"worker": worker.name, "worker_id": worker.id, "jobs": count})
        if expired or count:
            self._claimer.wake()

    # -- settling

    def settle(
        self, message: Message, ending: Ending | None, *, delay: Duration | None, reason: str, place: Mapping[str, Any]
    ) -> None:
        """Write how the delivery of a message ended, fenced by its lease. Raises LeaseLost."""
        outcome = outcome_of(message.receipt, ending, delay=delay, reason=reason)
        if settle_elsewhere(outcome, place, hint_of(self._home, message)):
            self._look_later(message)
            return
        with self._database_store() as store:
            refused = bool(store.finish([outcome]))
        self._forget(message.receipt)
        if refused:
            message.lose()
            raise LeaseLost(*message.receipt)
        self._count(ending)
        if message.key is not None:  # the next one of its key can go: to a thread that waits here, or in another process; waits for no look
            with self._state:
                self._ended.add(message.key)
            self.call()
            self._home.wake(self._queue)

    def _look_later(self, message: Message) -> None:
        """It is held until its lease is over, and not for ever: should that transaction roll back, it must come again."""
        with self._state:
            self._held.bound(message.receipt, clock.monotonic() + ELSEWHERE)
            self._state.notify_all()

    def extend(self, message: Message, seconds: float) -> None:
        """Hold a message for so many seconds from now. Raises LeaseLost."""
        with self._state:
            if not self._held.extend(message.receipt, clock.monotonic() + seconds):
                raise LeaseLost(*message.receipt)
            self._state.notify_all()

    def holds(self, receipt: tuple[int, int]) -> Message | None:
        """The message of that receipt, if this process holds it."""
        with self._state:
            hold = self._held.get(receipt)
        return None if hold is None else hold.message

    def _forget(self, receipt: tuple[int, int]) -> bool:
        """Hold it no longer; False when somebody else has seen to that."""
        with self._state:
            self._used_at = clock.monotonic()
            return self._held.pop(receipt, None) is not None

    def _count(self, ending: Ending | None) -> None:
        """By whoever's word was accepted: of one delivery the database accepts one."""
        name = "succeeded" if ending is None else "failed"
        with self._state:
            self._counts = self._counts._replace(**{name: getattr(self._counts, name) + 1})

    # -- the thread

    def _mind(self) -> None:
        """Renew the lease of the row, and give back what is held for longer than was asked for."""
        while True:
            with self._state:
                now = clock.monotonic()
                times = [self._beat_at, *(hold.until for hold in self._held.values())]
                if self._thread is threading.current_thread() and min(times) > now:
                    self._state.wait(min(times) - now)
                now = clock.monotonic()
                idle = not self._held and not self._waiting and now - self._used_at >= IDLE
                if self._thread is not threading.current_thread():  # closed
                    return
            try:
                self._tend(now, idle=idle)
            except Exception as error:  # a thread that ended would leave a row that nobody renews, and claims that find nothing
                if not isinstance(error, (DatabaseUnreachable, OSError)) and not is_transient(error):
                    logger.exception("messages cannot be given back, or their lease not renewed")
                with self._state:
                    self._beat_at = clock.monotonic() + min(RETRY, self._row_seconds / BEATS)
                    if self._thread is threading.current_thread():
                        self._state.wait(min(RETRY, self._row_seconds / BEATS))
            with self._state:
                if idle and not self._worker_id:
                    self._thread = None
                    return

    def _tend(self, now: float, *, idle: bool) -> None:
        # The lease first: a message that cannot be given back must not cost the others theirs.
        if idle or now >= self._beat_at:
            with self._database_store() as store:
                if not idle:
                    self._beat(store)
                if self._taking.acquire(blocking=False):  # a look may wait for a connection for longer than the row lives
                    try:
                        if not idle:
                            self._reconcile(store)
                        elif not self._held and not self._waiting:
                            store.stop_worker(self._worker_id, Leaving("done"), self._counts)
                            self._worker_id, self._row_seconds = 0, LONGEST_ROW
                    finally:
                        self._taking.release()
        with self._state:
            over = self._held.take_over(now, clock.monotonic() + RETRY)
        if over:
            self._give_back(over)

    def _beat(self, store: MessageStore) -> None:
        with self._state:
            worker_id, seconds = self._worker_id, self._row_seconds
        gone = bool(worker_id) and not store.heartbeat(worker_id, timedelta(seconds=seconds), WorkerSight(), self._counts)
        lost: list[Message] = []
        with self._state:
            gone = gone and self._worker_id == worker_id  # a look does not wait for this, nor a close
            if gone:
                lost, self._worker_id = self._held.empty(), 0
            # At once, when a shorter life was asked for while a longer one was being written.
            self._beat_at = 0.0 if seconds > self._row_seconds else clock.monotonic() + seconds / BEATS
        for message in lost:
            message.lose()
        if gone:
            logger.warning("lease lost: messages go to others", extra={"queue": self._queue, "messages": len(lost)})

    def _give_back(self, messages: Sequence[Message]) -> None:
        said = "its lease was over: the consumer neither acknowledged nor extended it in time"
        with self._database_store() as store:
            over, gone, error = give_back(store, messages, said)
        for message in over:
            word = message.settled  # before it is forgotten: whoever settles it at this moment in another thread forgets it first
            held = self._forget(message.receipt)
            message.lose()
            if message.receipt not in gone:
                self._count(Ending.RETRY)
            elif held and word is not None:  # in somebody's transaction, which has committed
                self._count(None if word == "ack" else Ending.RETRY)
        if count := sum(message.receipt not in gone for message in over):
            logger.warning("messages were held for longer than their lease", extra={"queue": self._queue, "messages": count})
        if over:
            self.call()
            self._home.wake(self._queue)
        if error is not None:
            raise error

    # -- the end

    def close(self) -> None:
        """Give back what is held and close the row; who waits in `take`, or comes later, gets nothing."""
        looked = self._taking.acquire(timeout=RETRY)  # a look under way has its messages first; not for ever, where the database is away
        with self._state:
            self._closed.set()
            self.call()
            held = self._held.empty()
            thread, worker_id, self._thread, self._worker_id = self._thread, self._worker_id, None, 0
        if looked:
            self._taking.release()
        if thread is not None and thread is not threading.current_thread():
            thread.join(RETRY)
        if not worker_id:
            return
        failed: Exception | None
        try:
            with self._database_store() as store:
                failed = give_back(store, held, "the consumer ended without a word about it").error if held else None
                store.stop_worker(worker_id, Leaving("done"), self._counts)
        except Exception as error:  # such as a pool without a free connection: whoever closes has more to close
            if not isinstance(error, (psycopg.Error, DatabaseUnreachable, OSError)):
                logger.exception("a consumer could not be closed")
            failed = error
        if failed is not None:
            logger.warning("messages not given back: they go to others when their lease is over", extra={"error": type(failed).__name__})
        for message in held:
            message.lose()

    @contextlib.contextmanager
    def _database_store(self) -> Iterator[MessageStore]:
        with self._home.database.store() as store:
            yield MessageStore(store.connection)


def _close_all() -> None:
    for consumer in list(_known):
        with contextlib.suppress(Exception):  # the leases end by themselves
            consumer.close()


def _after_fork() -> None:
    for consumer in list(_known):  # also those that another thread was closing: its locks would be held for ever
        consumer.forget()


_known: weakref.WeakSet[Consumer] = weakref.WeakSet()
atexit.register(_close_all)
os.register_at_fork(after_in_child=_after_fork)

