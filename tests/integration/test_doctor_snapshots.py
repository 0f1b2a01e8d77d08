"""The doctor finds who holds a snapshot, and the command that it prints ends it."""

from __future__ import annotations

import contextlib
from datetime import timedelta

import psycopg
import pytest

from jobrunner.doctor import Limits
from tests.support import doctoring
from tests.support.doctoring import examined, mend
from tests.support.waiting import wait_until
from tests.support.workers import insert

pytestmark = pytest.mark.needs("psql")

AT_ONCE = Limits(snapshot_note=timedelta(0), back_least=0, back_note=0)
SECRET = "hunter2"


@pytest.fixture(scope="module")
def own():
    """A cluster that can prepare transactions and has replication slots."""
    with doctoring.cluster({"max_prepared_transactions": "3", "wal_level": "logical", "wal_receiver_status_interval": "1"}) as server:
        yield server


@contextlib.contextmanager
def holding(dsn, **options):
    """A session with an open transaction that sees the database as it is now."""
    with psycopg.connect(dsn, application_name="reports", **options) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.execute(f"SELECT count(*) FROM jobrunner.jobs WHERE task <> '{SECRET}' AND id > 4711")
        yield connection


def advance(dsn, transactions=3):
    """Let some transactions pass."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        for _ in range(transactions):
            connection.execute("SELECT pg_current_xact_id()")


def test_a_session_with_an_old_snapshot(fresh_dsn):
    """It is named with pid, user, application, age and query without values; once it is ended as printed, nobody is."""
    with contextlib.suppress(psycopg.OperationalError), holding(fresh_dsn) as holder:
        advance(fresh_dsn)
        finding = examined(fresh_dsn, AT_ONCE).one("snapshot_session")
        assert finding.state == "note"
        assert finding.fix == f"select pg_terminate_backend({holder.info.backend_pid});"
        assert "user postgres, reports, idle in transaction" in finding.text
        assert finding.data["back"] >= 3
        assert finding.data["held_seconds"] > 0
        assert finding.data["query"] == "SELECT count(*) FROM jobrunner.jobs WHERE task <> …"
        assert SECRET not in finding.text
        mend(fresh_dsn, finding)
        (finding,) = wait_until(lambda: examined(fresh_dsn, AT_ONCE).all("snapshots"), timeout=30, what="the session to be gone")
        assert finding.state == "ok"


def test_a_young_snapshot_is_nobodys_fault(fresh_dsn):
    """A transaction of a few seconds is no finding."""
    with holding(fresh_dsn):
        assert examined(fresh_dsn).one("snapshots").state == "ok"


def test_a_session_that_holds_next_to_nothing(own):
    """One that is old by its begin and takes a new snapshot with each statement is no finding, until transactions pass under one."""
    limits = Limits(snapshot_bad=timedelta(0))
    with holding(own.dsn()):
        assert examined(own.dsn(), limits).one("snapshots").state == "ok"
        advance(own.dsn(), limits.back_least)
        assert examined(own.dsn(), limits).one("snapshot_session").state == "bad"


def test_a_transaction_that_has_written_and_waits(fresh_dsn):
    """Between two statements it has no snapshot, and holds the horizon by its transaction id."""
    with psycopg.connect(fresh_dsn) as writer:
        writer.execute("INSERT INTO jobrunner.jobs (task) VALUES ('t')")
        advance(fresh_dsn)
        finding = examined(fresh_dsn, AT_ONCE).one("snapshot_session")
        assert finding.data["pid"] == writer.info.backend_pid
        assert finding.data["back"] >= 3


def test_dead_rows_make_it_bad(fresh_dsn):
    """With the dead rows of jobs that it keeps, the same snapshot is bad, and their number is told."""
    insert(fresh_dsn, "t", 500)
    with holding(fresh_dsn):
        with psycopg.connect(fresh_dsn, autocommit=True) as connection:
            connection.execute("DELETE FROM jobrunner.jobs")  # counted when the session ends; one that stays counts after ten seconds
        limits = Limits(snapshot_note=timedelta(0), back_least=0, dead_note=400)
        wait_until(lambda: examined(fresh_dsn, limits).one("snapshot_session").state == "bad", timeout=30, what="the dead rows are counted")
        assert examined(fresh_dsn, limits).one("snapshot_session").data["dead_rows"] == 500


def test_snapshots_of_other_databases_do_not_count(fresh_dsn, server):
    """They hold back nothing of ours."""
    with server.temporary() as other, holding(other):
        assert examined(fresh_dsn, AT_ONCE).one("snapshots").state == "ok"


def test_a_prepared_transaction(own):
    """One that nobody ended is bad, and rolled back by name, whatever stands in the name."""
    dsn = own.dsn()
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("BEGIN; INSERT INTO jobrunner.jobs (task) VALUES ('t'); PREPARE TRANSACTION 'it''s 4711'")
    advance(dsn)
    finding = examined(dsn, AT_ONCE).one("snapshot_prepared")
    assert finding.state == "bad"
    assert finding.fix == "rollback prepared 'it''s 4711';"
    assert finding.data["back"] >= 3
    mend(dsn, finding)
    assert examined(dsn, AT_ONCE).one("snapshots").state == "ok"


def test_a_logical_slot_that_nobody_reads(own):
    """It keeps WAL and the catalogs' dead rows; dropping it as printed frees both."""
    dsn = own.dsn()
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("SELECT pg_create_logical_replication_slot('forgotten', 'pgoutput')")
    advance(dsn)
    finding = examined(dsn).one("snapshot_slot")
    assert finding.state == "note"
    assert "'forgotten', which nobody reads" in finding.text
    assert finding.fix == "select pg_drop_replication_slot('forgotten');"
    assert finding.data["catalog_back"] >= 3
    assert examined(dsn, Limits(wal_bad=0)).one("snapshot_slot").state == "bad"
    mend(dsn, finding)
    assert examined(dsn, AT_ONCE).all("snapshot_slot") == []


def test_a_query_on_a_standby(own):
    """With feedback it holds rows here; what is printed for the standby ends that."""
    dsn = own.dsn()
    with doctoring.standby(own, hot_standby_feedback="on") as replica, holding(replica.dsn()):
        finding = held_by(dsn, "snapshot_standby")
        assert finding.fix.startswith("-- on the standby reports (local socket)")
        mend(replica.dsn(), finding)
        wait_until(lambda: examined(dsn, AT_ONCE).all("snapshots"), timeout=30, what="no feedback any more")


def test_the_slot_of_a_standby(own):
    """While the standby is there the command is for it; a slot that is left over still holds a snapshot, and goes by its name."""
    dsn = own.dsn()
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("SELECT pg_create_physical_replication_slot('reports')")
    with doctoring.standby(own, hot_standby_feedback="on", primary_slot_name="reports") as replica, holding(replica.dsn()):
        finding = held_by(dsn, "snapshot_slot")
        assert "hot_standby_feedback = off" in finding.fix
        assert finding.data["active"]
    left = wait_until(lambda: idle(dsn), timeout=30, what="the slot to be left alone")
    assert left.state == "note"
    assert left.fix == "select pg_drop_replication_slot('reports');"
    mend(dsn, left)
    assert examined(dsn, AT_ONCE).one("snapshots").state == "ok"


def held_by(dsn, code):
    """Let transactions pass until somebody of this kind is found."""
    return wait_until(lambda: (advance(dsn), examined(dsn, AT_ONCE).all(code))[1], timeout=30, what=code)[0]


def idle(dsn):
    """A slot that nobody reads, with the usual limits."""
    return next((each for each in examined(dsn).all("snapshot_slot") if not each.data["active"]), None)


def test_who_may_not_see_others_is_told(own):
    """A role without pg_monitor gets a note with the GRANT that helps, and then sees."""
    dsn = own.dsn()
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("CREATE ROLE app LOGIN; GRANT USAGE ON SCHEMA jobrunner TO app; GRANT SELECT ON ALL TABLES IN SCHEMA jobrunner TO app")
    as_app = dsn.replace("postgres@", "app@", 1)
    with holding(dsn):
        advance(dsn)
        report = examined(as_app, AT_ONCE)
        finding = report.one("snapshots_hidden")
        assert (finding.state, finding.fix) == ("note", 'GRANT pg_monitor TO "app";')
        assert report.all("snapshot_session") == []
        mend(dsn, finding)
        report = examined(as_app, AT_ONCE)
        assert report.all("snapshots_hidden") == []
        assert report.one("snapshot_session").data["user"] == "postgres"
