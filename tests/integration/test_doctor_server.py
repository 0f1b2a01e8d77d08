"""The doctor finds settings of the server and of the session that cost jobs, and the command that it prints changes them."""

from __future__ import annotations

import contextlib
import os
import shlex
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from jobrunner.doctor import Limits, clocks
from tests.support import doctoring, poolers
from tests.support.doctoring import examined, mend
from tests.support.waiting import wait_until
from tests.support.workers import rows

pytestmark = pytest.mark.needs("psql")

ROLE = f"doctor_app_{os.getpid()}"  # roles are of the server, which tests in other processes use at the same time


def run(dsn, *statements):
    """Each in a transaction of its own."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


@pytest.fixture
def app(fresh_dsn):
    """The address of a role of the test's own that may do all."""
    run(fresh_dsn, f"CREATE ROLE {ROLE} LOGIN SUPERUSER")
    yield fresh_dsn.replace("postgres@", f"{ROLE}@", 1)
    run(fresh_dsn, f"DROP OWNED BY {ROLE}", f"DROP ROLE {ROLE}")


def test_what_a_crash_would_cost():
    """fsync and full_page_writes off are bad, synchronous_commit off is a note; each is on again as printed."""
    with doctoring.cluster(bare=True) as own:
        dsn = own.dsn()
        assert examined(dsn).one("durability").state == "ok"
        names = ("fsync", "full_page_writes", "synchronous_commit")
        run(dsn, *(f"ALTER SYSTEM SET {name} = off" for name in names), "SELECT pg_reload_conf()")
        found = wait_until(lambda: [each for each in examined(dsn).all("durability") if each.fix], timeout=20, what="the settings to be read")
        assert [(each.data["setting"], each.state) for each in found] == [(names[0], "bad"), (names[1], "bad"), (names[2], "note")]
        assert "lose acknowledged jobs" in found[0].text
        for finding in found:
            mend(dsn, finding)
        wait_until(lambda: not examined(dsn).one("durability").fix, timeout=20, what="the settings to be read")


def test_a_role_that_does_not_wait_for_the_disk(app, fresh_dsn):
    """synchronous_commit that is off for a role or database is on again for it as printed."""
    name = psycopg.conninfo.conninfo_to_dict(fresh_dsn)["dbname"]
    run(fresh_dsn, f'ALTER DATABASE "{name}" SET synchronous_commit = off')
    run(fresh_dsn, f"ALTER ROLE {ROLE} SET synchronous_commit = off")
    finding = next(each for each in examined(app).all("durability") if each.data["setting"] == "synchronous_commit")
    assert finding.fix == f'ALTER ROLE "{ROLE}" IN DATABASE "{name}" SET synchronous_commit = on;'
    mend(fresh_dsn, finding)
    assert [each for each in examined(app).all("durability") if each.data["setting"] == "synchronous_commit"] == []
    run(fresh_dsn, f'ALTER ROLE {ROLE} IN DATABASE "{name}" RESET ALL')


def test_connections_that_are_nearly_used_up():
    """Their number is told, bad when next to none is left; with twice as many after a restart there are enough."""
    with doctoring.cluster(bare=True) as own:
        dsn = own.dsn()
        run(dsn, "ALTER SYSTEM SET max_connections = 20")
        own.stop()
        own.start()
        assert examined(dsn).one("connections").state == "ok"
        with contextlib.ExitStack() as stack:
            for _ in range(14):
                stack.enter_context(psycopg.connect(dsn))
            note = examined(dsn).one("connections")
            for _ in range(3):
                stack.enter_context(psycopg.connect(dsn))
            finding = examined(dsn).one("connections")
            assert (note.state, finding.state) == ("note", "bad")
            assert finding.data["usable"] == 17
            assert finding.data["used"] >= 17
            assert finding.fix == "ALTER SYSTEM SET max_connections = 40;"
            mend(dsn, finding)
        own.stop()
        own.start()
        assert examined(dsn).one("connections").data["max_connections"] == 40
        assert examined(dsn).one("connections").state == "ok"


def test_a_server_that_takes_no_writes(app, fresh_dsn):
    """A role whose transactions are read-only by default is bad, and writes again as printed."""
    run(fresh_dsn, f"ALTER ROLE {ROLE} SET default_transaction_read_only = on")
    finding = examined(app).one("read_only")
    assert finding.state == "bad"
    name = psycopg.conninfo.conninfo_to_dict(fresh_dsn)["dbname"]
    mend(fresh_dsn, finding)
    assert examined(app).one("read_only").state == "ok"
    run(app, "CREATE TABLE public.written ()", f'ALTER ROLE {ROLE} IN DATABASE "{name}" RESET ALL')


def test_a_standby():
    """It is bad to work on one; all that can be looked at there is looked at, and the primary's address is printed."""
    with doctoring.cluster() as own, doctoring.standby(own) as replica:
        wait_until(lambda: rows(replica.dsn(), "SELECT status FROM pg_stat_wal_receiver"), timeout=30, what="the standby to be connected")
        report = examined(replica.dsn())
        finding = report.one("read_only")
        assert finding.state == "bad"
        assert [each.code for each in report.findings if "unseen" in each.data] == ["structure"]
        assert report.one("structure").state == "note"
        words = shlex.split(finding.fix)
        assert words[:3] == ["jobrunner", "doctor", "--dsn"]
        assert examined(words[3]).one("read_only").state == "ok"


@pytest.mark.parametrize(("limits", "state"), [(Limits(oldest=99, newest=100), "bad"), (Limits(oldest=1, newest=2), "note"), (None, "ok")])
def test_the_version_of_the_server(fresh_dsn, limits, state):
    """Older than what Jobrunner is tested on is bad, newer a note."""
    finding = examined(fresh_dsn, limits).one("server_version")
    assert finding.state == state
    assert finding.data["version"] in finding.text


@pytest.mark.parametrize(("seconds", "word"), [(-95.5, "1 m 35 s behind"), (95.5, "1 m 35 s ahead of"), (-1, None)])
def test_a_clock_that_is_wrong(fresh_dsn, monkeypatch, seconds, word):
    """This host's clock is compared with the database's; some seconds are a note, less than the answer's way is nothing."""
    monkeypatch.setattr(clocks, "wall", lambda: datetime.now(UTC) + timedelta(seconds=seconds))
    finding = examined(fresh_dsn).one("clock_skew")
    assert finding.state == ("note" if word else "ok")
    assert abs(finding.data["ahead_seconds"] - seconds) < 0.5
    if word:
        assert word in finding.text
        assert finding.fix == "chronyc makestep"
        monkeypatch.undo()
        assert examined(fresh_dsn).one("clock_skew").state == "ok"


@pytest.mark.needs("pgbouncer")
def test_a_pooler_in_between(fresh_dsn, tmp_path):
    """It is noticed, every check works through it, nothing is left behind in its sessions, and the printed address goes past it."""
    with poolers.pgbouncer(fresh_dsn, tmp_path) as pooled:
        report = examined(pooled)
        finding = report.one("pooler")
        assert finding.state == "note"
        assert "LISTEN" in finding.text
        assert [each.code for each in report.findings if "unseen" in each.data] == []
        with psycopg.connect(pooled, prepare_threshold=None) as one, psycopg.connect(pooled, prepare_threshold=None) as other:
            query = "SELECT current_setting('statement_timeout'), current_setting('transaction_read_only')"
            assert [connection.execute(query).fetchall() for connection in (one, other)] == [[("0", "off")]] * 2
        words = shlex.split(finding.fix)
        assert words[:3] == ["jobrunner", "work", "--dsn"]
        assert examined(words[3]).one("pooler").state == "ok"
        assert rows(words[3], "SELECT current_database()") == rows(fresh_dsn, "SELECT current_database()")


def test_time_outs_of_the_role(app, fresh_dsn):
    """Those that would break workers are told with what they break, and are off as printed; longer ones are nobody's trouble."""
    run(
        fresh_dsn,
        f"ALTER ROLE {ROLE} SET statement_timeout = '500ms'",
        f"ALTER ROLE {ROLE} SET lock_timeout = '5s'",
        f"ALTER ROLE {ROLE} SET idle_in_transaction_session_timeout = '30s'",
        f"ALTER ROLE {ROLE} SET idle_session_timeout = '2s'",
    )
    found = {each.data["setting"]: each for each in examined(app).all("role_timeout")}
    assert {name: each.state for name, each in found.items()} == {
        "statement_timeout": "bad", "lock_timeout": "note", "idle_session_timeout": "bad",
    }  # fmt: skip
    for finding in found.values():
        mend(fresh_dsn, finding)
    assert examined(app).one("timeouts").state == "ok"
    assert examined(app, Limits(patience_note=timedelta(minutes=1))).one("role_timeout").data["setting"].startswith("idle_in_transaction")
    name = psycopg.conninfo.conninfo_to_dict(fresh_dsn)["dbname"]
    run(fresh_dsn, f'ALTER ROLE {ROLE} IN DATABASE "{name}" RESET ALL')


def test_a_time_out_in_the_address(fresh_dsn):
    """No ALTER ROLE would help: the address is named."""
    finding = examined(f"{fresh_dsn}&options=-c%20statement_timeout%3D800").one("role_timeout")
    assert (finding.state, finding.data["milliseconds"]) == ("bad", 800)
    assert "out of the address" in finding.fix
