"""The doctor is bounded and harmless: locked tables, missing rights, a server that goes away; it changes nothing and ends nobody."""

from __future__ import annotations

import time
from datetime import timedelta

import psycopg
import pytest

from jobrunner.database import Database
from jobrunner.doctor import examination, examine
from jobrunner.settings import parse_dsn
from tests.support import doctoring
from tests.support.doctoring import examined, mend
from tests.support.waiting import wait_until
from tests.support.workers import insert, rows

READ_JOBS = {"workers", "lost_workers", "queues", "tasks"}
TABLES = "SELECT oid::regclass::text FROM pg_class WHERE relnamespace = 'jobrunner'::regnamespace AND relkind = 'r' ORDER BY 1"
OBJECTS = "SELECT count(*), max(oid) FROM pg_class WHERE relname !~ 'toast' AND relnamespace::regnamespace::text !~ 'pg_temp'"


@pytest.mark.needs("psql")
def test_a_table_that_is_locked(fresh_dsn):
    """What reads it is a note within seconds that names the holder; everything else is looked at; ended as printed, all is seen."""
    with psycopg.connect(fresh_dsn) as holder:
        holder.execute("LOCK TABLE jobrunner.jobs IN ACCESS EXCLUSIVE MODE")
        began = time.monotonic()
        report = examined(fresh_dsn, timeout=examination.CHECK_TIMEOUT)
        assert time.monotonic() - began < 20
        unseen = {each.code: each for each in report.findings if "unseen" in each.data}
        assert unseen.keys() >= READ_JOBS
        assert {each.state for each in unseen.values()} == {"note"}
        assert report.one("snapshots").state == report.one("server_version").state == "ok"
        finding = unseen["queues"]
        assert finding.text.startswith("could not look at the queues that nobody serves: ")
        assert finding.fix == f"select pg_terminate_backend({holder.info.backend_pid});"
        mend(fresh_dsn, finding)
        wait_until(lambda: not any("unseen" in each.data for each in examined(fresh_dsn).findings), timeout=20, what="all to be seen")
        holder.close()


def test_a_look_that_takes_too_long(fresh_dsn):
    """A statement that is not answered in time is broken off by the server, and its check is a note."""
    database = Database(parse_dsn(fresh_dsn, "test"), pool_size=1)
    with psycopg.connect(fresh_dsn) as holder:
        holder.execute("LOCK TABLE jobrunner.jobs IN ACCESS EXCLUSIVE MODE")
        findings = {each.code: each for each in examine(database, timeout=timedelta(milliseconds=100))}
    database.close()
    assert {findings[code].state for code in READ_JOBS} == {"note"}
    assert "0.1 s" in findings["queues"].text


@pytest.mark.needs("psql")
def test_a_role_without_rights():
    """Each check that may not look is a note with the GRANT that helps; with those granted it sees everything."""
    with doctoring.cluster() as own:
        dsn = own.dsn()
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("CREATE ROLE app LOGIN; REVOKE TEMPORARY ON DATABASE postgres FROM public")
        as_app = dsn.replace("postgres@", "app@", 1)
        report = examined(as_app)
        unseen = [each for each in report.findings if "unseen" in each.data]
        assert {each.code for each in unseen} >= READ_JOBS | {"structure"}
        assert {each.state for each in unseen} == {"note"}
        assert all("that_user" not in each.fix and "this_database" not in each.fix for each in unseen)
        assert report.one("server_version").state == "ok"
        for fix in {each.fix: each for each in (*unseen, *report.all("snapshots_hidden"))}.values():
            mend(dsn, fix)
        report = examined(as_app)
        assert [each for each in report.findings if "unseen" in each.data] == []
        assert report.all("snapshots_hidden") == []


def test_a_server_that_is_gone():
    """One finding says so, and nothing is raised."""
    with doctoring.cluster() as own:
        dsn = own.dsn()
        own.stop()
        (finding,) = examined(dsn).findings
        assert (finding.code, finding.state) == ("database_lost", "bad")


def test_a_mistake_in_a_check(fresh_dsn, monkeypatch):
    """It hides nothing that the other checks have found, and nothing is raised."""

    def look(given):
        raise ZeroDivisionError(given.limits.oldest)

    broken = examination.Check("broken", "server", "what is broken", look)
    monkeypatch.setattr(examination, "CHECKS", (broken, *examination.CHECKS))
    report = examined(fresh_dsn)
    assert report.one("broken").text.startswith("could not look at what is broken: unexpected ZeroDivisionError")
    assert report.one("structure").state == "ok"


def test_without_our_schema(empty_dsn):
    """The server is looked at; what reads tables of ours is left out when that is said."""
    database = Database(parse_dsn(empty_dsn, "test"), pool_size=1)
    findings = examine(database, schema_fits=False)
    database.close()
    assert {each.group for each in findings} == {"snapshots", "server", "session"}
    assert not any("unseen" in each.data for each in findings)


def test_nothing_is_changed(fresh_dsn):
    """Rows and objects are the same before and after, in whatever state the database is."""
    insert(fresh_dsn, "t", 20)
    insert(fresh_dsn, "t", 20, queue="elsewhere")
    before = content(fresh_dsn)
    examined(fresh_dsn)
    assert content(fresh_dsn) == before
    assert sum("elsewhere" in str(each) for each in before.values()) == 1


def content(dsn):
    """Every row of every table of ours, and how many objects there are in all."""
    tables = [name for (name,) in rows(dsn, TABLES)]
    return {name: sorted(map(str, rows(dsn, f"SELECT t FROM {name} t"))) for name in tables} | {"objects": rows(dsn, OBJECTS)}
