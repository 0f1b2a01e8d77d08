"""One process of a storm: `python -m tests.support.rollup_storm DSN SEED ROUNDS` ends jobs in every way there is, for so many rounds.

It must not requeue: what was counted stays counted, but the row that it is compared with would go.
"""

from __future__ import annotations

import random
import sys
from datetime import timedelta

import psycopg

from jobrunner.errors import IllegalTransition, JobNotFound
from jobrunner.jobs import Ending, Outcome, Succeeded, Unsuccessful, WorkerCounts, WorkerSight
from jobrunner.store import Store
from jobrunner.transient import is_transient
from tests.support.rows import Scene

TASKS, QUEUES = ("storm.a", "storm.b", "storm.c"), ("default", "mail")
LEASE = timedelta(hours=1)


class Process:
    """A worker that loses its lease now and then and goes on regardless, an operator, and somebody with plain SQL."""

    def __init__(self, connection: psycopg.Connection, seed: str) -> None:
        self.scene, self.store, self.dice = Scene(connection), Store(connection), random.Random(seed)
        self.worker = self.register()
        self.attempts: list[tuple[int, int]] = []  # stale ones too

    def register(self) -> int:
        """A new worker row."""
        facts = {"name": "w", "host": "h", "pid": 1, "kind": "test", "version": "0", "queues": QUEUES, "tasks": TASKS, "slots": 1}
        return self.store.register_worker(facts | {"queues": list(QUEUES), "tasks": list(TASKS)}, LEASE)

    def enqueue(self) -> None:
        """Some jobs that bear little."""
        for _ in range(self.dice.randint(1, 6)):
            self.scene.job(
                task=self.dice.choice(TASKS), queue=self.dice.choice(QUEUES), lease=0, max_attempts=self.dice.randint(1, 3),
                max_crashes=self.dice.randint(1, 3), backoff_base="0", run_at=f"=now() - interval '{self.dice.randint(0, 9_000)} s'",
            )  # fmt: skip

    def claim(self) -> None:
        """Some of them."""
        self.attempts += [(job.id, job.lease) for job in self.store.claim(self.worker, TASKS, self.dice.choice(QUEUES), 0, 8)]

    def outcome(self, job_id: int, lease: int) -> Outcome:
        """Any end, after anything from no time to a day."""
        ending = self.dice.choice([None, None, None, *Ending])
        run_ms = int(10 ** self.dice.uniform(0, 8)) - 1
        if ending is None:
            return Succeeded(job_id, lease, None, run_ms, self.dice.choice([None, 1, 40]), 1.0)
        begun = None if ending is Ending.RELEASE and self.dice.random() < 0.3 else run_ms  # a third never began
        return Unsuccessful(ending, job_id, lease, "builtins.ValueError", "no", run_ms=begun, cpu_ms=self.dice.choice([None, 2]), delay_ms=0)

    def finish(self) -> None:
        """A batch, superseded attempts among it; one in five is taken back, as part of a transaction of somebody's own."""
        chosen = set(self.dice.choices(self.attempts[-40:], k=12)) if self.attempts else set()
        with self.store.connection.transaction(force_rollback=self.dice.random() < 0.2):
            self.store.finish([self.outcome(*attempt) for attempt in chosen])
            self.scene.execute("SELECT 1")

    def operate(self) -> None:
        """Cancel a job, whether it waits, runs or is over."""
        self.store.cancel(self.scene.one("SELECT coalesce(max(id), 0) FROM jobrunner.jobs") - self.dice.randint(0, 20))

    def lose(self) -> None:
        """The lease, and with it what this worker runs."""
        self.scene.age_worker(self.worker)
        assert not self.store.heartbeat(self.worker, LEASE, WorkerSight(), WorkerCounts())
        self.worker = self.register()

    def rescue(self) -> None:
        """What lost workers held."""
        self.store.rescue()

    def settle(self) -> None:
        """At once, in the middle of what is still being counted, and only a few."""
        self.store.settle_rollups(timedelta(), timedelta(days=1), self.dice.choice([1, 5, 1_000]))

    def round(self) -> None:
        """One thing, chosen at random; refusals and deadlocks are answers."""
        verbs = {self.enqueue: 6, self.claim: 8, self.finish: 12, self.operate: 2, self.lose: 1, self.rescue: 2, self.settle: 3}
        try:
            self.dice.choices(list(verbs), weights=list(verbs.values()))[0]()
        except (IllegalTransition, JobNotFound):
            pass
        except psycopg.Error as error:
            if not is_transient(error):
                raise


def main(dsn: str, seed: str, rounds: int) -> None:
    """Do it."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        process = Process(connection, seed)
        process.enqueue()
        for _ in range(rounds):
            process.round()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
