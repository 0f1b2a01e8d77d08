"""Every statement's plan: which index it uses and how many rows it reads, whatever the tables' size and their statistics' age."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import psycopg
import pytest

from jobrunner import clock, statements
from jobrunner.connecting import allow_preparing, connect, plan_once
from jobrunner.jobs import Succeeded, Walk
from jobrunner.settings import parse_dsn
from jobrunner.states import State
from jobrunner.store import Store
from tests.support.brokercalls import BROKER_CALLS
from tests.support.calls import FENCED, MOST, RUNNING, Filled, fill, gather, parameters
from tests.support.explain import Plan, Prepared, explain, explain_prepared
from tests.support.rows import EXPIRED, TASK, Scene, array, fenced_parameters

if TYPE_CHECKING:
    from collections.abc import Callable

BATCHES = (1, 100, 1000)
SMALL = 1000  # a table of this size may be read whole, when a batch wants much of it: that is as cheap as an index
EMPTY, SIZES, HUGE = 0, (0, SMALL, 100_000), 1_000_000
STATISTICS = ("analysed", "stale", "never")
PLANS_TRIED = 5  # by PostgreSQL, each for its own parameters, before it looks whether one for all would do
ROOM = 20  # buffers: a few more levels and split pages of an index
BOTH_WAYS = pytest.mark.parametrize("look", [explain, explain_prepared], ids=["plain", "prepared"])
PARTS_READ_TWICE = 2  # a statement that locks first and changes then reads each of its rows twice


class Expected(NamedTuple):
    """What the plan of a statement on big tables must be.

    Attributes:
        indexes: all of them are used, nothing else on `jobs`.
        rows: live rows read for each of the batch, at most.
        extra: live rows read besides, at most.
        history: rows of the history read for each of the batch, at most.
    """

    indexes: set[str]
    rows: int = 0
    extra: int = 0
    history: int = 0


EXPECTED: dict[str, Expected] = {
    **{name: Expected({"jobs_pkey"}, rows=PARTS_READ_TWICE) for name in FENCED},
    "claim": Expected({"jobs_claim", "jobs_pkey"}, rows=PARTS_READ_TWICE),
    "claim_ordered": Expected({"jobs_ordered", "jobs_ordered_running", "jobs_pkey"}),
    "expire": Expected({"jobs_expiring", "jobs_pkey"}),
    "find_due": Expected({"jobs_claim", "jobs_ordered"}, extra=6),
    "cancel": Expected({"jobs_pkey"}, rows=PARTS_READ_TWICE),
    "run_now": Expected({"jobs_pkey"}, rows=PARTS_READ_TWICE),
    "request_cancel": Expected({"jobs_pkey"}, rows=PARTS_READ_TWICE),
    "requeue": Expected(set(), history=PARTS_READ_TWICE),
    "redrive": Expected(set(), history=PARTS_READ_TWICE),
    "purge_dead": Expected(set(), history=PARTS_READ_TWICE),
    "renew": Expected({"jobs_pkey"}, extra=1),
    "drop_consumer": Expected({"jobs_running"}, extra=1),
    "hold": Expected({"jobs_pkey"}, rows=1),
    "rescue": Expected({"jobs_running", "jobs_pkey"}, extra=PARTS_READ_TWICE * RUNNING // 2),
    "rescue_abort": Expected({"jobs_running", "jobs_pkey"}, extra=PARTS_READ_TWICE * RUNNING // 2),
    "rescue_quarantine": Expected({"jobs_running", "jobs_pkey"}, extra=PARTS_READ_TWICE * RUNNING // 2),
    "look_again": Expected({"jobs_running"}, extra=2),
    "held_jobs": Expected({"jobs_running"}, extra=RUNNING // 2),
    "job_state": Expected({"jobs_pkey"}, extra=1, history=1),
    "has_succeeded": Expected(set(), history=1),
    "log": Expected({"jobs_pkey"}, rows=PARTS_READ_TWICE, history=1),
    "give_up_slot": Expected(set()),
    "set_tasks": Expected(set()),
    "heartbeat": Expected(set()),
    "stop_worker": Expected(set()),
    "register_worker": Expected(set()),
    "any_lost": Expected({"jobs_expiring"}, extra=1),
    "lost_workers": Expected(set()),
    "ensure_partitions": Expected(set()),
    "left_due": Expected({"jobs_claim"}, extra=6 + 2 * MOST),
    "prune_workers": Expected({"jobs_running"}),
    "prune_worker_runs": Expected(set()),
    "drop_partitions": Expected(set()),
    "settle_rollups": Expected(set()),
    "prune_rollup_hours": Expected(set()),
    "take_turn": Expected(set()),
    **{name: Expected(set()) for name in BROKER_CALLS},  # tests/compat/kombu has their plans
}


def problems(scene: Scene, filled: Filled, batch: int, look: Callable[..., Plan] = explain) -> list[str]:
    """Every statement whose plan is not as expected, with the plan."""
    found = []
    total = filled.queued + RUNNING
    for name, called_with in parameters(filled, batch).items():
        plan, want = look(scene.connection, name, called_with), EXPECTED[name]
        small = filled.queued <= SMALL
        live, history = want.rows * batch + want.extra, want.history * batch
        checks = {
            "live rows": plan.rows_read("jobs") <= (3 * total if small and (batch > 1 or want.extra > 1) else live),
            "history rows": plan.rows_read("job_history") <= (2 * filled.queued if small else history),
            "no scan of all jobs": small or not plan.sequential("jobs"),
            "indexes of jobs": small or {index for index in plan.indexes() if index.startswith("jobs_")} == want.indexes,
        }
        found += [f"{name} × {batch}, {look.__name__}: {what}: {plan.outline()}" for what, holds in checks.items() if not holds]
    return found


@pytest.fixture
def own(fresh_dsn):
    """A database of one's own: statistics and dead rows of other tests would change the plans."""
    with psycopg.connect(fresh_dsn, autocommit=True) as connection:
        yield Scene(connection)


def test_every_statement_has_an_expected_plan():
    """A new statement comes with its plan."""
    assert set(EXPECTED) == statements.names()


@pytest.mark.parametrize("statistics", STATISTICS)
@pytest.mark.parametrize("size", [*SIZES, pytest.param(HUGE, marks=pytest.mark.slow)])
def test_plans_name_their_indexes_and_read_few_rows(own, size, statistics):
    """However many jobs there are, however old the statistics, prepared or not, a statement reads rows in proportion to its batch."""
    filled = fill(own, size, statistics)
    assert [problem for batch in BATCHES for look in (explain, explain_prepared) for problem in problems(own, filled, batch, look)] == []


@pytest.mark.parametrize("statistics", STATISTICS)
def test_a_plan_made_once_on_empty_tables_is_good_for_full_ones(own, fresh_dsn, statistics):
    """A worker that started before the first job prepared its statements then: 100,000 jobs later they still use their indexes."""
    nobody = own.worker()
    with psycopg.connect(fresh_dsn, autocommit=True) as connection:
        prepared = Prepared(connection)
        for name in EXPECTED:
            prepared.prepare(name)
            prepared.explain(connection, name, parameters(Filled(0, 1, 1, nobody, nobody), 1)[name])
        prepared.prepare("purge_dead")  # anew, by its next call: no worker runs it, and nobody else plans without regard to what there is
        filled = fill(own, 100_000, statistics)
        assert [problem for batch in BATCHES for problem in problems(own, filled, batch, prepared.explain)] == []


def test_looking_for_due_jobs_is_not_planned_at_every_call(own):
    """After the five plans of its own that PostgreSQL tries, a prepared `find_due` uses one that is kept."""
    allow_preparing(own.connection)
    for _ in range(PLANS_TRIED + 3):
        own.store.find_due(["default"])
    kept = "SELECT custom_plans, generic_plans FROM pg_prepared_statements WHERE statement LIKE '%jobrunner:find_due%'"
    assert own.execute(kept).fetchall() == [(PLANS_TRIED, 3)]


@BOTH_WAYS
@pytest.mark.parametrize("statistics", STATISTICS)
def test_looking_for_lost_workers_reads_only_them(own, statistics, look):
    """With thousands of rows of workers long gone, the look for lost ones reads those that are lost."""
    if statistics == "stale":
        gather(own)
    columns = "name, host, pid, kind, version, queues, tasks, slots, lease_expires_at, stopped_at, rescued_at"
    own.execute(
        f"INSERT INTO jobrunner.workers ({columns}) SELECT 'w', 'h', 1, 'test', '0', '{{}}', '{{}}', 1, at, at, now()"
        " FROM generate_series(1, 2000) AS g, LATERAL (SELECT now() - g * interval '1 hour' AS at) AS t"
    )
    lost, _alive = own.worker(EXPIRED), [own.worker() for _ in range(20)]
    if statistics == "analysed":
        gather(own)
    asked = look(own.connection, "any_lost", {})
    assert {index for index in asked.indexes() if index.startswith("workers_")} == {"workers_alive", "workers_stopped"}  # there are no jobs here
    assert asked.rows_read("workers") <= 1
    plan = look(own.connection, "lost_workers", {})
    assert plan.indexes() == {"workers_alive", "workers_stopped", "workers_pkey"}
    assert not plan.sequential("workers")
    assert plan.rows_read("workers") <= 4
    assert own.run("lost_workers", {}) == [lost]


@BOTH_WAYS
@pytest.mark.parametrize("statistics", ["analysed", "stale"])
def test_jobs_for_later_at_a_more_urgent_priority_cost_nothing(own, statistics, look):
    """A hundred thousand jobs for next month, more urgent than what is due: finding and claiming read what is due."""
    if statistics == "stale":
        gather(own)
    later = "SELECT %s, -5, now() + interval '30 days' FROM generate_series(1, 100000)"
    own.execute(f"INSERT INTO jobrunner.jobs (task, priority, run_at) {later}", (TASK,))
    due = [own.job(priority=0) for _ in range(50)]
    if statistics == "analysed":
        gather(own)
    worker = own.worker()
    assert [(found.priority, found.due_in_ms > 0) for found in own.store.find_due(["default"])] == [(-5, True), (0, False)]
    find = look(own.connection, "find_due", {"queues": ["default"]})
    assert find.rows_read("jobs") <= 2
    assert find.buffers <= 60
    base = {"worker_id": worker, "tasks": [TASK], "queue": "default", "take": 100, "past_gate": False, "floor_run_at": "1969-12-31 00:00+00", "floor_id": 0}
    urgent = look(own.connection, "claim", {**base, "priority": -5})
    assert urgent.rows_read("jobs") == 0
    assert urgent.buffers <= 30
    assert look(own.connection, "claim", {**base, "priority": 0}).rows_read("jobs") <= 2 * len(due)


@BOTH_WAYS
@pytest.mark.parametrize("statistics", ["analysed", "stale"])
def test_jobs_that_wait_for_their_key_cost_nothing(own, statistics, look):
    """A hundred thousand jobs of one key: looking for the next of it reads a few rows, and so does the look for what is due."""
    if statistics == "stale":
        gather(own)
    own.execute("INSERT INTO jobrunner.jobs (task, ordering_key) SELECT %s, 'deep' FROM generate_series(1, 100000)", (TASK,))
    own.execute("INSERT INTO jobrunner.jobs (task, ordering_key) SELECT %s, 'key ' || g FROM generate_series(1, 50) AS g", (TASK,))
    if statistics == "analysed":
        gather(own)
    worker = own.worker()
    base = {"worker_id": worker, "tasks": [TASK], "queue": "default", "priority": 0, "take": 100, "floor_key": "", "keys": 200, "given": []}
    plan = look(own.connection, "claim_ordered", base)
    assert {"jobs_ordered", "jobs_pkey"} <= plan.indexes()
    assert plan.rows_read("jobs") <= 4 * 51
    followed = look(own.connection, "claim_ordered", {**base, "keys": 0, "given": ["deep"]})
    assert followed.rows_read("jobs") <= 4
    assert look(own.connection, "find_due", {"queues": ["default"]}).rows_read("jobs") <= 4
    assert len(own.store.claim_ordered(worker, [TASK], "default", 0, 100, Walk(keys=200)).jobs) == 51


@BOTH_WAYS
def test_the_first_keys_after_statistics_without_any_cost_nothing(own, look):
    """Keys come into use after ANALYZE has seen a table full of jobs without one: the look for the job that runs of a key reads that alone."""
    own.execute("INSERT INTO jobrunner.jobs (task) SELECT %s FROM generate_series(1, 50000)", (TASK,))
    gather(own)
    own.execute("INSERT INTO jobrunner.jobs (task, ordering_key) SELECT %s, 'deep' FROM generate_series(1, 50000)", (TASK,))
    own.execute("INSERT INTO jobrunner.jobs (task, ordering_key) VALUES (%s, 'other')", (TASK,))
    base = {"worker_id": own.worker(), "tasks": [TASK], "queue": "default", "priority": 0, "take": 100, "floor_key": "", "keys": 0}
    plan = look(own.connection, "claim_ordered", {**base, "given": ["deep", "other"]})
    assert {"jobs_ordered", "jobs_ordered_running", "jobs_pkey"} <= plan.indexes()
    assert plan.rows_read("jobs") <= 4 * 2, plan.outline()


@BOTH_WAYS
def test_the_floor_keeps_a_claim_cheap_under_a_pinned_snapshot(own, fresh_dsn, look):
    """While an old snapshot keeps dead rows alive, a claim from the floor and a finish cost what they always do; a claim from the start
    walks over everything that was ever claimed, which is why there is a floor."""
    finished, batch = 20_000, 100
    own.execute("ALTER TABLE jobrunner.jobs SET (autovacuum_enabled = false)")
    worker = own.worker()
    start = {"floor_run_at": "1969-12-31 00:00+00", "floor_id": 0}
    claim = {"worker_id": worker, "tasks": [TASK], "queue": "default", "priority": 0, "take": batch, "past_gate": False, **start}

    def enqueue(count):
        own.execute("INSERT INTO jobrunner.jobs (task, lease) SELECT %s, 1 FROM generate_series(1, %s)", (TASK, count))

    def finish_all():
        last = None
        while jobs := own.store.claim(worker, [TASK], "default", 0, 1000):
            last = jobs[-1]
            assert own.run("succeed", fenced_parameters("succeed", [(job.id, job.lease) for job in jobs])) == [job.id for job in jobs]
        return last

    def pages(floor=None):
        at = {"floor_run_at": floor.run_at, "floor_id": floor.id} if floor else {}
        return look(own.connection, "claim", {**claim, **at}).index_buffers("jobs_claim")

    enqueue(batch)
    at_first = pages()
    with psycopg.connect(fresh_dsn) as reader:
        reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        reader.execute("SELECT count(*) FROM jobrunner.jobs")
        enqueue(finished)
        last = finish_all()
        enqueue(batch)
        assert pages(last) <= at_first + ROOM
        assert pages() >= 20 * pages(last)
        attempts = [(job.id, job.lease) for job in own.store.claim(worker, [TASK], "default", 0, batch)]
        for name in FENCED:
            plan = look(own.connection, name, fenced_parameters(name, attempts, delay_ms=5))
            assert plan.buffers <= 60 * batch, f"{name}: {plan.outline()}"
            assert plan.rows_read("jobs") <= PARTS_READ_TWICE * batch


def test_the_job_that_is_read_is_the_one_that_was_asked_for(own):
    """The parameters used here find rows: a plan over nothing would prove nothing."""
    filled = fill(own, SMALL, "never")
    called = parameters(filled, 10)
    assert len(own.run("cancel", called["cancel"])) == 10
    assert len(own.run("requeue", called["requeue"])) == 10
    assert len(own.run("succeed", called["succeed"])) == 10
    assert len(own.run("rescue", called["rescue"])) == RUNNING // 2 - 5
    assert own.state(filled.first_running) is State.SUCCEEDED
    assert array([1, None]) == "{1,NULL}"


def test_a_statement_is_planned_once_for_all_that_follow(own, fresh_dsn):
    """On a worker's connection every statement is prepared at its first call, and no call has a plan of its own."""
    filled = fill(own, SMALL, "analysed")
    with connect(parse_dsn(fresh_dsn, "a test")) as connection:
        plan_once(connection)
        store = Store(connection)
        for _ in range(3):
            store.rescue()
            store.find_due(["default"])
            claimed = store.claim(filled.alive, [TASK], "default", 0, 5)
            assert store.finish([Succeeded(job.id, job.lease, None, 0, 0, clock.monotonic()) for job in claimed]) == []
        prepared = connection.execute(
            "SELECT substring(statement from 'jobrunner:([a-z_]+)'), generic_plans, custom_plans FROM pg_prepared_statements"
        ).fetchall()
    assert {("find_due", 3, 0), ("claim", 3, 0), ("succeed", 3, 0)} <= set(prepared)
    assert all(custom == 0 for _, _, custom in prepared)


def test_a_look_for_lost_workers_that_finds_none_writes_nothing(own):
    """Every worker looks every second: the look takes no lock and no transaction id, and could be made on a standby."""
    own.worker()
    own.execute("SET default_transaction_read_only = on")
    assert own.store.rescue() == ([], 0)
    own.execute("SET default_transaction_read_only = off")
    own.worker(EXPIRED)
    found, moved = own.store.rescue()
    assert (len(found), moved) == (1, 0)
