"""Through PgBouncer in transaction mode: the server process changes from transaction to transaction."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa

from jobrunner import JobFailed, JobRunner, migrate
from jobrunner.connecting import connect, plan_once
from jobrunner.settings import parse_dsn
from jobrunner.store import Store
from jobrunner.waiters import watcher_of
from tests.support import effects, poolers
from tests.support.cli import APP, Program
from tests.support.revisions import start_upgrade
from tests.support.waiting import wait_until
from tests.support.workers import Ledger, insert, rows, states, wait_for_states, workers

PATIENCE = 120  # seconds for results on a machine that does much else


@pytest.fixture
def pooled(fresh_dsn, tmp_path):
    """The address of a PgBouncer before `fresh_dsn`, with two server connections for all."""
    with poolers.pgbouncer(fresh_dsn, tmp_path) as address:
        yield address


@pytest.mark.needs("pgbouncer")
def test_the_same_through_a_transaction_mode_pooler(pooled, fresh_dsn, tmp_path):
    """Enqueue in own and callers' transactions, in bulk and unique, and a worker that drains: all work through PgBouncer."""
    jobs = JobRunner(dsn=pooled)

    @jobs.task
    def work(number: int, seconds: float = 0.0) -> int:
        return number

    for number in range(30):
        work.enqueue(number)
    work.enqueue_many([(number,) for number in range(100, 300)])
    first, second = (work.options(unique="one").enqueue(1000) for _ in range(2))
    assert (first.created, second.created, second.id) == (True, False, first.id)
    engine = sa.create_engine(pooled.replace("postgresql://", "postgresql+psycopg://"), connect_args={"prepare_threshold": None})
    with engine.begin() as connection:
        work.options(connection=connection).enqueue(2000)
    engine.dispose()
    jobs.close()
    with workers(pooled, Ledger(tmp_path / "ledger").path, "-c", "2", "--drain") as [worker]:
        assert worker.wait() == 0
    assert states(fresh_dsn) == {"succeeded": 232}
    assert rows(fresh_dsn, "SELECT max(attempt), max(crash_count) FROM jobrunner.v_jobs") == [(1, 0)]


@pytest.mark.needs("pgbouncer")
def test_nothing_is_prepared_nor_set_through_a_transaction_mode_pooler(pooled, fresh_dsn):
    """What a worker does to have statements planned once is not done to a server process that belongs to everybody."""
    with connect(parse_dsn(pooled, "a test")) as connection:
        plan_once(connection)
        store = Store(connection)
        for _ in range(3):
            store.find_due(["default"])
        left = connection.execute("SELECT count(*), current_setting('plan_cache_mode') FROM pg_prepared_statements").fetchone()
    assert left == (0, "auto")


@pytest.mark.needs("pgbouncer")
def test_results_through_a_transaction_mode_pooler(pooled, fresh_dsn, tmp_path, monkeypatch):
    """Many who wait at once, more than there are server connections, get their results and failures; no setting is left behind."""
    monkeypatch.setattr("jobrunner.waiters.LAST_LOOK", PATIENCE)  # who waits for a moment learns what the job does, on any machine
    jobs = JobRunner(dsn=pooled)

    @jobs.task
    def work(number: int) -> int: ...  # type: ignore[empty-body]

    @jobs.task
    def hostile(kind: str) -> None: ...

    with workers(pooled, Ledger(tmp_path / "ledger").path, "-c", "2", "--poll", "0.05s", "--no-listen"):
        with ThreadPoolExecutor(20) as threads:
            assert list(threads.map(lambda number: work.enqueue(number).result(PATIENCE), range(60))) == list(range(60))
        with pytest.raises(JobFailed, match="Hostile"):
            hostile.enqueue("str").result(PATIENCE)
        with pytest.raises(TimeoutError, match="it is scheduled"):
            work.options(delay=60).enqueue(1).result(0.1)
    watcher_of(jobs.dsn).close()
    jobs.close()
    with psycopg.connect(pooled, prepare_threshold=None) as one, psycopg.connect(pooled, prepare_threshold=None) as other:
        modes = [connection.execute("SELECT current_setting('plan_cache_mode')").fetchone() for connection in (one, other)]
    assert modes == [("auto",)] * 2


@pytest.mark.needs("pgbouncer")
def test_transactional_jobs_through_a_transaction_mode_pooler(pooled, fresh_dsn, tmp_path):
    """Effects, children and ends commit together through PgBouncer too, also after its server connections were cut."""
    effects.prepare(fresh_dsn)
    insert(fresh_dsn, "settle", 60, backoff="constant", backoff_base="0s")
    ledger = Ledger(tmp_path / "ledger")
    application = str(Path(__file__).parents[1] / "support" / "transactional_app.py")
    with workers(pooled, ledger.path, "-c", "2", app=application) as [worker]:
        for step in range(1, 4):
            ledger.wait_for_ends(step * 10)
            rows(
                fresh_dsn,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'",
            )
        wait_for_states(fresh_dsn, 60, succeeded=120)
        assert worker.stop() == 0
    verdict = effects.check(fresh_dsn)
    print(verdict)
    assert verdict.faults == {}


def test_a_direct_connection_prepares_its_insert(fresh_dsn):
    """On a direct connection the INSERT of `enqueue` is parsed once, not once a job."""
    jobs = JobRunner(dsn=fresh_dsn)

    @jobs.task
    def work(number: int) -> int:
        return number

    for number in range(3):
        work.enqueue(number)
    with jobs.database.store() as store:
        prepared = store.connection.execute("SELECT statement FROM pg_prepared_statements").fetchall()
    jobs.close()
    assert len([text for (text,) in prepared if "INSERT INTO jobrunner.jobs" in text]) == 1


@pytest.mark.needs("pgbouncer")
def test_upgrades_through_a_transaction_mode_pooler(pooled, fresh_dsn):
    """Upgrades at once through the pooler, with two server connections for all, run the revisions once and leave no setting behind."""
    migrate.downgrade(fresh_dsn, "base")
    processes = [start_upgrade(pooled) for _ in range(3)]
    outputs = sorted(process.communicate(timeout=60) for process in processes)
    assert outputs == [("\n", ""), ("\n", ""), (" ".join(migrate._revisions()) + "\n", "")]
    assert migrate.check(pooled).up_to_date
    assert migrate.drift(pooled) == []
    with psycopg.connect(pooled, prepare_threshold=None) as one, psycopg.connect(pooled, prepare_threshold=None) as other:
        settings = [
            connection.execute("SELECT current_setting('lock_timeout'), current_schemas(false)").fetchone() for connection in (one, other)
        ]
    assert settings == [("0", ["public"])] * 2


@pytest.mark.needs("pgbouncer")
def test_a_slot_holds_through_a_transaction_mode_pooler(pooled, fresh_dsn, tmp_path):
    """Runs of cron through the pooler exclude each other: while one has the slot others leave with 5; killed, it is taken over."""
    (tmp_path / "app.py").write_text(APP)
    program = Program(tmp_path, pooled)
    began, release = tmp_path / "began", tmp_path / "release"
    program("-q", "enqueue", "hold", json.dumps({"started": str(began), "release": str(release)}))
    with program.started("cron", "--no-listen", "--lease", "10m") as first:
        wait_until(began.exists, timeout=60, what="the job to begin")
        assert [program("cron", "--strict", "--no-listen", ok=None).code for _ in range(2)] == [5, 5]
        first.process.kill()
        first.process.wait()
        release.touch()
        assert len(rows(fresh_dsn, "UPDATE jobrunner.workers SET lease_expires_at = now() RETURNING id")) == 1
        said = program("cron", "--strict", "--no-listen")
        assert said.out == ""
        assert said.err.count("\n") == said.err.count("level=warning")
    assert states(fresh_dsn) == {"succeeded": 1}
    assert rows(fresh_dsn, "SELECT reason, exit_code FROM jobrunner.v_worker_runs ORDER BY id") == [("lost", None), ("drained", 0)]
