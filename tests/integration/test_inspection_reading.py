"""How reading behaves when the database is slow, restarted, dead, or without our tables."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import TYPE_CHECKING

import psycopg
import pytest
import sqlalchemy as sa

from jobrunner import inspection
from jobrunner.connecting import patience
from jobrunner.database import Database
from jobrunner.errors import DatabaseUnreachable, QueryTimeout, SchemaMissing, TablesLocked
from jobrunner.filters import JobFilter
from jobrunner.inspection import ranges
from jobrunner.settings import parse_dsn

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def database(dsn) -> Iterator[Database]:
    """A pool on the test's database."""
    opened = Database(parse_dsn(dsn, "test"))
    yield opened
    opened.close()


def add_job(connection, task="t", queue="default", **columns) -> int:
    """A live job row."""
    values = {"task": task, "queue": queue, **columns}
    statement = f"INSERT INTO jobrunner.jobs ({', '.join(values)}) VALUES ({', '.join(['%s'] * len(values))}) RETURNING id"
    return int(connection.execute(statement, list(values.values())).fetchone()[0])


def test_reads_cannot_write(connection, database) -> None:
    """Every read runs in a READ ONLY transaction of one snapshot with its own time limits, which end with it."""
    with inspection.reading(database) as reader:
        assert reader.connection.scalar(sa.text("SHOW transaction_read_only")) == "on"
        assert reader.connection.scalar(sa.text("SHOW transaction_isolation")) == "repeatable read"
        assert reader.connection.scalar(sa.text("SHOW statement_timeout")) == "2s"
        assert reader.connection.scalar(sa.text("SHOW jit")) == "off"
        with pytest.raises(sa.exc.InternalError, match="read-only transaction"):
            reader.connection.execute(sa.text("DELETE FROM jobrunner.jobs"))
    with database.store() as store:
        assert store.connection.autocommit
        assert store.connection.execute("SHOW statement_timeout").fetchone() == ("0",)
        assert store.connection.execute("SHOW transaction_read_only").fetchone() == ("off",)


def test_a_slow_read_is_ended(database) -> None:
    """A statement that runs into the limit is ended by the server and is QueryTimeout."""
    with (
        pytest.raises(QueryTimeout, match=r"needs longer than 0\.05 s"),
        inspection.reading(database, timedelta(milliseconds=50)) as reader,
    ):
        reader.connection.execute(sa.text("SELECT pg_sleep(10)"))


def test_a_locked_table_is_told_apart(connection, database) -> None:
    """A reader does not queue behind a migration for long, and says what it met rather than that the server is away."""
    with connection.transaction():
        connection.execute("LOCK TABLE jobrunner.jobs IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(TablesLocked, match=r"locked the job tables for longer than 0\.5 s"):
            inspection.list_jobs(database)


def test_pooled_connections_notice_a_dead_peer(database) -> None:
    """They have the keepalives and the patience of all our connections, and what the address says goes first."""
    assert patience(database.dsn)["tcp_user_timeout"] == 15_000
    own = parse_dsn(f"{database.dsn.url}&connect_timeout=3&keepalives_idle=77", "test")
    for dsn, idle, patient in ((database.dsn, "5", "10"), (own, "77", "3")):
        pool = Database(dsn)
        with pool.store() as store:
            known = store.connection.info.get_parameters()
        pool.close()
        assert (known["keepalives_idle"], known["connect_timeout"]) == (idle, patient)


def test_a_read_survives_a_restart_of_the_server(connection, database) -> None:
    """Connections that died in the pool cost nobody an error."""
    assert inspection.list_jobs(database).items == ()
    connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    assert inspection.list_jobs(database).items == ()


def test_a_dead_database_is_named_without_its_password() -> None:
    """A server that does not answer is DatabaseUnreachable, with its address and never the password."""
    database = Database(parse_dsn("postgresql://ana:s3cret@127.0.0.1:1/shop", "JOBRUNNER_DSN"))
    with pytest.raises(DatabaseUnreachable) as caught:
        inspection.list_jobs(database)
    assert "ana@127.0.0.1:1/shop" in str(caught.value)
    assert "s3cret" not in str(caught.value) + caught.value.hint
    database.close()


def test_a_database_without_our_tables_is_schema_missing(empty_dsn) -> None:
    """Before `db upgrade` every read says so."""
    database = Database(parse_dsn(empty_dsn, "test"))
    with pytest.raises(SchemaMissing):
        inspection.list_jobs(database)
    with pytest.raises(SchemaMissing):
        inspection.pulse(database)
    database.close()


def test_a_page_is_one_snapshot(connection, database, monkeypatch) -> None:
    """A job that finishes between the two statements of a page is on it once."""
    job_id = add_job(connection)
    original = ranges.page_parts
    moved = threading.Event()

    def finish_in_between(*args, **kwargs):
        if not moved.is_set():
            moved.set()
            connection.execute(
                "WITH gone AS (DELETE FROM jobrunner.jobs RETURNING *) INSERT INTO jobrunner.job_history "
                "(id, task, args, queue, priority, tags, created_at, run_at, state, lease, attempt, max_attempts, backoff, backoff_base, "
                "backoff_cap, backoff_jitter, crash_count, max_crashes) SELECT id, task, args, queue, priority, tags, created_at, run_at, "
                "'cancelled', lease, attempt, max_attempts, backoff, backoff_base, backoff_cap, backoff_jitter, crash_count, max_crashes FROM gone"
            )
        return original(*args, **kwargs)

    monkeypatch.setattr("jobrunner.inspection.lists.page_parts", finish_in_between)
    assert [job.id for job in inspection.list_jobs(database).items] == [job_id]
    assert moved.is_set()
    assert inspection.list_jobs(database).items[0].state == "cancelled"


def test_an_empty_filter_is_no_filter(database) -> None:
    """An empty database answers every question."""
    page = inspection.list_jobs(database, filter=JobFilter())
    assert (page.items, page.next, page.prev) == ((), None, None)
    assert inspection.list_queues(database) == ()
    assert inspection.list_workers(database) == ()
    assert inspection.status(database).problems[0].code == "no_worker"
    assert isinstance(psycopg.__version__, str)
