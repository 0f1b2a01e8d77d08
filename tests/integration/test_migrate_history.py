"""Revision 0005 on a history that is there already: its indexes are built beside whoever finishes jobs, and after a kill gone on with."""

from __future__ import annotations

import signal

import psycopg
import pytest

from jobrunner import migrate
from tests.support.revisions import start_upgrade
from tests.support.waiting import wait_until

SECONDS = 60
BEFORE, REVISION = "0004", "0005"
INDEXES = ("job_history_task_unsuccessful", "job_history_queue")
# Some days are large, which means that they are indexed concurrently, and the rest is small or empty.
HISTORY = """
INSERT INTO jobrunner.job_history (id, task, args, queue, priority, tags, created_at, run_at, state, lease, attempt, max_attempts, backoff,
    backoff_base, backoff_cap, backoff_jitter, crash_count, max_crashes, finished_at)
SELECT g, 'send', jsonb_build_object('pad', repeat('x', 900)), CASE WHEN g % 3 = 0 THEN 'mail' ELSE 'default' END, 0, '{}', now(), now(),
       CASE WHEN g % 5 = 0 THEN 'failed' ELSE 'succeeded' END, 1, 1, 5, 'exponential', '5 s', '1 h', 1, 0, 3, now()
FROM generate_series(1, 12000) AS g
"""
ONE = HISTORY.replace("SELECT g,", "SELECT 100000 + g,").replace("12000", "1")
BUILDING = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'CREATE INDEX CONCURRENTLY%' AND wait_event_type = 'Lock'"
UNSOUND = "SELECT count(*) FROM pg_index x JOIN pg_class c ON c.oid = x.indexrelid WHERE c.relname LIKE 'job_history%' AND NOT x.indisvalid"
PARTS = "SELECT count(*) FROM pg_inherits WHERE inhparent = ('jobrunner.' || %s)::regclass"


@pytest.fixture
def admin(empty_dsn):
    """A connection to a database with a large day of history, before the revision."""
    migrate.upgrade(empty_dsn, BEFORE)
    with psycopg.connect(empty_dsn, autocommit=True) as connection:
        connection.execute(HISTORY)
        yield connection


def today(admin) -> str:
    """The name of the large partition."""
    return str(admin.execute("SELECT 'job_history_' || to_char(now() AT TIME ZONE 'UTC', 'YYYYMMDD')").fetchone()[0])


def is_whole(dsn, admin) -> bool:
    """Whether every partition has the indexes, and all are sound."""
    parts = {admin.execute(PARTS, (name,)).fetchone() for name in ("job_history", *INDEXES)}
    return migrate.drift(dsn) == [] and admin.execute(UNSOUND).fetchone() == (0,) and len(parts) == 1


def test_jobs_are_finished_while_the_indexes_are_built(empty_dsn, admin):
    """While a build waits for a transaction that finishes a job, others finish theirs and partitions are made; then all have the indexes."""
    with psycopg.connect(empty_dsn) as slow, psycopg.connect(empty_dsn, autocommit=True) as worker:
        slow.execute(ONE.replace("job_history", today(admin), 1))  # not through the whole table: its lock is waited for in another way
        upgrade = start_upgrade(empty_dsn)
        wait_until(lambda: admin.execute(BUILDING).fetchone() is not None, timeout=SECONDS, what="the build to wait for the transaction")
        worker.execute("SET lock_timeout = '2s'")
        worker.execute(ONE.replace("100000", "200000"))
        assert worker.execute("SELECT jobrunner.ensure_partitions(9) > 0").fetchone() == (True,)
        slow.commit()
        out, err = upgrade.communicate(timeout=SECONDS)
    assert (upgrade.returncode, out.split()) == (0, [step for step in migrate._revisions() if step >= REVISION]), err
    assert is_whole(empty_dsn, admin)


def test_a_build_that_was_killed_is_gone_on_with(empty_dsn, admin):
    """kill -9 leaves the revision of before, a schema that works, and nothing that the next upgrade does not mend."""
    with psycopg.connect(empty_dsn) as slow:
        slow.execute(ONE.replace("job_history", today(admin), 1))  # not through the whole table: its lock is waited for in another way
        upgrade = start_upgrade(empty_dsn)
        wait_until(lambda: admin.execute(BUILDING).fetchone() is not None, timeout=SECONDS, what="the build to wait for the transaction")
        upgrade.send_signal(signal.SIGKILL)
        upgrade.communicate(timeout=SECONDS)
        ours = "FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'CREATE INDEX CONCURRENTLY%'"
        admin.execute(f"SELECT pg_terminate_backend(pid) {ours}")
        wait_until(lambda: admin.execute(BUILDING).fetchone() is None, timeout=SECONDS, what="the build to be gone")
        slow.rollback()
    assert migrate.version(empty_dsn).current == BEFORE
    assert admin.execute(UNSOUND).fetchone() != (0,)
    migrate.upgrade(empty_dsn)
    assert is_whole(empty_dsn, admin)


def test_a_copy_that_is_to_take_a_days_place_gets_them_too(empty_dsn, admin):
    """A day that retention is about to put in another's place has the indexes before that: they are not built under its lock."""
    admin.execute("CREATE TABLE jobrunner.job_history_20200101_kept (LIKE jobrunner.job_history INCLUDING ALL)")
    migrate.upgrade(empty_dsn)
    found = admin.execute("SELECT count(*) FROM pg_indexes WHERE tablename = 'job_history_20200101_kept'").fetchone()
    assert found == admin.execute("SELECT count(*) FROM pg_indexes WHERE tablename = 'job_history_default'").fetchone()


def test_a_role_with_a_short_timeout_builds_them(empty_dsn, admin):
    """What a role's queries may take does not hold for the builds, and holds again after them."""
    admin.execute("DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET statement_timeout = 2000', current_database()); END $$")
    with psycopg.connect(empty_dsn) as slow:
        slow.execute(ONE.replace("job_history", today(admin), 1))
        upgrade = start_upgrade(empty_dsn)
        longer = BUILDING + " AND now() - query_start > interval '2 s'"
        wait_until(lambda: admin.execute(longer).fetchone() is not None, timeout=SECONDS, what="a build to take longer than that")
        slow.commit()
        _, err = upgrade.communicate(timeout=SECONDS)
    assert upgrade.returncode == 0, err
    assert is_whole(empty_dsn, admin)
