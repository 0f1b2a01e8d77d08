"""Pruning: what is too old goes, in bounded steps, by anybody, any number at once, and nobody waits for it."""

from __future__ import annotations

import json
from datetime import timedelta

import psycopg
import pytest

from jobrunner import inspection
from jobrunner.database import Database
from jobrunner.errors import ConfigurationError
from jobrunner.jobs import Ending, Unsuccessful
from jobrunner.maintenance.pruner import MOST_PARTITIONS, Keep, Pruned, Pruner
from jobrunner.settings import Dsn
from jobrunner.states import State
from jobrunner.store import Store
from tests.support.calls import gather
from tests.support.cli import APP, Program
from tests.support.explain import explain
from tests.support.rows import LEASE, STOPPED, Scene
from tests.support.sessions import PATIENCE, sessions_on
from tests.support.workers import rows

DAY_MS = 86_400_000
WEEK = timedelta(days=7)


@pytest.fixture
def own(fresh_dsn):
    """A database of one's own: partitions are made and dropped."""
    with psycopg.connect(fresh_dsn, autocommit=True) as connection:
        yield Scene(connection)


@pytest.fixture
def sessions(fresh_dsn):
    """More sessions on it."""
    with sessions_on(fresh_dsn) as opened:
        yield opened


def stopped(scene, days, count=1):
    """Workers that stopped so many days ago, and their runs; returns the workers' ids."""
    ids = [scene.worker(STOPPED) for _ in range(count)]
    scene.execute("UPDATE jobrunner.workers SET stopped_at = now() - %s * interval '1 day' WHERE id = ANY (%s)", (days, ids))
    scene.execute(
        "INSERT INTO jobrunner.worker_runs (worker_id, name, host, pid, kind, version, started_at, finished_at, reason, succeeded_count,"
        " failed_count, crashed_count) SELECT id, name, host, pid, kind, version, started_at, stopped_at, 'done', 0, 0, 0"
        " FROM jobrunner.workers WHERE id = ANY (%s)",
        (ids,),
    )
    return ids


def log_days(scene, *days_ago):
    """Make daily partitions of job_logs so many days ago, each with a line."""
    for days in days_ago:
        day = f"((now() AT TIME ZONE 'UTC')::date - {days})"
        name, low, high = scene.execute(f"SELECT 'job_logs_' || to_char({day}, 'YYYYMMDD'), {day}::text, ({day} + 1)::text").fetchone()
        scene.execute(
            f"CREATE TABLE IF NOT EXISTS jobrunner.{name} PARTITION OF jobrunner.job_logs FOR VALUES FROM ('{low} 00:00+00') TO ('{high} 00:00+00')"
        )
        scene.execute(
            "INSERT INTO jobrunner.job_logs (job_id, lease, line, attempt, logged_at, level, logger, message)"
            f" VALUES (1, 1, 1, 1, '{low} 12:00+00', 20, 'shop', 'sold {days} days ago')"
        )


def logged(scene):
    """How old the lines are that are left, in days."""
    query = "SELECT ((now() AT TIME ZONE 'UTC')::date - (logged_at AT TIME ZONE 'UTC')::date) FROM jobrunner.v_logs ORDER BY 1 DESC"
    return [days for (days,) in scene.execute(query).fetchall()]


def test_only_what_is_older_than_it_is_kept_goes(own):
    """Workers after 7 days, runs after 90, whole days of logs after 30; those who have not stopped stay however old they are."""
    alive = own.worker()
    own.age_worker(alive, "started_at = now() - interval '1 year', lease_expires_at = now() + interval '1 hour'")
    kept = stopped(own, 6.9)
    gone_worker, gone_run = stopped(own, 7.1), stopped(own, 90.1)
    log_days(own, 29, 30, 31, 40)
    assert Pruner()(own.store) == Pruned(workers=2, runs=1, log_partitions=MOST_PARTITIONS)
    assert own.one("SELECT array_agg(id ORDER BY id) FROM jobrunner.workers") == [alive, *kept]
    assert own.one("SELECT array_agg(worker_id ORDER BY worker_id) FROM jobrunner.worker_runs") == [*kept, *gone_worker]
    assert gone_run[0] not in own.one("SELECT array_agg(worker_id) FROM jobrunner.worker_runs")
    assert logged(own) == [30, 29]
    assert Pruner()(own.store) == Pruned(0, 0, 0)


def test_a_step_is_bounded_and_takes_the_oldest(own):
    """So many rows or partitions and no more, the oldest first; the next step takes the rest."""
    old, older = stopped(own, 20, count=3), stopped(own, 30, count=3)
    log_days(own, 50, 51, 52)
    assert own.store.prune("workers", WEEK, 4) == 4
    left = own.one("SELECT array_agg(id) FROM jobrunner.workers")
    assert len(left) == 2
    assert set(left) < set(old)
    assert own.store.prune("worker_runs", WEEK, 3) == 3
    assert set(own.one("SELECT array_agg(worker_id) FROM jobrunner.worker_runs")) == set(old)
    assert older
    assert own.store.drop_partitions("job_logs", WEEK, 2, WEEK) == 2
    assert logged(own) == [50]
    assert own.store.drop_partitions("job_logs", WEEK, 2, WEEK) == 1


def test_a_worker_whose_job_was_never_rescued_stays(own):
    """The row of a worker under which a job still runs is the only trace of whose it is; it goes when the job has gone."""
    (worker,) = stopped(own, 30)
    job_id = own.job(State.RUNNING, worker_id=worker)
    assert own.store.prune("workers", WEEK, 10) == 0
    own.execute("DELETE FROM jobrunner.jobs WHERE id = %s", (job_id,))
    assert own.store.prune("workers", WEEK, 10) == 1


def test_history_does_without_the_workers_row(own, fresh_dsn):
    """A job whose worker is forgotten is shown like any other, only without the worker's name."""
    (worker,) = stopped(own, 30)
    job_id = own.job(State.RUNNING, worker_id=worker)
    assert own.store.finish([Unsuccessful(Ending.FAIL, job_id, LEASE, "builtins.ValueError", "no", run_ms=1)]) == []
    Pruner()(own.store)
    database = Database(Dsn(fresh_dsn, "test"))
    found = inspection.get_job(database, job_id)
    assert (found.job.worker_id, found.worker) == (worker, None)
    assert [row.id for row in inspection.list_jobs(database).items] == [job_id]
    database.close()


def test_two_pruners_share_the_rows(own, sessions):
    """While one has not committed, another takes other rows and waits for none."""
    ids = stopped(own, 30, count=4)
    first, second = sessions(), sessions.impatient()
    with first.connection.transaction():
        assert first.store.prune("workers", WEEK, 2) == 2
        assert first.store.prune("worker_runs", WEEK, 2) == 2
        assert second.store.prune("workers", WEEK, 10) == 2
        assert second.store.prune("worker_runs", WEEK, 10) == 2
    assert own.one("SELECT count(*) FROM jobrunner.workers WHERE id = ANY (%s)", (ids,)) == 0


def test_two_pruners_drop_a_partition_once(own, sessions):
    """While one drops, another leaves the partitions alone at once; nothing fails, and nothing is dropped twice."""
    log_days(own, 40)
    first, second = sessions(), sessions()
    with first.connection.transaction():
        assert first.store.drop_partitions("job_logs", WEEK, 9, WEEK) == 1
        assert second.store.drop_partitions("job_logs", WEEK, 9, timedelta(milliseconds=1)) == 0
    assert second.store.drop_partitions("job_logs", WEEK, 9, WEEK) == 0


def test_a_reader_is_not_disturbed(own, sessions):
    """Somebody reads the logs: the drop gives up soon, so that nobody queues up behind it; it succeeds once the reader is done."""
    log_days(own, 40)
    stopped(own, 30)
    reader, pruner, writer = sessions(), sessions(), sessions()
    writer.execute(f"SET lock_timeout = '{PATIENCE}s'")  # it may have to wait until the drop has given up
    prune = Pruner()
    with reader.connection.transaction():
        assert reader.one("SELECT count(*) FROM jobrunner.job_logs") == 1
        under_way = pruner.call(lambda: prune(pruner.store))
        log_days(writer, 0)
        assert under_way.result(PATIENCE) == Pruned(workers=1, runs=0, log_partitions=0)
        assert 40 in logged(own)
    assert prune(pruner.store) == Pruned(0, 0, 1)
    assert logged(own) == [0]


def test_a_login_that_may_not_drop(own, fresh_dsn):
    """A worker whose login does not own the tables prunes rows, leaves the partitions, and asks once."""
    log_days(own, 40)
    stopped(own, 30)
    own.execute("DO $$ BEGIN CREATE ROLE jobrunner_test_pruner; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
    own.execute("GRANT USAGE ON SCHEMA jobrunner TO jobrunner_test_pruner")
    own.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA jobrunner TO jobrunner_test_pruner")
    try:
        with psycopg.connect(fresh_dsn, autocommit=True) as guest:
            guest.execute("SET ROLE jobrunner_test_pruner")
            prune = Pruner()
            assert prune(Store(guest)) == Pruned(workers=1, runs=0, log_partitions=0)
            assert prune(Store(guest)) == Pruned(0, 0, 0)
    finally:
        own.execute("DROP OWNED BY jobrunner_test_pruner; DROP ROLE jobrunner_test_pruner")
    assert logged(own) == [40]


@pytest.mark.parametrize("statistics", ["analysed", "never"])
def test_a_step_reads_what_it_removes(own, statistics):
    """Beside thousands of rows that stay, a step reads the few that go, by the index on their age."""
    own.execute(
        "INSERT INTO jobrunner.workers (name, host, pid, kind, version, queues, tasks, slots, lease_expires_at, stopped_at)"
        " SELECT 'w', 'h', 1, 'test', '0', '{}', '{}', 1, at, at FROM generate_series(1, 5000) AS g, LATERAL (SELECT now() - g * interval '1 minute' AS at) AS t"
    )
    own.execute(
        "INSERT INTO jobrunner.worker_runs (worker_id, name, host, pid, kind, version, started_at, finished_at, reason, succeeded_count, failed_count, crashed_count)"
        " SELECT id, 'w', 'h', 1, 'test', '0', stopped_at, stopped_at, 'done', 0, 0, 0 FROM jobrunner.workers"
    )
    stopped(own, 30, count=3)
    if statistics == "analysed":
        gather(own)
        own.execute("VACUUM ANALYZE jobrunner.worker_runs")
    for name, table, index in (("prune_workers", "workers", "workers_stopped"), ("prune_worker_runs", "worker_runs", "worker_runs_recent")):
        plan = explain(own.connection, name, {"keep_ms": 7 * DAY_MS, "most": 100})
        assert index in plan.indexes(), plan.outline()
        assert plan.rows_read(table) <= 2 * 3, plan.outline()


def test_how_long_things_are_kept():
    """By the environment, as durations of a day or more; what is no such thing is refused by its name."""
    assert Keep.from_environ({}) == Keep(timedelta(days=30), timedelta(days=90), timedelta(days=7))
    found = Keep.from_environ({"JOBRUNNER_KEEP_LOGS": "2d", "JOBRUNNER_KEEP_RUNS": "52w"})
    assert (found.logs, found.runs) == (timedelta(days=2), timedelta(weeks=52))
    for value in ("x", "-1d", "23h", "99999999999d", "nan"):
        with pytest.raises(ConfigurationError, match="JOBRUNNER_KEEP_LOGS"):
            Keep.from_environ({"JOBRUNNER_KEEP_LOGS": value})


def test_a_cron_run_prunes_before_it_leaves(own, fresh_dsn, tmp_path):
    """No daemon is needed: a run of cron, and a drain, take one step at their end, and say nothing of it."""
    for number, command in enumerate((["cron"], ["-q", "work", "--drain"])):
        stopped(own, 30 + number)
        log_days(own, 60 + number)
        (tmp_path / "app.py").write_text(APP)
        said = Program(tmp_path, fresh_dsn)(*command)
        assert said.err == ""
        assert logged(own) == []
        assert rows(fresh_dsn, "SELECT count(*) FROM jobrunner.workers WHERE stopped_at < now() - interval '1 day'") == [(0,)]
    assert json.loads(Program(tmp_path, fresh_dsn)("cron", "--summary").out)["exit"] == 0
