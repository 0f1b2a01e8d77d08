"""The doctor finds dead rows, bloated indexes, an autovacuum that does not come, and rows or days without a partition."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from jobrunner.doctor import Limits
from tests.support import doctoring
from tests.support.doctoring import examined, mend
from tests.support.waiting import wait_until
from tests.support.workers import insert, rows

pytestmark = pytest.mark.needs("psql")

FEW = Limits(dead_note=400, dead_bad=4000)
SMALL = Limits(index_wasted=200_000)
BACKLOG = 20_000


@pytest.fixture
def alone():
    """A database on a server without neighbours: while one of them writes, in whatever database, VACUUM leaves what died meanwhile."""
    with doctoring.cluster() as own:
        run(own.dsn(), "VACUUM")  # of what the migrations left
        yield own.dsn()


def run(dsn, *statements):
    """Each in a transaction of its own."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


def soon(dsn, code, limits=None, **wanted):
    """The finding, once the statistics have come through."""

    def there():
        return [each for each in examined(dsn, limits).all(code) if all(getattr(each, name) == value for name, value in wanted.items())]

    return wait_until(there, timeout=20, what=f"{code} {wanted}")[0]


def test_dead_rows_that_a_snapshot_keeps(alone):
    """They are counted beside the live ones; VACUUM as printed removes them, but not before the snapshot has ended."""
    insert(alone, "t", 500)
    with psycopg.connect(alone) as pin:
        pin.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        pin.execute("SELECT 1")
        run(alone, "DELETE FROM jobrunner.jobs")
        finding = soon(alone, "dead_rows", FEW, state="note")
        assert finding.fix == "VACUUM (ANALYZE) jobrunner.jobs;"
        assert finding.data["dead_rows"] == 500
        assert soon(alone, "dead_rows", Limits(dead_note=1, dead_bad=500)).state == "bad"
        mend(alone, finding)
        assert soon(alone, "dead_rows", FEW).data["dead_rows"] == 500
    mend(alone, finding)
    assert soon(alone, "dead_rows", FEW, state="ok").data["dead_rows"] == 0


def bloated(dsn):
    """An index that held a backlog which came out of order and went, all but a few jobs."""
    with psycopg.connect(dsn) as pin:
        pin.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        pin.execute("SELECT 1")
        insert(dsn, "t", BACKLOG)
        run(dsn, "UPDATE jobrunner.jobs SET priority = (id % 5)::smallint", "DELETE FROM jobrunner.jobs WHERE id % 100 <> 0")
    run(dsn, "VACUUM (ANALYZE) jobrunner.jobs")


@pytest.mark.parametrize("extension", [False, True], ids=["estimated", "pgstattuple"])
def test_an_index_that_is_too_large(alone, extension):
    """Estimated from the statistics, or measured where pgstattuple is installed; rebuilt as printed it is as small as it should be."""
    if extension:
        run(alone, "CREATE SCHEMA extras", "CREATE EXTENSION pgstattuple SCHEMA extras")
    bloated(alone)
    (finding,) = [each for each in examined(alone, SMALL).all("index_bloat") if each.data["index"] == "jobs_claim"]
    assert finding.state == "note"
    assert finding.fix == "REINDEX INDEX CONCURRENTLY jobrunner.jobs_claim;"
    assert finding.data["how"] == ("measured by pgstattuple" if extension else "estimated")
    mend(alone, finding)
    after = rows(alone, "SELECT pg_relation_size('jobrunner.jobs_claim')")[0][0]
    assert finding.data["needed_bytes"] / 3 < after < finding.data["needed_bytes"] * 3
    assert [each for each in examined(alone, SMALL).all("index_bloat") if each.data.get("index") == "jobs_claim"] == []
    assert examined(alone).one("index_bloat").state == "ok"


def test_an_index_that_is_full_is_left_alone(fresh_dsn):
    """A backlog that is still there is no bloat, however large its index is."""
    insert(fresh_dsn, "t", BACKLOG)
    run(fresh_dsn, "VACUUM (ANALYZE) jobrunner.jobs")
    report = examined(fresh_dsn, Limits(index_wasted=1, index_factor=2))
    assert [each for each in report.all("index_bloat") if each.data.get("index") in {"jobs_claim", "jobs_pkey"}] == []


def test_autovacuum_switched_off_for_a_table(fresh_dsn):
    """It is bad, and reset as printed."""
    run(fresh_dsn, "ALTER TABLE jobrunner.jobs SET (autovacuum_enabled = off)")
    finding = examined(fresh_dsn).one("autovacuum_off")
    assert (finding.state, finding.data["table"]) == ("bad", "jobs")
    mend(fresh_dsn, finding)
    assert examined(fresh_dsn).one("autovacuum").state == "ok"
    assert rows(fresh_dsn, "SELECT 'autovacuum_vacuum_threshold=5000' = ANY (reloptions) FROM pg_class WHERE oid = 'jobrunner.jobs'::regclass") == [(True,)]


def test_autovacuum_switched_off_for_the_server():
    """Off, or without the counts that it goes by: both are bad, and on again as printed."""
    with doctoring.cluster() as own:
        run(own.dsn(), "ALTER SYSTEM SET autovacuum = off", "ALTER SYSTEM SET track_counts = off", "SELECT pg_reload_conf()")
        found = wait_until(lambda: examined(own.dsn()).all("autovacuum_off"), timeout=20, what="the settings to be read")
        assert [(each.state, each.data["setting"]) for each in found] == [("bad", "autovacuum"), ("bad", "track_counts")]
        for finding in found:
            mend(own.dsn(), finding)
        assert soon(own.dsn(), "autovacuum").state == "ok"


def test_an_autovacuum_that_is_late():
    """A table with many times the dead rows that it comes at, and nobody came; VACUUM as printed is not late any more."""
    limits = Limits(vacuum_lag=timedelta(0))
    with doctoring.cluster({"autovacuum_naptime": "1d"}) as own:
        dsn = own.dsn()
        run(dsn, "ALTER TABLE jobrunner.jobs SET (autovacuum_vacuum_threshold = 10)")
        insert(dsn, "t", 500)
        run(dsn, "DELETE FROM jobrunner.jobs")
        finding = soon(dsn, "autovacuum_late", limits)
        assert (finding.state, finding.data["table"], finding.data["comes_at"], finding.data["dead_rows"]) == ("bad", "jobs", 10, 500)
        assert examined(dsn).one("autovacuum").state == "ok"  # not for so long
        mend(dsn, finding)
        assert soon(dsn, "autovacuum", limits).state == "ok"


def test_rows_that_nobody_has_frozen():
    """The age of the oldest database is told, and VACUUM FREEZE as printed makes it young."""
    with doctoring.cluster() as own:
        dsn = own.dsn()
        age = examined(dsn).one("freezing").data["xids"]
        with psycopg.connect(dsn, autocommit=True) as connection:
            for _ in range(100):
                connection.execute("SELECT pg_current_xact_id()")
            for name in ("template1",):
                connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS off")
        limits = Limits(freeze_note=age + 50, freeze_bad=age + 80)
        finding = examined(dsn, limits).one("freezing")
        assert (finding.state, finding.data["database"]) == ("bad", "postgres")
        assert examined(dsn, Limits(freeze_note=age + 50)).one("freezing").state == "note"
        mend(dsn, finding)
        assert examined(dsn, limits).one("freezing").state == "ok"


def test_days_without_a_partition(fresh_dsn):
    """Tomorrow's is missing: bad; some days are there: a note. As printed they are made, for every table that is partitioned by the day."""
    tomorrow = datetime.now(UTC).date() + timedelta(days=1)
    after = [f"job_history_{tomorrow + timedelta(days=step):%Y%m%d}" for step in range(7)]
    run(fresh_dsn, f"DROP TABLE jobrunner.{after[1]}")
    finding = examined(fresh_dsn).one("partitions_missing")
    assert (finding.state, finding.data["days_ahead"]) == ("note", 1)
    run(fresh_dsn, f"DROP TABLE jobrunner.{after[0]}", f"DROP TABLE jobrunner.job_logs_{tomorrow:%Y%m%d}")
    found = examined(fresh_dsn).all("partitions_missing")
    assert [(each.state, each.data["table"], each.data["first_missing"]) for each in found] == [
        ("bad", "job_history", f"{tomorrow}"), ("bad", "job_logs", f"{tomorrow}"),
    ]  # fmt: skip
    mend(fresh_dsn, found[0])
    assert examined(fresh_dsn).one("partitions").state == "ok"


@pytest.mark.parametrize("days", [1, -40], ids=["tomorrow", "long ago"])
def test_rows_in_a_default_partition(fresh_dsn, days):
    """They are counted with their days, and sorted into partitions of their own as printed; none is lost."""
    day = datetime.now(UTC).date() + timedelta(days=days)
    run(
        fresh_dsn,
        f"DROP TABLE IF EXISTS jobrunner.job_logs_{day:%Y%m%d}",
        "INSERT INTO jobrunner.job_logs (job_id, lease, line, attempt, logged_at, level, logger, message) "
        f"SELECT n, 1, 1, 1, '{day} 12:00+00'::timestamptz + n * interval '1 hour', 20, '', 'm' FROM generate_series(0, 11) AS n",
    )
    finding = examined(fresh_dsn).one("default_partition")
    assert (finding.state, finding.data["table"], finding.data["rows"]) == ("note", "job_logs", 12)
    assert f"{day}" in finding.text
    mend(fresh_dsn, finding)
    assert examined(fresh_dsn).one("partitions").state == "ok"
    assert rows(fresh_dsn, f"SELECT count(*) FROM jobrunner.job_logs_{day:%Y%m%d}") == [(12,)]


def test_who_may_make_partitions():
    """A worker's role that does not own the tables cannot make any: a note with what lets it."""
    with doctoring.cluster() as own:
        dsn = own.dsn()
        run(
            dsn,
            "CREATE ROLE keeper; CREATE ROLE app LOGIN IN ROLE pg_monitor",
            "GRANT USAGE ON SCHEMA jobrunner TO app; GRANT SELECT ON ALL TABLES IN SCHEMA jobrunner TO app",
            "GRANT USAGE, CREATE ON SCHEMA jobrunner TO keeper",
            *(f"ALTER TABLE jobrunner.{name} OWNER TO keeper" for (name,) in rows(dsn, "SELECT tablename FROM pg_tables WHERE schemaname = 'jobrunner'")),
        )
        as_app = dsn.replace("postgres@", "app@", 1)
        finding = examined(as_app).one("partition_rights")
        assert (finding.state, finding.fix) == ("note", 'GRANT "keeper" TO "app";\nGRANT CREATE ON SCHEMA jobrunner TO "app";')
        mend(dsn, finding)
        assert examined(as_app).one("partitions").state == "ok"
        assert rows(as_app, "SELECT jobrunner.ensure_partitions(9) > 0") == [(True,)]
