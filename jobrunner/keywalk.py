"""Owns where to look for the next jobs of ordering keys: which queues have some, how far the walk over them has come, which key ended.

It must not decide when to look nor how many to take (`claimer` does), and not know more of a key than its text: the statement finds
which of its jobs is next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobrunner import clock
from jobrunner.jobs import Walk
from jobrunner.store import Overtaken

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from jobrunner.jobs import ClaimedJob
    from jobrunner.store import Store

KEYS = 200  # that one claim walks over; a probe of the index each, two microseconds
STEPS = 10  # claims in a row that one look makes before it lets others have their turn
AGAIN = 3  # times that a claim which was overtaken is tried at once: the next snapshot sees what the other took

Pair = tuple[int, str]  # priority and queue


class KeyWalk:
    """The walk of one claimer; used by one thread.

    Attributes:
        due_at: `clock.monotonic()` when the first next job is due that a walk since `begin` has seen waiting; infinite when none has.
    """

    def __init__(self) -> None:
        self._cost = 0.0
        self.due_at = float("inf")
        self._behind: dict[Pair, str | None] = {}  # pairs of queues with keys; None: walked to the end
        self._given: dict[str, set[str]] = {}  # queue → keys of which a job has just ended

    def begin(self, pairs: Iterable[Pair]) -> None:
        """A fresh look has found these pairs with something due, in queues that hold jobs with keys.

        A walk that is under way goes on where it is: begun anew at every look it might never come to the last keys.
        """
        self._behind = {pair: self._behind.get(pair) or "" for pair in pairs}
        queues = {queue for _, queue in self._behind}
        self._given = {queue: keys for queue, keys in self._given.items() if queue in queues}  # elsewhere nothing follows
        self.due_at = float("inf")

    def follow(self, ended: Mapping[str, Iterable[str]]) -> bool:
        """Jobs of these keys have ended: look at their next ones. False when a queue has no known pair: a fresh look must find it."""
        for queue, keys in ended.items():
            self._given.setdefault(queue, set()).update(keys)
        return ended.keys() <= {queue for _, queue in self._behind}

    def pairs(self) -> set[Pair]:
        """Where there is something to look at."""
        return {pair for pair, behind in self._behind.items() if behind is not None or pair[1] in self._given}

    def looked(self) -> None:
        """Every pair had its turn: what had ended was looked at wherever its next job may be."""
        self._given.clear()

    def take_cost(self) -> float:
        """Seconds that walks took which found less than was asked for, since the last call: looks at everything wait in proportion."""
        cost, self._cost = self._cost, 0.0
        return cost

    def claim(self, store: Store, worker_id: int, tasks: Sequence[str], pair: Pair, take: int) -> list[ClaimedJob]:
        """At most `take` jobs, each the next one of its key."""
        priority, queue = pair
        given = tuple(sorted(self._given.get(queue, ())))
        taken: list[ClaimedJob] = []
        began = clock.monotonic()
        overtaken = steps = 0
        while len(taken) < take and steps < STEPS:
            behind = self._behind[pair]
            walk = Walk(behind or "", 0 if behind is None else KEYS, given)
            try:
                found = store.claim_ordered(worker_id, tasks, queue, priority, take - len(taken), walk)
            except Overtaken:
                overtaken += 1
                if overtaken > AGAIN:
                    break  # the next look finds it
                continue
            steps += 1
            given = ()
            taken += found.jobs
            if found.due_in_ms is not None:
                self.due_at = min(self.due_at, clock.monotonic() + found.due_in_ms / 1000)
            if behind is not None:
                self._behind[pair] = found.last_key if found.key_count == KEYS else None
            if self._behind[pair] is None:
                break
        if len(taken) < take:
            self._cost += clock.monotonic() - began
        elif self._behind[pair] is None:
            self._behind[pair] = ""  # full: there may be more of those just passed
        return taken
