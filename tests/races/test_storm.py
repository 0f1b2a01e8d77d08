"""Workers, rescuers and operators all at once: whatever interleaving comes about, no job is lost, doubled or finished by two attempts."""

from __future__ import annotations

import os
import random
import threading
from collections import Counter
from contextlib import suppress
from datetime import timedelta

import psycopg

from jobrunner.errors import DuplicateJob, IllegalTransition
from jobrunner.jobs import Ending, Succeeded, Unsuccessful, WorkerCounts, WorkerSight
from jobrunner.transient import is_transient
from tests.support.rows import TASK
from tests.support.sessions import PATIENCE

JOBS, THREADS, ROUNDS = 80, 4, 120
LEASE = timedelta(hours=1)
ENDINGS = [None, None, *Ending]


class Actor:
    """One thread: a worker that sometimes loses its lease and goes on regardless, and an operator now and then."""

    def __init__(self, session, ids, seed):
        self.session, self.store, self.ids, self.dice = session, session.store, ids, random.Random(seed)
        self.worker = session.worker()
        self.attempts: list[tuple[int, int]] = []  # never forgotten, so most of them are stale
        self.claimed: Counter[tuple[int, int]] = Counter()
        self.ended: Counter[tuple[int, int]] = Counter()

    def claim(self):
        for job in self.store.claim(self.worker, [TASK], "default", 0, self.dice.randint(1, 8)):
            self.attempts.append((job.id, job.lease))
            self.claimed[job.id, job.lease] += 1

    def finish(self):
        chosen = set(self.dice.choices(self.attempts, k=10)) if self.attempts else set()
        outcomes = [self.outcome(self.dice.choice(ENDINGS), *attempt) for attempt in chosen]
        refused = self.store.finish(outcomes)
        self.ended.update((outcome.id, outcome.lease) for outcome in outcomes if outcome not in refused)

    @staticmethod
    def outcome(ending, job_id, lease):
        if ending is None:
            return Succeeded(job_id, lease, None, 1, 1, 1.0)
        return Unsuccessful(ending, job_id, lease, run_ms=1, delay_ms=0)

    def lose_the_lease(self):
        self.session.age_worker(self.worker)
        assert not self.store.heartbeat(self.worker, LEASE, WorkerSight(), WorkerCounts())
        self.worker = self.session.worker()

    def rescue(self):
        self.store.rescue()

    def operate(self):
        verb = self.dice.choice([self.store.cancel, self.store.requeue, self.store.requeue, self.ask_many])
        verb(self.dice.choice(self.ids))

    def ask_many(self, _job_id):
        ids = {"ids": self.dice.sample(self.ids, 20)}
        for name in ("request_cancel", "cancel", "run_now", "requeue"):
            self.session.run(name, ids)

    def round(self):
        """One thing, chosen at random; refusals and deadlocks are answers."""
        verbs = [self.claim, self.finish, self.lose_the_lease, self.rescue, self.operate]
        try:
            self.dice.choices(verbs, weights=[8, 8, 1, 2, 6])[0]()
        except (IllegalTransition, DuplicateJob):
            pass
        except psycopg.Error as error:
            if not is_transient(error):
                raise


def test_a_storm_of_everything_loses_and_doubles_nothing(scene, sessions):
    """Each job has one row, each lease was given once and ended at most one attempt, and every job still running can be rescued."""
    seed = int.from_bytes(os.urandom(4))
    ids = [scene.job(lease=0, max_attempts=9, max_crashes=9, backoff_base="0") for _ in range(JOBS)]
    actors = [Actor(sessions(), ids, f"{seed}-{number}") for number in range(THREADS)]
    begin = threading.Barrier(THREADS)

    def run(actor):
        with suppress(psycopg.errors.InsufficientPrivilege):  # only faster with it
            actor.session.execute("SET deadlock_timeout = '50ms'")
        begin.wait(PATIENCE)
        for _ in range(ROUNDS):
            actor.round()

    for call in [actor.session.call(lambda actor=actor: run(actor)) for actor in actors]:
        call.result(4 * PATIENCE)

    everything = scene.snapshot()
    assert sorted(row["id"] for row in everything.jobs + everything.job_history) == ids, f"seed {seed}"
    for counter in ("claimed", "ended"):
        times: Counter[tuple[int, int]] = sum((getattr(actor, counter) for actor in actors), Counter())
        assert max(times.values()) == 1, f"{counter} twice, seed {seed}: {times.most_common(3)}"
    for actor in actors:
        scene.age_worker(actor.worker)
    scene.execute("UPDATE jobrunner.workers SET rescued_at = NULL")
    scene.store.rescue()
    assert scene.one("SELECT count(*) FROM jobrunner.jobs WHERE state = 'running'") == 0, f"seed {seed}"
    assert scene.one("SELECT count(*) FROM jobrunner.jobs") + scene.one("SELECT count(*) FROM jobrunner.job_history") == JOBS
