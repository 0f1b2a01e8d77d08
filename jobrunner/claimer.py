"""Owns which queue and priority is claimed next, from where, and when to look again.

It must not run jobs nor keep them. A floor per (queue, priority) lets a claim continue behind the last key it took instead of
walking over dead entries; a scan from the start, at intervals and whenever a claim comes back short, finds what a floor hides:
rows that committed late, were retried, or are more urgent. Jobs with an ordering key have no floor: `keywalk` finds the next of each key.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from jobrunner import clock, jitter
from jobrunner.jobs import Floor
from jobrunner.keywalk import KeyWalk
from jobrunner.store import Crowded

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from jobrunner.jobs import ClaimedJob
    from jobrunner.store import Store

RESCAN = 0.25  # seconds between scans from the start while claims keep coming back full
SCAN_SHARE = 10  # a scan that took t seconds is not repeated within t times this: under a pinned snapshot it walks every dead entry
WALKS = 2  # over the dead entries: of the look at what is due, and of the claim that follows without a floor if there is something
STEP_BACK = 0.02  # seconds until a claim is tried again for which others were in the way; doubled each time
LONGEST_STEP_BACK = 2.0  # seconds: with 64 workers somebody looks in thirty times a second, and each look begins with cold caches
MOST_DOUBLINGS = 10  # enough for the longest; more would be a power too large for a float, in a crowd of days
CROWD_RESCAN = 3.0  # seconds between scans from the start in a crowd, where the others scan as well
CROWD_PATIENCE = 5.0  # seconds: somebody stands in the gate then, such as a process that was stopped while its claim was being sent
PASS_PAUSE = 0.5  # seconds until it is passed by once more
MAX_BATCH = 1000  # jobs a claim may take: more makes rows wait in memory and commits long


@dataclass(slots=True)
class Room:
    """How many jobs may be claimed now.

    Attributes:
        total: in all.
        by_queue: for queues that have a bound of their own.
        early: of the total, for slots that are about to come free; only while more jobs are due than were taken, or a worker that is
            busy would take what an idle one could begin at once.
    """

    total: int
    by_queue: Mapping[str, int] = field(default_factory=dict)
    early: int = 0

    def of(self, queue: str) -> int:
        """For one queue."""
        return min(self.total, self.by_queue.get(queue, self.total), MAX_BATCH)


class Claimer:
    """Claims for one worker; used by one thread.

    Args:
        queues: names served; each is as good as the other, urgency is a matter of priority.
        tasks: names of the tasks this worker can run.
        poll: seconds between looks at idle queues.

    Attributes:
        next_at: `clock.monotonic()` when to claim again; 0 is at once.
        idle: a fresh look found nothing due.
        walking: the last claim did not come to the end of the ordering keys: the next one goes on.
        waited: seconds that the last claim was put off because others were in the way.
    """

    def __init__(self, queues: Sequence[str], tasks: Sequence[str], poll: float) -> None:
        self.queues, self.tasks, self.poll = list(queues), list(tasks), poll
        self.next_at = 0.0
        self.idle = False
        self.walking = False
        self._floors: dict[tuple[int, str], Floor | None] = {}  # keyed so that sorting puts urgent ones first
        self._walk = KeyWalk()
        self._following = False  # whether the next job of a key that has just ended is to be looked at
        self._rest_at = 0.0  # and when to look again once it has come to its end
        self._scan_at = 0.0
        self._scanned_at = 0.0
        self._scan_costs: deque[float] = deque([0.0], maxlen=3)
        self._turn = 0
        self._crowded = 0  # times in a row that others were in the way
        self._crowded_since = 0.0  # or since the last claim that passed by
        self._pass_at = 0.0  # when it may pass by whoever stands in the gate
        self.waited = 0.0
        self._full = False  # the last claim took all that it had room for: more may be due
        self._held_back: set[str] = set()  # queues that may have more due than their own bound lets in

    def wants(self, room: Room, now: float) -> bool:
        """Whether to claim now: it is time to look, or there is room again in a queue whose bound was reached."""
        return self.usable(room) > 0 and (now >= self.next_at or self._following or any(room.of(queue) > 0 for queue in self._held_back))

    def usable(self, room: Room) -> int:
        """How much of the room a claim would use now."""
        return room.total if self._full else room.total - room.early

    @property
    def crowded(self) -> bool:
        """Whether others were in the way when it looked last: there are more workers than the queue needs."""
        return self._crowded > 0

    def wake(self) -> None:
        """Something may be due: look at once."""
        self.next_at = 0.0
        self.idle = False

    def follow(self, ended: Mapping[str, Iterable[str]]) -> None:
        """Jobs of these ordering keys (queue → keys) have ended here: the next ones of the same keys may be due."""
        if self._walk.follow(ended):
            self._following = True
        else:  # there was none when everything was looked at; since then, who knows
            self._scan_at = self.next_at = 0.0

    def claim(self, store: Store, worker_id: int, room: Room) -> list[ClaimedJob]:
        """Claim at most `room`, the most urgent first. Sets `next_at`, and `idle` when a fresh scan found nothing due."""
        taken: list[ClaimedJob] = []
        room.total, room.early = self.usable(room), 0
        self.idle, self.waited = False, 0.0
        try:
            self._take(store, worker_id, room, taken)
        except Crowded:
            if not self._crowded or clock.monotonic() < self._pass_at:
                self._step_back()
                return taken
            self._take(store, worker_id, room, taken, past_gate=True)
            now = clock.monotonic()
            self.waited, self._crowded_since, self._pass_at = now - self._crowded_since, now, now + PASS_PAUSE
        else:
            if self._crowded:
                self.waited, self._crowded = clock.monotonic() - self._crowded_since, 0
        return taken

    def _step_back(self) -> None:
        """Let others claim first and come back a little later each time: who waits outside costs nobody anything.

        The floors stay, and no scan is due meanwhile but for the usual look for what is more urgent: what was due still is.
        """
        now = clock.monotonic()
        if not self._crowded:
            self._crowded_since, self._pass_at = now, now + CROWD_PATIENCE
        pause = min(LONGEST_STEP_BACK, STEP_BACK * 2 ** min(self._crowded, MOST_DOUBLINGS))
        self._crowded += 1
        self._held_back.clear()  # or a queue with a bound of its own would have the next claim at once
        self._scan_at = max(self._scan_at, self._scanned_at + max(self.poll, CROWD_RESCAN))
        self.next_at = now + pause * jitter.between(0.5, 1.0)

    def _take(self, store: Store, worker_id: int, room: Room, taken: list[ClaimedJob], *, past_gate: bool = False) -> None:
        began = clock.monotonic()
        room.total = min(room.total, MAX_BATCH)  # what is taken then is full: it says nothing of where the queue ends
        following, self._following = self._following, False
        if (self._floors or self._walk.pairs()) and began < self._scan_at:
            was_walking = self.walking  # as the last claim left it
            full = self._full = self._claim_known(store, worker_id, room, taken, past_gate=past_gate)
            self._scan_costs[-1] += self._walk.take_cost()
            planned = self._rest_at if was_walking else self.next_at
            self.next_at = 0.0 if full or self.walking else min(planned, self._walk.due_at)
            # The latter: only a bounded queue had room, or the next job of a key was looked at, or a walk came to its end; the others'
            # time is to come.
            if full or self.walking or ((taken or following or was_walking) and began < self.next_at):
                return
        allowed_at = self._scanned_at + self._scan_pause()
        if clock.monotonic() < allowed_at:
            self.next_at = allowed_at
            return
        looked = clock.monotonic()
        due_in = self._scan(store)
        self._scanned_at = clock.monotonic()
        cost = (self._scanned_at - looked) * (WALKS if self._floors else 1)
        known = bool(self._floors) or bool(self._walk.pairs())
        full = self._full = known and self._claim_known(store, worker_id, room, taken, past_gate=past_gate)
        self._scan_costs.append(cost + self._walk.take_cost())
        self._scan_at = self._scanned_at + max(RESCAN, self._scan_pause())
        due_in = max(0.0, min(due_in, self._walk.due_at - clock.monotonic()))
        self.idle = not taken and not full and not self.walking
        self._rest_at = clock.monotonic() + (min(self.poll, due_in) if not taken else min(self.poll, due_in, RESCAN))
        self.next_at = 0.0 if full or self.walking else self._rest_at

    def _scan_pause(self) -> float:
        """How long a scan must wait after the last: nothing while scans are cheap. What they claim is no cost of theirs.

        The least of the last three counts, since a busy machine makes single ones slow.
        """
        cost = min(self._scan_costs) * SCAN_SHARE
        return cost if cost > RESCAN else 0.0

    def _scan(self, store: Store) -> float:
        """Find the pairs that have something due and drop their floors. Returns seconds until the next one is due."""
        due_in = self.poll
        self._floors.clear()
        found = store.find_due(self.queues)
        for due in found:
            if due.priority is None:
                continue
            if due.due_in_ms == 0:
                self._floors[due.priority, due.queue] = None
            else:
                due_in = min(due_in, due.due_in_ms / 1000)
        with_keys = {due.queue for due in found if due.priority is None}
        self._walk.begin(pair for pair in self._floors if pair[1] in with_keys)
        return due_in

    def _claim_known(self, store: Store, worker_id: int, room: Room, taken: list[ClaimedJob], *, past_gate: bool) -> bool:
        """Claim behind the floors until the room is used up; True when it was, so that more may be waiting."""
        self._turn += 1
        self.walking = False
        with_keys = self._walk.pairs()
        for priority, queue in self._order({*self._floors, *with_keys}):
            # Of those with keys and those without, each is first in turn: neither kind may keep the other waiting.
            for ordered in (False, True) if self._turn % 2 else (True, False):
                if (priority, queue) not in (with_keys if ordered else self._floors):
                    continue
                take = room.of(queue)
                if take <= 0:
                    if room.total <= 0:
                        return True
                    continue
                pair = (priority, queue)
                if ordered:
                    jobs = self._walk.claim(store, worker_id, self.tasks, pair, take)
                else:
                    jobs = self._claim_plain(store, worker_id, pair, take, past_gate=past_gate)
                taken += jobs
                room.total -= len(jobs)
                if jobs and queue in room.by_queue:
                    room.by_queue = {**room.by_queue, queue: room.by_queue[queue] - len(jobs)}
        if with_keys:
            self._walk.looked()
        unfinished = {queue for _, queue in self._walk.pairs()}
        self.walking = any(room.of(queue) > 0 for queue in unfinished)
        self._held_back = {queue for queue in unfinished | {queue for _, queue in self._floors} if room.of(queue) <= 0 < room.total}
        return room.total <= 0

    def _claim_plain(self, store: Store, worker_id: int, pair: tuple[int, str], take: int, *, past_gate: bool) -> list[ClaimedJob]:
        priority, queue = pair
        jobs = store.claim(worker_id, self.tasks, queue, priority, take, self._floors[pair], past_gate=past_gate)
        if jobs:
            self._floors[pair] = Floor(jobs[-1].run_at, jobs[-1].id)
        if len(jobs) < take:
            del self._floors[pair]
        return jobs

    def _order(self, pairs: Iterable[tuple[int, str]]) -> list[tuple[int, str]]:
        """Urgent first; among queues of one priority each gets the first turn in turn."""
        shift = self._turn % len(self.queues)
        rank = {queue: position for position, queue in enumerate(self.queues[shift:] + self.queues[:shift])}
        return sorted(pairs, key=lambda pair: (pair[0], rank[pair[1]]))
