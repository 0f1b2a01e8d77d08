"""Transactional jobs under kill -9, pauses past the lease, cut connections and restarts: each effect exactly once, with its child."""

from __future__ import annotations

import os
import random
import signal
import time
from functools import partial
from pathlib import Path

import psycopg
import pytest

from jobrunner import migrate
from tests.support import effects
from tests.support.nemesis import Nemesis, crew
from tests.support.proxy import BEFORE, BEHIND, proxied
from tests.support.waiting import wait_until
from tests.support.workers import Ledger, insert, rows, states, wait_for_states, workers

pytestmark = pytest.mark.chaos

APP = str(Path(__file__).parents[1] / "support" / "transactional_app.py")
POINTS = ("before", "written", "returning", "finishing", "locked", "committed")
HARMS = (*["kill_child"] * 8, *["terminate"] * 4, "kill_worker", "stop_child", "stop_tree")
SHORT_LEASE = ("--lease", "1.5s")


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "ledger")


@pytest.fixture
def settled_dsn(fresh_dsn):
    effects.prepare(fresh_dsn)
    return fresh_dsn


@pytest.fixture
def seed():
    chosen = int(os.environ.get("JOBRUNNER_CHAOS_SEED", random.randrange(1 << 32)))
    print(f"JOBRUNNER_CHAOS_SEED={chosen}")
    return chosen


def settle(dsn, count, *, seconds="0", trap=None, gate=None):
    """Enqueue `count` jobs of `settle`; `seconds` is an SQL expression; `trap` is a point and what happens there; `gate` is a file."""
    words = "" if trap is None else f", 'point', '{trap[0]}', 'how', '{trap[1]}'"
    words += "" if gate is None else f", 'gate', '{gate}'"
    arguments = f"jsonb_build_object('number', n, 'seconds', {seconds}{words})"
    insert(dsn, "settle", count, arguments, max_attempts=1000, max_crashes=1000, backoff="constant", backoff_base="0s")


def all_settled(dsn, count):
    """Whether `count` jobs and the child of each have succeeded, and nothing else is there."""
    try:
        return states(dsn) == {"succeeded": 2 * count}
    except psycopg.OperationalError:  # the server is being restarted
        return False


def assert_exact(dsn, what):
    verdict = effects.check(dsn)
    print(f"{what}: {verdict}")
    assert verdict.faults == {}


@pytest.mark.parametrize("how", ["kill", "terminate"])
def test_the_child_dies_at_each_point(settled_dsn, ledger, how):
    """The child killed -9, or its session cut, before and after its writes, before and after the fenced end, and after COMMIT."""
    each = 6
    for point in POINTS:
        settle(settled_dsn, each, trap=(point, how))
    total = each * len(POINTS)
    with workers(settled_dsn, ledger.path, "-c", "2", app=APP) as [worker]:
        wait_until(lambda: all_settled(settled_dsn, total), timeout=90, what="all jobs to be settled")
        assert worker.stop() == 0
    assert {point: ledger.count(f"trap-{point}").total() for point in POINTS} == dict.fromkeys(POINTS, each), "a trap was not sprung"
    assert_exact(settled_dsn, f"{how} at {total} chosen points")


def test_the_worker_dies_at_each_point(settled_dsn, ledger):
    """The whole worker killed -9 by its job at each point, and started again: what it had committed stays, the rest runs again."""
    with crew(settled_dsn, ledger.path, APP, "-c", "1", count=1) as started:

        def mended(answer):
            started.mend()
            return answer()

        for point in POINTS:  # one by one: of two that a worker has claimed the second would lose its trap with the worker
            settle(settled_dsn, 1, trap=(point, "kill_worker"))
            sprung = partial(lambda event: ledger.count(event).total() == 1, f"trap-{point}")
            wait_until(partial(mended, sprung), timeout=60, what=f"the trap at {point!r} to be sprung")
        wait_until(partial(mended, lambda: all_settled(settled_dsn, len(POINTS))), timeout=120, what="all jobs to be settled")
    assert all(ledger.count(f"trap-{point}").total() == 1 for point in POINTS)
    assert_exact(settled_dsn, f"worker killed at {len(POINTS)} chosen points")


@pytest.mark.parametrize("point", ["written", "locked", "committed"])
def test_the_worker_stands_still_past_its_lease(settled_dsn, ledger, point):
    """A worker and its child stopped at a point until the job is done elsewhere, then continued, the child first: nothing changes.

    At `locked` the child holds the job's row: the server ends its session after 5 s, so the rescue waits no longer than that.
    """
    settle(settled_dsn, 1, trap=(point, "stop_tree"))
    with workers(settled_dsn, ledger.path, *SHORT_LEASE, "-c", "1", app=APP) as [first]:
        wait_until(lambda: ledger.count(f"trap-{point}"), timeout=30, what="the trap to be sprung")
        stopped = time.monotonic()
        tree = [first.process.pid, *sorted(first.descendants())]
        with workers(settled_dsn, ledger.path, "-c", "1", app=APP):  # whose own lease a machine that stands still does not cost it
            wait_for_states(settled_dsn, 60, succeeded=2)
            print(f"done {time.monotonic() - stopped:.1f} s after the stop")
            kept = f"SELECT count(*) FROM jobrunner.v_workers WHERE pid = {first.process.pid} AND last_exit IS DISTINCT FROM 'lost'"
            wait_until(lambda: rows(settled_dsn, kept) == [(0,)], timeout=30, what="the first worker to be given up")
            for pid in reversed(tree):
                os.kill(pid, signal.SIGCONT)
            wait_until(lambda: "lease lost" in first.text(), timeout=30, what="the first worker to see that its lease is lost")
            assert first.stop() == 0
    assert_exact(settled_dsn, f"stopped past the lease at {point!r}")


def test_a_stopped_child_holds_up_a_rescue_for_five_seconds_at_most(settled_dsn, ledger):
    """A worker stopped while its job's row is locked, and another one killed: both jobs run again within lease, look and 5 s."""
    settle(settled_dsn, 1, trap=("locked", "stop_tree"))
    with workers(settled_dsn, ledger.path, *SHORT_LEASE, "-c", "1", app=APP):
        wait_until(lambda: ledger.count("trap-locked"), timeout=30, what="the first worker to stand still")
        stopped = time.monotonic()
        settle(settled_dsn, 1, trap=("written", "kill_worker"))
        with (
            workers(settled_dsn, ledger.path, *SHORT_LEASE, "-c", "1", app=APP),
            workers(settled_dsn, ledger.path, *SHORT_LEASE, "-c", "1", app=APP),
        ):
            wait_until(lambda: all_settled(settled_dsn, 2), timeout=60, what="both jobs to be settled")
            seconds = time.monotonic() - stopped
    print(f"both done {seconds:.1f} s after the first worker stood still")
    assert seconds < 1.5 + 1 + 5 + 10, "later than lease + look + 5 s (and ten for two workers to start on a busy machine)"
    assert_exact(settled_dsn, "one worker stopped with the row locked, one killed")


def superseded_in_its_body(dsn, ledger, mutant):
    """An attempt that reaches its end while the next one is in its body, with nothing but the fence between them.

    Returns what became of it: `refused`, `end`, or both.
    """
    gate = ledger.path.with_name("gate")
    settle(dsn, 1, trap=("returning", "stop_tree"), gate=gate)
    environment = {"JOBRUNNER_CHAOS_MUTANT": mutant}
    with workers(dsn, ledger.path, *SHORT_LEASE, "-c", "1", app=APP, environment=environment):
        wait_until(lambda: ledger.count("trap-returning"), timeout=30, what="the trap to be sprung")
        zombie = ledger.lines()[-1][2]
        with workers(dsn, ledger.path, "-c", "1", app=APP, environment=environment):
            wait_until(lambda: ledger.count("begin").total() == 2, timeout=30, what="the job to begin elsewhere")
            os.kill(zombie, signal.SIGCONT)

            def own_end():
                return [event for event, _, pid, _ in ledger.lines() if pid == zombie and event in {"refused", "end"}]

            last = "refused" if mutant == "lenient" else "end"
            wait_until(lambda: last in own_end(), timeout=20, what="the zombie to come to its end")
            gate.touch()  # only now the attempt elsewhere leaves its body
            wait_until(lambda: rows(dsn, "SELECT count(*) FROM jobrunner.v_jobs WHERE state IN ('queued', 'running')") == [(0,)],
                       timeout=30, what="everything to be over")  # fmt: skip
            return own_end()


def test_the_fence_alone_refuses_a_zombie(settled_dsn, ledger):
    """Without the help of the server's ended sessions: an attempt that was superseded in its body is refused at its end."""
    assert superseded_in_its_body(settled_dsn, ledger, "lenient") == ["refused"]
    assert_exact(settled_dsn, "the fence alone")


@pytest.mark.parametrize(
    ("mutant", "became", "fault"),
    [("unfenced", ["end"], "stale"), ("unchecked", ["refused", "end"], "doubled")],
    ids=["unfenced", "unchecked"],
)
def test_the_checker_notices_a_missing_fence(settled_dsn, ledger, mutant, became, fault):
    """With the fence taken out of the statement, or its answer ignored, the same scene is found to be wrong."""
    assert superseded_in_its_body(settled_dsn, ledger, mutant) == became
    verdict = effects.check(settled_dsn)
    print(f"{mutant}: {verdict}")
    assert fault in verdict.faults


def test_the_checker_notices_planted_faults(settled_dsn, ledger):
    """An effect taken away, doubled, or planted for a job that did not succeed; a child taken away, doubled or unknown: all are found."""
    settle(settled_dsn, 8)
    with workers(settled_dsn, ledger.path, "-c", "2", "--drain", app=APP) as [worker]:
        worker.wait()
    assert_exact(settled_dsn, "before planting")
    first = rows(settled_dsn, "SELECT min(id) FROM jobrunner.v_jobs WHERE task = 'settle'")[0][0]
    assert isinstance(first, int)
    planted = {
        "lost": (first, "DELETE FROM chaos_effects WHERE job_id = %s"),
        "doubled": (first + 1, "INSERT INTO chaos_effects SELECT job_id, lease FROM chaos_effects WHERE job_id = %s"),
        "undone": (first + 2, "UPDATE jobrunner.job_history SET state = 'failed' WHERE id = %s"),
        "stale": (first + 3, "UPDATE jobrunner.job_history SET lease = lease + 1 WHERE id = %s"),
        "torn": (first + 4, "DELETE FROM chaos_children WHERE parent_id = %s"),
        "childless": (first + 5, "DELETE FROM jobrunner.job_history WHERE task = 'child' AND parent_id = %s"),
        "orphaned": (first + 6, "INSERT INTO jobrunner.jobs (task, args, parent_id) VALUES ('child', '{}', %s)"),
    }
    with psycopg.connect(settled_dsn, autocommit=True) as connection:
        for job_id, statement in planted.values():
            connection.execute(statement, (job_id,))
    verdict = effects.check(settled_dsn)
    print(verdict)
    missed = [name for name, (job_id, _) in planted.items() if job_id not in getattr(verdict, name)]
    assert missed == []
    assert all(first + 7 not in found for found in verdict.faults.values())


@pytest.mark.parametrize("options", [("-c", "2"), ("--threads", "4")], ids=["processes", "threads"])
def test_random_harm(settled_dsn, ledger, seed, options):
    """Kills, pauses past the lease and cut sessions at random: every job is settled exactly once, with one child."""
    rage(settled_dsn, ledger, seed, options, count=200)


@pytest.mark.slow
@pytest.mark.parametrize("options", [("-c", "2"), ("--threads", "4")], ids=["processes", "threads"])
def test_random_harm_for_long(settled_dsn, ledger, seed, options):
    """The same with more of everything."""
    rage(settled_dsn, ledger, seed, options, count=2000)


def rage(dsn, ledger, seed, options, *, count):
    settle(dsn, count, seconds="0.001 * mod(n, 50)")
    with crew(dsn, ledger.path, APP, *options, count=2) as started:
        nemesis = Nemesis(dsn, started, seed)
        nemesis.rage(lambda: all_settled(dsn, count), lambda: ledger.count("end").total(), HARMS, every=4)
    print(f"harm: {dict(nemesis.done)}; attempts refused at their end: {ledger.count('refused').total()}")
    assert_exact(dsn, f"{nemesis.done.total()} random harms")


@pytest.mark.slow
def test_restarts_of_the_server_for_long(durable_server, ledger, seed):
    """PostgreSQL restarted again and again, fast and immediate, with kills of children between: exactly once."""
    restarts(durable_server, ledger, seed, count=1000)


def test_restarts_of_the_server(durable_server, ledger, seed):
    """PostgreSQL restarted under load, fast and immediate: every job is settled exactly once, with one child."""
    restarts(durable_server, ledger, seed, count=150)


def restarts(server, ledger, seed, *, count):
    dsn = server.dsn("postgres")
    migrate.upgrade(dsn)
    effects.prepare(dsn)
    settle(dsn, count, seconds="0.001 * mod(n, 50)")
    with crew(dsn, ledger.path, APP, "-c", "2", count=2) as started:
        nemesis = Nemesis(dsn, started, seed, server)
        harms = ("restart_fast", "restart_immediate", "kill_child")
        nemesis.rage(lambda: all_settled(dsn, count), lambda: ledger.count("end").total(), harms, every=25)
    print(f"harm: {dict(nemesis.done)}")
    assert_exact(dsn, f"{nemesis.done.total()} restarts and kills")


def test_connections_cut_at_commit(settled_dsn, ledger, seed):
    """The connection cut just before COMMIT, or behind it with the answer lost: every job is settled exactly once."""
    count = 150
    settle(settled_dsn, count)
    with proxied(settled_dsn, seed, 0.3) as proxy, workers(proxy.dsn, ledger.path, "-c", "2", app=APP) as [worker]:
        wait_until(lambda: all_settled(settled_dsn, count), timeout=90, what="all jobs to be settled")
        assert worker.stop() == 0
        cuts = dict(proxy.cuts)
    print(f"cut: {cuts}")
    assert cuts[BEFORE] > 5
    assert cuts[BEHIND] > 5
    assert_exact(settled_dsn, f"{sum(cuts.values())} connections cut at COMMIT")
