"""Owns the worker's main connection: one thread that writes outcomes, claims, rescues and looks for cancellations, in rounds.

It must not touch the children: what it learns goes to the main loop as events. Everything that crosses the thread is guarded by
one condition.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Any

import psycopg

from jobrunner import clock, jitter
from jobrunner.claimer import LONGEST_STEP_BACK, Room
from jobrunner.connecting import connect, plan_once
from jobrunner.errors import DatabaseUnreachable
from jobrunner.jobs import Ended, Ending, Unsuccessful
from jobrunner.store import Store
from jobrunner.transient import is_transient
from jobrunner.worker import notebook
from jobrunner.worker.chores import Chores
from jobrunner.worker.finisher import Finisher
from jobrunner.worker.log import logger

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from psycopg import Connection

    from jobrunner.claimer import Claimer
    from jobrunner.jobs import ClaimedJob, LogLine, Note
    from jobrunner.settings import Dsn
    from jobrunner.worker.deliveries import Deliveries
    from jobrunner.worker.upkeep import Report

MAINTENANCE = 1.0  # seconds between looks for lost workers, cancellations and jobs that have expired
MAINTENANCE_SLACK = 0.25  # seconds that such a look waits for a claim to go with, while there is no job that could be cancelled
CROWD_SLACK = LONGEST_STEP_BACK  # seconds, while it waits for others that are in the way: they look as well
EXPIRED_AT_ONCE = 500  # jobs that one statement ends: a round stays short
_MAX_BACKOFF = 5.0  # seconds between attempts to reach a database that is away
_BATCH = 1000  # outcomes of one transaction
_LINGER = 0.005  # seconds that outcomes of short jobs wait for more of them: a statement for many costs half of what several for few do
_MOST_LINGER = 0.05  # seconds; in between, as long as the last ones took to write: a database that is slow gets fewer, larger statements
_ENOUGH = 250  # outcomes for which that is not worth it any more


class Link(threading.Thread):
    """Rounds of finish, claim and maintenance on one connection that may break at any time.

    Args:
        claimers: one for each lane of the pool, in the same order.
        chores: rare steps that keep the tables in shape; see `Upkeep`.
        deliveries: looks for events that groups of the application have to get.
    """

    def __init__(
        self,
        dsn: Dsn,
        claimers: Sequence[Claimer],
        wake_main: Callable[[], None],
        chores: Sequence[Callable[[Store], Report]] = (),
        deliveries: Deliveries | None = None,
    ) -> None:
        super().__init__(name="jobrunner-link", daemon=True)
        self.dsn, self.claimers = dsn, claimers
        self.worker_id = 0
        self.rescued_count = 0
        self.finisher = Finisher()
        self.events: deque[tuple[str, Any]] = deque()
        self.fatal: BaseException | None = None
        self._wake_main = wake_main
        self._condition = threading.Condition()
        self._outcomes: list[Ended] = []
        self._starts: list[tuple[int, int, float]] = []
        self._rooms = [Room(0) for _ in claimers]
        self._notebook = notebook.Notebook()
        self._write_at = 0.0  # when the outcomes that wait are to be written
        self._claims = 0  # those that took something
        self._said_idle = False
        self._linger = _LINGER
        self._claiming = True
        self._closing = False
        self._woken = False
        self._connection: Connection[Any] | None = None
        self._held: dict[int, int] = {}  # job id → lease, from a claim's answer to the commit of its outcome
        self._keys: dict[int, tuple[str, str]] = {}  # queue and ordering key of those of them that have one
        self._maintain_at = 0.0
        self._chores = Chores(dsn, chores)
        self._deliveries = deliveries
        self._tidy = False
        self._outage_since: float | None = None
        self._failures = 0

    # -- from other threads

    def exchange(
        self, outcomes: list[Ended], starts: list[tuple[int, int, float]], rooms: list[Room], seen: int, *, may_wait: bool = False
    ) -> None:
        """The main loop hands over what happened and how much it can take.

        Args:
            rooms: of each lane.
            seen: how many claims with jobs the main loop has taken in; `rooms` count only when that is all of them, or the same
                room would be filled twice.
            may_wait: whether outcomes may wait a few milliseconds for others, as many more are about to come.
        """
        with self._condition:
            now = clock.monotonic()
            fresh = bool(outcomes) and not self._outcomes
            if fresh or not may_wait:
                self._write_at = now + self._linger if may_wait else 0.0
            self._outcomes += outcomes
            self._starts += starts
            news = seen == self._claims and rooms != self._rooms
            if news:
                self._rooms = rooms
            if fresh or starts or self._outcomes_due(now) or (news and any(room.total > 0 for room in rooms)):
                self._condition.notify()

    def hear(self, notes: Sequence[Note], lines: Sequence[LogLine]) -> None:
        """What running jobs say of themselves; it is written before the ends that are handed over after it."""
        with self._condition:
            fresh = not self._notebook
            self._notebook.add(notes, lines)
            if fresh:
                self._condition.notify()

    def wake(self) -> None:
        """A wake-up came in."""
        with self._condition:
            self._woken = True
            self._condition.notify()

    def stop_claiming(self) -> None:
        """No more jobs; outcomes still go out."""
        with self._condition:
            self._claiming = False

    def close(self, *, tidy: bool = False) -> None:
        """Write what is left, take the rare steps when asked to `tidy`, and end the thread."""
        with self._condition:
            self._claiming = False
            self._closing, self._tidy = True, tidy
            self._condition.notify()

    def join_as(self, worker_id: int) -> None:
        """The worker has registered; after a lost lease, anew."""
        with self._condition:
            self.worker_id = worker_id
            self._held.clear()
            self._keys.clear()

    def unwritten(self) -> int:
        """Outcomes and words of jobs that are not in the database yet."""
        with self._condition:
            return len(self._outcomes) + bool(self._notebook)

    # -- the thread

    def run(self) -> None:
        """Rounds until closed and nothing is left to write."""
        while True:
            with self._condition:
                self._condition.wait_for(self._has_work, timeout=self._patience())
                done = self._closing and not self._outcomes and not self._notebook
            try:
                if done:
                    self._finish()
                    break
                self._round()
                self._recovered()
            except (psycopg.Error, DatabaseUnreachable, OSError) as error:
                if not (isinstance(error, (DatabaseUnreachable, OSError)) or is_transient(error)):
                    self._fail(error)
                    return
                self._outage(error)
            except BaseException as error:  # noqa: BLE001  the main loop must learn of it, or the worker would stand still
                self._fail(error)
                return
        self._disconnect()

    def _has_work(self) -> bool:
        now = clock.monotonic()
        if self._outcomes_due(now) or self._starts or self._closing:
            return True
        return any(self._woken or self._delivers(now) or claimer.wants(room, now) for claimer, room in self._with_room())

    def _delivers(self, now: float) -> bool:
        return self._deliveries is not None and self._deliveries.due(now)

    def _outcomes_due(self, now: float) -> bool:
        return bool(self._outcomes) and (now >= self._write_at or len(self._outcomes) >= _ENOUGH)

    def _with_room(self) -> list[tuple[Claimer, Room]]:
        """The claimers of lanes that want more jobs, and how many."""
        if not self._claiming:
            return []
        return [(claimer, room) for claimer, room in zip(self.claimers, self._rooms, strict=True) if claimer.usable(room) > 0]

    def _patience(self) -> float:
        now = clock.monotonic()
        with_room = self._with_room()
        times = [self._maintain_at + self._slack(), *(claimer.next_at for claimer, _ in with_room)]
        if with_room and self._deliveries is not None and self._deliveries.tasks:
            times.append(self._deliveries.next_at)
        if self._notebook.due_at is not None:
            times.append(self._notebook.due_at)
        if self._outcomes:
            times.append(self._write_at)
        return max(0.0, min(times) - now)

    def _slack(self) -> float:
        """Seconds that maintenance may wait for the next claim, so that both take one wake-up of this thread."""
        if self._held:
            return 0.0
        return CROWD_SLACK if any(claimer.crowded for claimer in self.claimers) else MAINTENANCE_SLACK

    def _round(self) -> None:
        store = self._connected()
        began = clock.monotonic()
        with self._condition:
            outcomes, starts = self._outcomes[:_BATCH], self._starts[:]
        if starts:
            begun = store.start(starts)
            with self._condition:
                del self._starts[: len(starts)]
            self._tell("started", ({job_id for job_id, _, _ in starts}, begun))
        self._write_words(store, at_once=bool(outcomes) or self._closing)
        if outcomes:
            self.finisher.write(store, outcomes)
            self._linger = min(_MOST_LINGER, max(_LINGER, clock.monotonic() - began))
            with self._condition:  # told as well: who sees nothing unwritten finds the word that something was, which may be due again
                del self._outcomes[: len(outcomes)]
                self._said_idle = False
                self._tell("written", len(outcomes))
            for outcome in outcomes:
                self._held.pop(outcome.id, None)
            self._follow(outcomes)
            if self._deliveries is not None:
                self._deliveries.ended()
        # Before the claim: a worker that drains must not leave before it has looked for the jobs of lost ones.
        if maintains := clock.monotonic() >= self._maintain_at:
            self._maintain(store)
        self._deliver(store)
        self._claim(store, began)
        if maintains:
            self._chores.mind(store, self.worker_id)

    def _finish(self) -> None:
        """Nothing is left to write. The rare steps are for a database that answers; others take them as well."""
        tidy = self._tidy and self._outage_since is None
        try:
            if self._held and self._outage_since is None:
                self._give_back(self._connected())
            self._chores.leave(self._connected if tidy else None)
        except (psycopg.Error, DatabaseUnreachable, OSError) as error:
            logger.warning("upkeep broken off; others take it up", extra={"error": type(error).__name__})

    def _follow(self, outcomes: Sequence[Ended]) -> None:
        """Where a job with an ordering key has ended, the next of the same key can begin: at once, not with the next look."""
        if not self._keys:
            return
        ended: dict[str, set[str]] = {}
        for outcome in outcomes:
            if (found := self._keys.pop(outcome.id, None)) is not None:
                ended.setdefault(found[0], set()).add(found[1])
        if ended:
            for claimer in self.claimers:
                claimer.follow(ended)

    def _write_words(self, store: Store, *, at_once: bool) -> None:
        """Write what jobs said: before any end that is about to be written, else when it has waited long enough."""
        with self._condition:
            due = self._notebook.due_at
            if due is None or (not at_once and clock.monotonic() < due):
                return
            notes, lines = self._notebook.take()
        try:
            superseded = notebook.write(store, notes, lines)
        except BaseException:
            with self._condition:
                self._notebook.put_back(notes, lines)
            raise
        for note in superseded:
            self._tell("superseded", (note.id, note.lease))

    def _deliver(self, store: Store) -> None:
        """Before the claim, which then finds the jobs of groups that have something to get."""
        if self._deliveries is None or not self._deliveries.tasks:
            return
        with self._condition:
            if self._woken:
                self._deliveries.wake()
            due = self._claiming and bool(self._with_room()) and self._deliveries.due(clock.monotonic())
        if due and self._deliveries.look(store):
            for claimer in self.claimers:
                claimer.wake()

    def _claim(self, store: Store, began: float) -> None:
        with self._condition:
            if self._woken:
                self._woken = False
                for claimer in self.claimers:
                    claimer.wake()
            now = clock.monotonic()
            due = [claimer.wants(room, now) for claimer, room in zip(self.claimers, self._rooms, strict=True)]
            if not self._claiming or not any(due):
                return
            rooms = [Room(room.total, dict(room.by_queue), room.early) for room in self._rooms]
        worker_id = self.worker_id
        by_queue = rooms[0].by_queue
        claimed: list[list[ClaimedJob]] = []
        for claimer, room, ready in zip(self.claimers, rooms, due, strict=True):
            room.by_queue = by_queue  # what one lane takes of a bounded queue, the next cannot
            jobs = claimer.claim(store, worker_id, room) if ready and room.total > 0 else []
            by_queue = room.by_queue
            for job in jobs:
                self._held[job.id] = job.lease
                if job.ordering_key is not None:
                    self._keys[job.id] = job.queue, job.ordering_key
            claimed.append(jobs)
        if any(claimed):
            with self._condition:
                self._claims += 1
                self._rooms = [Room(0) for _ in self.claimers]  # until the main loop has taken these in and says how much is left
            self._said_idle = False
            waited = max(claimer.waited for claimer, jobs in zip(self.claimers, claimed, strict=True) if jobs)
            self._tell("claimed", (worker_id, claimed, waited + clock.monotonic() - began))
        if not self._said_idle and all(claimer.idle for claimer in self.claimers):
            self._said_idle = True
            self._tell("idle", None)

    def _maintain(self, store: Store) -> None:
        self._maintain_at = clock.monotonic() + MAINTENANCE
        any_lost, any_expired = store.overdue()
        if any_expired and store.expire(EXPIRED_AT_ONCE) == EXPIRED_AT_ONCE:
            self._maintain_at = 0.0  # there are more
        lost, count = store.rescue() if any_lost else ([], 0)
        self.rescued_count += count
        for worker in lost:
            logger.warning("rescued the jobs of a lost worker", extra={"worker": worker.name, "worker_id": worker.id, "jobs": count})
        if count:
            for claimer in self.claimers:
                claimer.wake()
        if self._held:
            cancelled = [held.id for held in store.held_jobs(self.worker_id) if held.cancel_requested]
            if cancelled:
                self._tell("cancel", cancelled)

    def _connected(self) -> Store:
        if self._connection is None or self._connection.closed:
            self._connection = connect(self.dsn, application_name="jobrunner-worker")
            plan_once(self._connection)
            self._reconcile(Store(self._connection))
        return Store(self._connection)

    def _reconcile(self, store: Store) -> None:
        """After a broken connection a claim may have committed whose answer never came: give those jobs back."""
        unknown = [held for held in store.held_jobs(self.worker_id) if self._held.get(held.id) != held.lease]
        if unknown:
            self.finisher.write(store, [Unsuccessful(Ending.RELEASE, held.id, held.lease) for held in unknown])

    def _give_back(self, store: Store) -> None:
        """What a claim brought that was under way when the main loop ended: nobody has taken that in, and this worker is no more."""
        late = [held for held in store.held_jobs(self.worker_id) if self._held.get(held.id) == held.lease]
        if late:
            self.finisher.write(store, [Unsuccessful(Ending.RELEASE, held.id, held.lease) for held in late])

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _outage(self, error: BaseException) -> None:
        self._disconnect()
        now = clock.monotonic()
        if self._outage_since is None:
            self._outage_since = now
            logger.error("database away; running jobs go on, outcomes wait", extra={"error": type(error).__name__})
        self._failures += 1
        pause = min(_MAX_BACKOFF, 0.1 * 2 ** min(self._failures, 10)) * jitter.between(0.5, 1.0)
        with self._condition:
            self._condition.wait_for(lambda: False, timeout=pause)

    def _recovered(self) -> None:
        if self._outage_since is not None:
            seconds = round(clock.monotonic() - self._outage_since, 3)
            logger.info("database back", extra={"seconds": seconds, "waiting": self.unwritten()})
            self._outage_since = None
        self._failures = 0

    def _fail(self, error: BaseException) -> None:
        self.fatal = error
        self._tell("fatal", error)

    def _tell(self, event: str, value: Any) -> None:
        self.events.append((event, value))
        self._wake_main()
