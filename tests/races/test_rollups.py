"""Roll-ups under fire: they say to the last job what the rows say, and counting makes nobody wait for anybody."""

from __future__ import annotations

import secrets
import subprocess
import sys
from datetime import timedelta

from jobrunner.jobs import Ending, Succeeded, Unsuccessful
from jobrunner.states import State
from tests.support.rollups import counted, outcomes, reckoned
from tests.support.rows import LEASE
from tests.support.sessions import PATIENCE

PROCESSES, ROUNDS = 4, 250
DAY = timedelta(days=1)


def test_after_a_storm_the_rollups_are_what_the_rows_say(dsn, scene):
    """Processes end jobs in every way at once, some take it back, and settle meanwhile: counts, sums and histograms are exact."""
    seed = secrets.token_hex(4)
    command = [sys.executable, "-m", "tests.support.rollup_storm", dsn]
    storm = [subprocess.Popen([*command, f"{seed}-{number}", str(ROUNDS)]) for number in range(PROCESSES)]
    assert [process.wait(4 * PATIENCE) for process in storm] == [0] * PROCESSES, f"seed {seed}"
    ended = outcomes(scene.connection)
    every = {"succeeded", "failed", "cancelled", "quarantined", "retried", "crashed", "snoozed", "released"}
    assert set(ended) == every, f"seed {seed}"
    for hourly in (False, True):
        assert counted(scene.connection, hourly=hourly) == reckoned(scene.connection, hourly=hourly), f"seed {seed}"
    while scene.store.settle_rollups(timedelta(), DAY, 100):
        assert outcomes(scene.connection) == ended, f"seed {seed}"
    assert scene.one("SELECT count(*) FROM jobrunner.rollup_pending WHERE slice < now() - interval '10 s'") == 0
    for hourly in (False, True):
        assert counted(scene.connection, hourly=hourly) == reckoned(scene.connection, hourly=hourly), f"seed {seed}"


def running(scene, count):
    """So many jobs of one task that run."""
    worker = scene.worker()
    return [scene.job(State.RUNNING, worker_id=worker) for _ in range(count)]


def test_two_that_finish_jobs_of_one_task_do_not_wait_for_each_other(scene, sessions):
    """While one has not committed, another ends jobs of the same queue, task and outcome, in the same minute, and commits."""
    jobs = running(scene, 4)
    first, second = sessions(), sessions.impatient()
    with first.connection.transaction():
        assert first.store.finish([Succeeded(job, LEASE, None, 1, 1, 1.0) for job in jobs[:2]]) == []
        assert second.store.finish([Succeeded(job, LEASE, None, 1, 1, 1.0) for job in jobs[2:]]) == []
        assert outcomes(scene.connection) == {"succeeded": 2}
    assert outcomes(scene.connection) == {"succeeded": 4}


def test_opposite_orders_do_not_deadlock(scene, sessions):
    """Two transactions that end jobs in the same two ways, each in the other's order, both come to their end."""
    jobs = running(scene, 4)
    first, second = sessions.impatient(), sessions.impatient()
    ends = (lambda job: Succeeded(job, LEASE, None, 1, 1, 1.0)), (lambda job: Unsuccessful(Ending.FAIL, job, LEASE, run_ms=1))
    with first.connection.transaction(), second.connection.transaction():
        for session, order, mine in ((first, ends, jobs[:2]), (second, ends[::-1], jobs[2:])):
            session.store.finish([order[0](mine[0])])
        for session, order, mine in ((first, ends, jobs[:2]), (second, ends[::-1], jobs[2:])):
            session.store.finish([order[1](mine[1])])
    assert outcomes(scene.connection) == {"succeeded": 2, "failed": 2}


def test_a_snapshot_of_long_ago_is_no_obstacle(scene, sessions):
    """A transaction at REPEATABLE READ ends a job although others have counted the same since it began: no serialization failure."""
    mine, *others = running(scene, 3)
    careful, other = sessions(), sessions()
    with careful.connection.transaction():
        careful.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        careful.one("SELECT count(*) FROM jobrunner.jobs")
        for job in others:
            other.store.finish([Succeeded(job, LEASE, None, 1, 1, 1.0)])
        careful.store.finish([Succeeded(mine, LEASE, None, 1, 1, 1.0)])
    assert outcomes(scene.connection) == {"succeeded": 3}


def test_what_commits_late_is_added_late(scene, sessions):
    """A slice whose transaction is still open is not waited for; it is added once that has committed, however much later."""
    jobs = running(scene, 3)
    late, settler = sessions(), sessions.impatient()
    for session, job in ((scene, jobs[0]), (late, jobs[1])):
        session.store.finish([Succeeded(job, LEASE, None, 1, 1, 1.0)])
    scene.execute("UPDATE jobrunner.rollup_pending SET slice = slice - interval '1 hour'")
    with late.connection.transaction():
        late.execute("UPDATE jobrunner.rollup_pending SET ended_count = ended_count WHERE backend = pg_backend_pid()")
        assert settler.store.settle_rollups(timedelta(minutes=2), DAY, 100) == 1
        assert settler.store.settle_rollups(timedelta(minutes=2), DAY, 100) == 0
        assert outcomes(scene.connection) == {"succeeded": 2}
    assert settler.store.settle_rollups(timedelta(minutes=2), DAY, 100) == 1
    assert scene.one("SELECT sum(ended_count) FROM jobrunner.rollup_minute") == 2
    assert scene.one("SELECT sum(ended_count) FROM jobrunner.rollup_hour") == 2


def test_of_two_that_settle_at_once_one_does_it(scene, sessions):
    """While one settles, another does nothing, and at once; nothing is added twice."""
    scene.store.finish([Succeeded(job, LEASE, None, 1, 1, 1.0) for job in running(scene, 2)])  # in one instant, so in one slice
    scene.execute("UPDATE jobrunner.rollup_pending SET slice = slice - interval '1 hour'")
    first, second = sessions(), sessions.impatient()
    with first.connection.transaction():
        assert first.store.settle_rollups(timedelta(minutes=2), DAY, 100) == 1
        assert second.store.settle_rollups(timedelta(minutes=2), DAY, 100) == 0
    assert second.store.settle_rollups(timedelta(minutes=2), DAY, 100) == 0
    assert outcomes(scene.connection) == {"succeeded": 2}
