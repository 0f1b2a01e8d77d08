"""Roll-ups: each ending counts once, by whoever it comes about; buckets and percentiles; minutes and hours, and how long they are kept."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobrunner import schema
from jobrunner.histograms import BOUNDS_MS, BUCKETS, bucket_of
from jobrunner.jobs import Ending, Succeeded, Unsuccessful
from jobrunner.maintenance import rollups
from jobrunner.maintenance.rollups import KeepRollups, RolledUp, Settler
from jobrunner.states import State
from jobrunner.store import Store
from tests.support.cli import APP, Program
from tests.support.doctoring import cluster
from tests.support.rollups import counted, outcomes, reckoned
from tests.support.rows import EXPIRED, LEASE, Scene
from tests.support.sessions import sessions_on
from tests.support.viewrows import Rows
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

DAY = timedelta(days=1)
GUEST = "jobrunner_test_finisher"
# Every bound and its neighbours, and what no attempt takes.
DURATIONS = st.one_of(
    st.sampled_from([bound + step for bound in BOUNDS_MS for step in (-1, 0, 1)]), st.integers(-5, 2 * 10**9), st.integers(0, 2**63 - 1)
)


@pytest.fixture
def scene(connection) -> Scene:
    """The shared database, with verbs."""
    return Scene(connection)


@pytest.fixture
def own(fresh_dsn) -> Iterator[Scene]:
    """A database of one's own: partitions and rights are changed."""
    with psycopg.connect(fresh_dsn, autocommit=True) as connection:
        yield Scene(connection)


@pytest.fixture
def alone() -> Iterator[Scene]:
    """A database on a server of one's own."""
    with cluster() as server, psycopg.connect(server.dsn(), autocommit=True) as connection:
        yield Scene(connection)


@given(durations=st.lists(DURATIONS, min_size=1, max_size=50))
def test_the_scale_is_the_same_in_sql_and_python(connection, durations):
    """A duration is in the same bucket by the database and by the program, at each bound and at any distance from it."""
    query = "SELECT jobrunner.histogram_bucket(ms) FROM unnest(%s::bigint[]) WITH ORDINALITY AS d (ms, place) ORDER BY place"
    assert [bucket for (bucket,) in connection.execute(query, (durations,))] == [bucket_of(ms) for ms in durations]
    assert connection.execute("SELECT jobrunner.histogram_bounds()").fetchone()[0] == list(BOUNDS_MS)


def histogram(values) -> list[int]:
    """How many are in each bucket."""
    counts = Counter(bucket_of(value) for value in values)
    return [counts[bucket] for bucket in range(BUCKETS)]


@given(values=st.lists(st.integers(0, 2 * 10**9), min_size=1, max_size=60), cut=st.integers(0, 60), fraction=st.floats(0, 1))
def test_a_percentile_lies_in_the_bucket_of_the_exact_one(connection, values, cut, fraction):
    """The estimate is in the bucket of what percentile_disc gives, whether from one histogram or from parts of it that are added up."""
    exact = connection.execute("SELECT percentile_disc(%s) WITHIN GROUP (ORDER BY v) FROM unnest(%s::bigint[]) AS v", (fraction, values))
    query = "SELECT jobrunner.histogram_percentile(%s::bigint[], %s)"
    (estimate,) = connection.execute(query, (histogram(values), fraction)).fetchone()
    assert bucket_of(estimate) == bucket_of(exact.fetchone()[0])
    assert estimate <= BOUNDS_MS[-1]
    parts = [histogram(values[:cut]), histogram(values[cut:])]
    assert connection.execute(query, (parts, fraction)).fetchone() == (estimate,)


def test_percentiles_of_nothing_and_within_a_bucket(connection):
    """Nothing has no percentile; within a bucket a higher fraction gives more, and one value is put in the middle of its bucket."""
    query = "SELECT jobrunner.histogram_percentile(%s::bigint[], %s)"
    for nothing in (None, [], histogram([])):
        assert connection.execute(query, (nothing, 0.5)).fetchone() == (None,)
    found = [connection.execute(query, (histogram([200] * 100), fraction)).fetchone()[0] for fraction in (0.0, 0.01, 0.5, 0.95, 1.0)]
    assert found == sorted(found)
    assert (found[0] > 100, found[-1] < 300) == (True, True)
    assert connection.execute(query, (histogram([150]), 0.5)).fetchone() == (pytest.approx((100 * 300) ** 0.5),)


@pytest.mark.parametrize(
    ("ending", "columns", "counts"),
    [
        (None, {}, {"succeeded": 1}),
        (Ending.RETRY, {"attempt": 1, "max_attempts": 2}, {"retried": 1}),
        (Ending.RETRY, {"attempt": 2, "max_attempts": 2}, {"failed": 1}),
        (Ending.RETRY, {"cancel_requested_at": "=now()"}, {"cancelled": 1}),
        (Ending.FAIL, {}, {"failed": 1}),
        (Ending.SNOOZE, {}, {"snoozed": 1}),
        (Ending.RELEASE, {}, {"released": 1}),
        (Ending.CRASH, {"max_crashes": 2}, {"crashed": 1}),
        (Ending.CRASH, {"max_crashes": 1}, {"quarantined": 1}),
        (Ending.ABORT, {}, {"cancelled": 1}),
    ],
)  # fmt: skip
def test_an_ending_counts_once(scene, ending, columns, counts):
    """Whatever becomes of a job when an attempt ends, exactly one thing is counted, with the time that it ran."""
    job_id = scene.job(State.RUNNING, **columns)
    refused = [Succeeded(job_id, LEASE + 1, None, 1, 1, 1.0), Unsuccessful(Ending.FAIL, job_id, LEASE - 1, run_ms=1)]
    assert scene.store.finish(refused) == refused
    assert outcomes(scene.connection) == {}
    scene.store.finish([Succeeded(job_id, LEASE, None, 250, 7, 1.0) if ending is None else Unsuccessful(ending, job_id, LEASE, run_ms=250, cpu_ms=7)])
    assert outcomes(scene.connection) == counts
    (numbers,) = counted(scene.connection).values()
    assert (numbers.run_ms, numbers.cpu_ms, numbers.run) == (250, 7, tuple(histogram([250])))
    assert counted(scene.connection) == reckoned(scene.connection)


def test_endings_without_an_attempt(scene):
    """A waiting job that is called off counts without a time; an attempt that is given back before it began counts not at all."""
    scene.store.cancel(scene.job())
    scene.store.finish([Unsuccessful(Ending.RELEASE, scene.job(State.RUNNING), LEASE)])
    (numbers,) = counted(scene.connection).values()
    assert (numbers.ended, numbers.run_ms, sum(numbers.run), sum(numbers.wait)) == (1, 0, 0, 0)
    assert outcomes(scene.connection) == {"cancelled": 1}


def test_the_jobs_of_a_lost_worker(scene):
    """What rescue does with each of them counts once: crashed, released, quarantined, cancelled."""
    lost = scene.worker(EXPIRED)
    for columns in (
        {"started_at": "=now()", "max_crashes": 9}, {"crash_count": 1, "max_crashes": 9}, {"started_at": "=now()", "max_crashes": 1},
        {"cancel_requested_at": "=now()"},
    ):  # fmt: skip
        scene.job(State.RUNNING, worker_id=lost, **columns)
    scene.store.rescue()
    assert outcomes(scene.connection) == {"crashed": 1, "released": 1, "quarantined": 1, "cancelled": 1}
    assert counted(scene.connection) == reckoned(scene.connection)


def test_what_is_rolled_back_is_not_counted(scene):
    """Counting is part of the transaction that ends the job; a job brought back by an operator has ended before, and stays counted."""
    job_id = scene.job(State.RUNNING)
    with scene.connection.transaction(force_rollback=True):
        scene.store.finish([Unsuccessful(Ending.FAIL, job_id, LEASE, run_ms=1)])
        assert outcomes(scene.connection) == {"failed": 1}
    assert outcomes(scene.connection) == {}
    scene.store.finish([Unsuccessful(Ending.FAIL, job_id, LEASE, run_ms=1)])
    scene.store.requeue(job_id)
    scene.store.cancel(job_id)
    assert outcomes(scene.connection) == {"failed": 1, "cancelled": 1}


def test_rows_of_several_days_in_one_statement(own):
    """One statement whose rows belong to several partitions, the default one among them, is counted to the row; COPY as well."""
    rows = Rows(own.connection)
    for state in ("succeeded", "failed", "succeeded"):
        rows.finished(state, run_ms=5)
    columns = "task, args, queue, priority, tags, created_at, run_at, state, lease, attempt, max_attempts, backoff, backoff_base, backoff_cap, backoff_jitter, crash_count, max_crashes, run_ms"
    own.execute(
        f"INSERT INTO jobrunner.job_history (id, {columns}, finished_at) SELECT id + 100 * n, {columns}, finished_at + n * interval '1 day'"
        " FROM jobrunner.job_history, generate_series(-3, 3) AS n WHERE n <> 0"
    )
    with own.connection.cursor().copy(f"COPY (SELECT id + 9000, {columns}, finished_at FROM jobrunner.job_history) TO STDOUT") as copy:
        data = b"".join(bytes(part) for part in copy)
    with own.connection.cursor().copy(f"COPY jobrunner.job_history (id, {columns}, finished_at) FROM STDIN") as copy:
        copy.write(data)
    assert outcomes(own.connection) == {"succeeded": 28, "failed": 14}
    assert counted(own.connection) == reckoned(own.connection)


def test_rows_that_move_into_their_partition_are_not_counted_again(own):
    """When a day gets its partition, its history, its attempts and its minutes move there, and what was counted stays as it was."""
    own.store.ensure_partitions(7)  # the last is missing since midnight, if the template was made before
    today = f"{datetime.now(UTC):%Y%m%d}"
    for parent in ("job_history", "job_attempts", "rollup_minute"):
        own.execute(f"DROP TABLE jobrunner.{parent}_{today}")
    own.store.finish([Succeeded(own.job(State.RUNNING), LEASE, None, 5, 1, 1.0), Unsuccessful(Ending.SNOOZE, own.job(State.RUNNING), LEASE, run_ms=3)])
    own.execute("UPDATE jobrunner.rollup_pending SET slice = date_bin('1 day', slice, 'epoch')")
    assert own.store.settle_rollups(timedelta(), DAY, 10) == 2
    before = counted(own.connection)
    assert outcomes(own.connection) == {"succeeded": 1, "snoozed": 1}
    assert own.store.ensure_partitions(7) == 3
    assert own.one(f"SELECT count(*) FROM jobrunner.job_history_{today}") == 1
    assert own.one(f"SELECT count(*) FROM jobrunner.job_attempts_{today}") == 1
    assert own.one(f"SELECT count(*) FROM jobrunner.rollup_minute_{today}") == 2
    assert counted(own.connection) == before


@pytest.mark.parametrize("run_ms", [-(2**63), -1, 2**63 - 1])
def test_wild_values_do_not_stop_anybody(scene, run_ms):
    """A row put in by hand that ran for ages, or less than nothing, is counted; its column does not overflow, however many there are."""
    rows = Rows(scene.connection)
    at = scene.one("SELECT now()")
    for _ in range(3):
        rows.finished("succeeded", run_ms=run_ms, wait_ms=run_ms, cpu_ms=run_ms, finished_at=at)
    scene.store.settle_rollups(timedelta(days=-1), DAY, 10)
    (numbers,) = counted(scene.connection).values()
    assert numbers.ended == 3
    assert numbers.run_ms == (0 if run_ms < 0 else 3 * 10**10)
    assert numbers.run[0 if run_ms < 0 else BUCKETS - 1] == 3


def test_a_row_that_is_counted_in_is_changed_in_place(alone):
    """Batch after batch of one kind changes one row of the slice, without touching its index (a HOT update), and never grows.

    On a server without neighbours: a transaction that writes in any database of it keeps old versions from being removed in all of them.
    """
    worker = alone.worker()
    for _ in range(200):
        alone.store.finish([Succeeded(alone.job(State.RUNNING, worker_id=worker), LEASE, None, 5, 1, 1.0)])
    query = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'rollup_pending'"
    wait_until(lambda: alone.execute(query).fetchone()[0] >= 190, timeout=30, what="the counts of updates")
    updates, in_place = alone.execute(query).fetchone()
    assert in_place >= 0.95 * updates
    assert alone.one("SELECT pg_relation_size('jobrunner.rollup_pending')") <= 4 * 8192


def test_who_may_end_jobs_need_not_be_able_to_count(own, fresh_dsn, caplog):
    """A login with the rights it had before the upgrade ends jobs, and they are counted; what it may not do is said once, and done by others."""
    own.execute(f"DO $$ BEGIN CREATE ROLE {GUEST}; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
    try:
        own.execute(f"GRANT USAGE ON SCHEMA jobrunner TO {GUEST}")
        own.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON jobrunner.jobs, jobrunner.job_history, jobrunner.job_attempts TO {GUEST}")
        job_id = own.job(State.RUNNING)
        with psycopg.connect(fresh_dsn, autocommit=True) as guest:
            guest.execute(f"SET ROLE {GUEST}")
            assert Store(guest).finish([Succeeded(job_id, LEASE, None, 5, 1, 1.0)]) == []
            own.execute("UPDATE jobrunner.rollup_pending SET slice = slice - interval '1 hour'")
            settle = Settler()
            for _ in range(2):
                assert settle(Store(guest)) == RolledUp(0, 0, 0)
        assert [record.getMessage() for record in caplog.records if "GRANT" in record.getMessage()] == [caplog.messages[0]]
    finally:
        own.execute(f"DROP OWNED BY {GUEST}; DROP ROLE {GUEST}")
    assert Settler()(own.store) == RolledUp(1, 0, 0)
    assert outcomes(own.connection) == {"succeeded": 1}


def slices(scene, *ages, ended=1):
    """A slice of each age, as a finisher left it."""
    given = {"ended_count": ended, "run_0": ended, "wait_1": ended, "run_ms": 0, "wait_ms": 2 * ended}
    numbers = [given.get(column.name, 0) for column in schema.rollup_pending.columns][5:]
    for number, age in enumerate(ages):
        scene.execute(
            "INSERT INTO jobrunner.rollup_pending SELECT date_bin('10 seconds', now() - %s, 'epoch'), %s, 'default', 't', 'succeeded',"
            f" {', '.join(map(str, numbers))}",
            (age, number),
        )


def test_who_stops_at_a_bound_says_that_there_is_more(scene, monkeypatch):
    """A backlog of slices is not left for the next minutes: the worker takes the step again soon."""
    monkeypatch.setattr(rollups, "MOST_SLICES", 1)
    monkeypatch.setattr(rollups, "MOST_STEPS", 2)
    slices(scene, *(timedelta(seconds=seconds) for seconds in (200, 300, 400)))
    reports = [Settler()(scene.store) for _ in range(2)]
    assert [(report.slices, report.more) for report in reports] == [(2, True), (1, False)]


def test_slices_become_part_of_their_minute_and_their_hour(scene):
    """What is older than two minutes is added up, what is younger stays a slice; the views say the same before and after, and it is done once."""
    slices(scene, *(timedelta(seconds=seconds) for seconds in (1, 60, 200, 201, 3_700, 7_300)))
    before = [counted(scene.connection, hourly=hourly) for hourly in (False, True)]
    assert Settler()(scene.store) == RolledUp(slices=4, days=0, hours=0)
    assert Settler()(scene.store) == RolledUp(0, 0, 0)
    assert [counted(scene.connection, hourly=hourly) for hourly in (False, True)] == before
    assert scene.one("SELECT sum(ended_count) FROM jobrunner.rollup_pending") == 2
    assert scene.one("SELECT sum(ended_count) FROM jobrunner.rollup_minute") == 4
    assert scene.one("SELECT sum(ended_count) FROM jobrunner.rollup_hour") == 4
    slices(scene, timedelta(seconds=200))
    assert Settler()(scene.store) == RolledUp(1, 0, 0)
    assert scene.one("SELECT sum(ended_count) FROM jobrunner.rollup_hour") == 5


def test_a_call_is_bounded_and_the_next_goes_on(scene, monkeypatch):
    """So many slices at a time, and so many times, the oldest first; minutes and hours are whole in between."""
    monkeypatch.setattr(rollups, "MOST_SLICES", 2)
    monkeypatch.setattr(rollups, "MOST_STEPS", 3)
    slices(scene, *(timedelta(minutes=3 + number) for number in range(9)))
    assert Settler()(scene.store).slices == 6
    assert scene.one("SELECT max(slice) < now() - interval '2 minutes' AND min(slice) > now() - interval '6 minutes' FROM jobrunner.rollup_pending")
    assert outcomes(scene.connection) == {"succeeded": 9}
    assert Settler()(scene.store).slices == 3
    assert scene.one("SELECT sum(ended_count) FROM jobrunner.rollup_hour") == 9


def test_after_a_long_pause(scene):
    """What nobody settled for a week is added to its hours; minutes older than they are kept are not made any more."""
    slices(scene, timedelta(days=7), timedelta(days=2))
    assert Settler()(scene.store) == RolledUp(2, 0, 0)
    assert scene.one("SELECT count(*) FROM jobrunner.rollup_hour") == 2
    assert scene.one("SELECT count(*) FROM jobrunner.rollup_minute") == 1


def test_what_is_too_old_goes(own, monkeypatch):
    """Minutes go by whole days when these ended three days ago, hours when they ended 400 days ago, a bounded number at a time."""
    monkeypatch.setattr(rollups, "MOST_HOURS", 2)
    for days in (2, 3, 4, 5, 6):
        name, low, high = own.execute(
            f"SELECT 'rollup_minute_' || to_char(day, 'YYYYMMDD'), day::text, (day + 1)::text FROM (SELECT (now() AT TIME ZONE 'UTC')::date - {days} AS day) AS d"
        ).fetchone()
        own.execute(
            f"CREATE TABLE IF NOT EXISTS jobrunner.{name} PARTITION OF jobrunner.rollup_minute"
            f" FOR VALUES FROM ('{low} 00:00+00') TO ('{high} 00:00+00')"
        )
    zeros = ", ".join(["0"] * 44)
    own.execute(
        f"INSERT INTO jobrunner.rollup_hour SELECT date_bin('1 hour', now(), 'epoch') - h * interval '1 hour', 'q', 't', 'failed', {zeros}"
        " FROM unnest(ARRAY[0, 9598, 9602, 9603, 9700]) AS h"
    )
    settle = Settler()
    assert settle(own.store) == RolledUp(0, 2, 2)
    assert settle(own.store) == RolledUp(0, 1, 1)
    assert settle(own.store) == RolledUp(0, 0, 0)
    assert own.one("SELECT count(*) FROM jobrunner.rollup_hour") == 2
    kept = KeepRollups()
    assert (kept.minutes, kept.hours) == (timedelta(hours=72), timedelta(days=400))


def test_a_reader_of_minutes_is_not_disturbed(own, fresh_dsn):
    """Somebody reads the minutes: the drop of old ones gives up soon, slices are settled all the same, and it succeeds another time."""
    own.execute(
        "CREATE TABLE jobrunner.rollup_minute_20240101 PARTITION OF jobrunner.rollup_minute FOR VALUES FROM ('2024-01-01 00:00+00') TO ('2024-01-02 00:00+00')"
    )
    slices(own, timedelta(minutes=5))
    with sessions_on(fresh_dsn) as sessions:
        reader = sessions()
        with reader.connection.transaction():
            assert reader.one("SELECT count(*) FROM jobrunner.v_throughput") == 1
            assert Settler()(own.store) == RolledUp(1, 0, 0)
        assert Settler()(own.store) == RolledUp(0, 1, 0)


def test_a_cron_run_settles_before_it_leaves(own, fresh_dsn, tmp_path):
    """No daemon is needed: a run of cron, and a drain, settle at their end, and say nothing of it."""
    (tmp_path / "app.py").write_text(APP)
    for command in (["cron"], ["-q", "work", "--drain"]):
        slices(own, timedelta(minutes=5))
        assert Program(tmp_path, fresh_dsn)(*command).err == ""
        assert own.one("SELECT count(*) FROM jobrunner.rollup_pending WHERE task = 't'") == 0
    assert own.one("SELECT sum(ended_count) FROM jobrunner.rollup_hour") == 2
